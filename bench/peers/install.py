"""Puts a peer into `.peers`, a venv of its own, at the versions and hashes of requirements/peers.txt.

The one rule: what cannot be installed is `Absent`, with the reason; the others go on. Each peer is
installed by itself, with the whole lock as constraints.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".peers"
PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements" / "peers.txt"
REASON_CHARACTERS = 300
_INSTALL_S = 100


class Absent(Exception):
    """A peer that cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Candidate:
    """A peer: its name, its module of this package, its package and extras, its Debian package."""

    name: str
    module: str
    package: str
    extras: str = ""
    debian: str = ""


CANDIDATES = (
    Candidate("ray", "on_ray", "ray"),
    Candidate("celery", "on_celery", "celery", extras="[redis]", debian="redis-server"),
    Candidate("dask", "on_dask", "distributed"),
)


def install(candidate: Candidate) -> None:
    """Make the peer ready to run; instant when it is. Raises Absent."""
    if candidate.debian and not shutil.which(candidate.debian):
        _run("setup/debian.sh", candidate.debian)
    if not PYTHON.exists():
        _run("setup/uv.sh", "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV))
    print(f"installing {candidate.name} into {VENV.name}", file=sys.stderr)
    pinned = f"{candidate.package}{candidate.extras}=={_version(candidate.package)}"
    hashed = ("--require-hashes", "--only-binary", ":all:", "--constraints", str(LOCK))
    _run("setup/uv.sh", "pip", "install", "--quiet", "--python", str(PYTHON), *hashed, pinned)


def shortened(text: str) -> str:
    """The end of what a program said, on one line."""
    return " ".join(text.split())[-REASON_CHARACTERS:]


def _version(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise Absent(f"{package} is not in {LOCK.name}; try: make lock")
    return found[1]


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise Absent(f"{command[0]} took longer than {_INSTALL_S} s") from exc
    if done.returncode:
        raise Absent(shortened(done.stderr) or f"{command[0]} ended with {done.returncode}")
