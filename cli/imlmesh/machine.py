"""The machine that gets services: this one, or one whose files lie in a folder; and deeds on it.

The one rule: a path of the machine passes `at` before it is touched. Deliberately absent: what
services need.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, MeshError

THIS = Path("/")
_RUNNING = Path("/run/systemd/system")


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing to do, told as `text`."""

    text: str
    do: Callable[[], object]

    def carry_out(self) -> None:
        """Do it; MeshError `access.denied` or `service.failed` when the system refuses."""
        try:
            self.do()
        except PermissionError as exc:
            if isinstance(exc, MeshError):
                raise
            raise InputError("access.denied", f"{self.text}: {exc}", hint="use sudo") from exc
        except OSError as exc:
            if isinstance(exc, MeshError):
                raise
            raise MeshError("service.failed", f"{self.text}: {exc}") from exc


@dataclass(frozen=True, slots=True)
class Machine:
    """`root` is / for this machine, else the folder of an image."""

    root: Path = THIS

    @property
    def is_this(self) -> bool:
        return self.root == THIS

    def at(self, path: Path) -> Path:
        """Where an absolute path of that machine is found."""
        return self.root / path.relative_to(THIS)

    def lacks(self) -> str | None:
        """Why no unit would ever start there, or None."""
        if not shutil.which("systemctl") or not shutil.which("systemd-sysusers"):
            return "systemd is not installed here"
        if self.is_this and not _RUNNING.is_dir():
            return "systemd is installed here, but it does not run this machine"
        return None

    def run(self, program: str, *words: str) -> str:
        """The output of a program of systemd for that machine; MeshError `service.failed`."""
        target = () if self.is_this else (f"--root={self.root}",)
        command = [program, *target, *words]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limits.SYSTEMD_ANSWER_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise MeshError("service.failed", f"{program}: {exc}") from exc
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
            raise MeshError("service.failed", f"{' '.join(command)}: {said}")
        return done.stdout

    def groups(self) -> list[str]:
        """The names of its groups."""
        return [row[0] for row in self._rows("group")]

    def owner(self, user: str) -> tuple[int, int]:
        """The numbers of a user and its group; `service.failed` when there is no such user."""
        for row in self._rows("passwd"):
            if row[0] == user:
                return int(row[2]), int(row[3])
        raise MeshError("service.failed", f"there is no user {user}")

    def _rows(self, file: str) -> Iterator[list[str]]:
        path = self.at(Path("/etc") / file)
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                yield line.split(":")


def write_file(path: Path, text: str) -> None:
    """Write a file that everybody may read, whole or not at all, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o644)
    new.replace(path)


def give(path: Path, owner: tuple[int, int]) -> None:
    """Give `path`, and all below it, to a user and group.

    It is walked by descriptors and links are given, never followed: whoever owns a folder of the
    tree may put a link to anything there while root walks it.
    """
    os.chown(path, *owner, follow_symlinks=False)
    for _, folders, files, at in os.fwalk(path, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, *owner, dir_fd=at, follow_symlinks=False)


def copy_private(source: Path, target: Path) -> None:
    """Copy a folder whose owner may be somebody else; what is copied is for its owner alone.

    Walked like `give`; links stay links. OSError for what is neither file, folder nor link.
    """
    for place, folders, files, at in os.fwalk(source, follow_symlinks=False):
        copied = target / Path(place).relative_to(source)
        copied.mkdir(mode=0o700)
        for name in (*folders, *files):
            kind = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
            if stat.S_ISLNK(kind):
                (copied / name).symlink_to(os.readlink(name, dir_fd=at))
            elif not stat.S_ISDIR(kind):
                _copy_file(name, at, copied / name)


def _copy_file(name: str, at: int, target: Path) -> None:
    # without waiting for the writer of a pipe
    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    with os.fdopen(opened, "rb") as source, target.open("xb") as copy:
        kind = os.fstat(source.fileno()).st_mode
        if not stat.S_ISREG(kind):
            raise OSError(f"{name} is no file, folder or link")
        os.fchmod(copy.fileno(), kind & 0o700)
        shutil.copyfileobj(source, copy)
