"""A machine that systemd runs, within this one: a root folder, devices and a network of its own.

The one rule: nothing outside of it can be reached, let alone changed, by what runs there. Programs and
our checkout are mounted read-only into a new root, all else is new and in memory, and systemd is
only started behind `pivot_root`, without the rights that concern the kernel of both.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/opt/imlmesh/bin/python"
SOCKET = "/run/imlmesh/api.sock"
WITHIN_S = 60
SYSTEMD = Path("/lib/systemd/systemd")
_PROGRAMS = ("unshare", "nsenter", "pivot_root", "setpriv", "mount", "ldconfig")
#: folders of programs and libraries
_IN_ROOT = ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr")
_ROOMS = ("protocol", "runtime", "drivers", "node", "orchestrator", "broker", "cli")
_USERS = "root:x:0:0::/root:/bin/sh\nmosquitto:x:901:901::/:/usr/sbin/nologin\n"
_GROUPS = "root:x:0:\nmosquitto:x:901:\ngpio:x:902:\n"
#: what would touch the kernel that both machines share
_KEPT_BACK = "-sys_module,-sys_rawio,-sys_boot,-sys_time,-mac_admin,-mac_override"

# $1 is the new root, a folder; it becomes a file system of its own
_BOOT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
cp -a "$2/." "$1/"
while IFS="$(printf '\t')" read -r source target; do
    mkdir -p "$1$target"
    mount --bind "$source" "$1$target"
    mount -o remount,bind,ro "$1$target"
done <"$2/mounts"
# the libraries of our Python, where they are now
ldconfig -r "$1"
mount -t proc proc "$1/proc"
mount -t sysfs -o ro sysfs "$1/sys"
mount --bind "$1/proc/sys" "$1/proc/sys"
mount -o remount,bind,ro "$1/proc/sys"
mount -t tmpfs -o mode=755,nosuid tmpfs "$1/dev"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    IFS=: read -r name major minor <<END
$node
END
    mknod -m 666 "$1/dev/$name" c "$major" "$minor"
done
ln -s pts/ptmx "$1/dev/ptmx"
mkdir "$1/old"
cd "$1"
pivot_root . old
umount -l /old
rmdir /old
# only the new root has it: without it this would be the machine outside
test -e /mounts
exec env -i container=imlmesh-test SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=1 PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    setpriv --bounding-set="$3" \
    /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=no
"""


def missing_program() -> str | None:
    """Which program there must be to boot a machine and is not, or None."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
    if missing or not SYSTEMD.exists():
        return f"{', '.join(missing) or SYSTEMD} is missing, to boot a machine within this one"
    return None


def missing_right() -> str | None:
    """Why, for all the programs that there are, no machine can be booted here, or None."""
    if os.geteuid() != 0:
        return "needs root, to boot a machine within this one"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--cgroup", "--net", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Booted:
    """The running machine; `run` types a command as its root."""

    def __init__(self, init: int) -> None:
        self._init = init
        self._enter = ["nsenter", f"--target={init}", "--mount", "--pid", "--net", "--ipc", "--uts"]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command to its end; fails the test when it fails and `check` is set."""
        done = subprocess.run(
            [*self._enter, "--wd=/", *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def imlmesh(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`imlmesh WORDS` of the installation in /opt."""
        return self.run(PYTHON, "-m", "imlmesh", *words, check=check)

    def api(self, method: str, path: str, body: Any = None) -> dict[str, Any] | None:
        """What the orchestrator in there answers, asked from out here; None while it does not."""
        socket = f"/proc/{self._init}/root{SOCKET}"
        transport = httpx2.HTTPTransport(verify=False, uds=socket)
        try:
            with httpx2.Client(transport=transport, timeout=WITHIN_S, trust_env=False) as client:
                answer = client.request(method, f"http://imlmesh/v1/{path}", json=body)
        except httpx2.TransportError:
            return None
        found: dict[str, Any] | None = answer.json() if answer.is_success else None
        return found

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def until(self, ready: Callable[[], Any]) -> Any:
        """The first true answer of `ready`."""
        deadline_s = time.monotonic() + WITHIN_S
        while not (found := ready()):
            if time.monotonic() > deadline_s:
                raise AssertionError("it did not happen in time")
            time.sleep(0.1)
        return found


@contextlib.contextmanager
def booted(folder: Path) -> Iterator[Booted]:
    """Boot a machine whose files are made in `folder`; gone at the end, with all that it ran."""
    skeleton, root = folder / "skeleton", folder / "root"
    _write_skeleton(skeleton)
    root.mkdir()
    group = _control_group()
    command = ["unshare", "--fork", "--kill-child", "--mount", "--pid", "--cgroup", "--ipc"]
    command += ["--uts", "--net", "sh", "-c", _BOOT, "boot", str(root), str(skeleton), _KEPT_BACK]
    with (folder / "boot.log").open("wb") as log:
        outside = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
        )
    try:
        machine = Booted(_init_of(outside, folder / "boot.log"))
        machine.until(lambda: _is_up(machine))
        # a machine that is no container has it so, for whoever wants a terminal
        machine.run("chmod", "666", "/dev/pts/ptmx")
        yield machine
    finally:
        outside.kill()
        outside.wait()
        _remove_group(group)


def _is_up(machine: Booted) -> bool:
    asked = machine.run("systemctl", "is-active", "basic.target", check=False)
    return asked.stdout.strip() == "active"


def _init_of(outside: "subprocess.Popen[bytes]", log: Path) -> int:
    """The number, out here, of the process that is 1 in there, once it is systemd."""
    children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
    deadline_s = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline_s and outside.poll() is None:
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        time.sleep(0.05)
    raise AssertionError(f"it did not boot: {log.read_text()}")


def _write_skeleton(folder: Path) -> None:
    """What is new in the machine, and the list of what is mounted into it."""
    for name in ("dev", "etc", "proc", "run", "sys", "tmp", "var/lib", "var/log", "root", "opt"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "etc/passwd").write_text(_USERS)
    (folder / "etc/group").write_text(_GROUPS)
    (folder / "etc/os-release").write_text("ID=test\n")
    (folder / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    shutil.copytree("/etc/ld.so.conf.d", folder / "etc/ld.so.conf.d")
    (folder / "etc/ld.so.conf").write_text("/opt/python/lib\ninclude /etc/ld.so.conf.d/*.conf\n")
    # beneath /opt, since services do not see people's folders, where they may lie out here
    mounts = {ROOT: "/opt/checkout", Path(sysconfig.get_path("purelib")): "/opt/packages"}
    mounts[Path(sys.base_prefix)] = "/opt/python"
    for entry in (Path("/") / name for name in _IN_ROOT):
        if entry.is_symlink():
            (folder / entry.name).symlink_to(entry.readlink())
        elif entry.is_dir():
            mounts[entry] = str(entry)
    (folder / "mounts").write_text("".join(f"{s}\t{t}\n" for s, t in mounts.items()))
    _write_environment(folder / "opt/imlmesh")


def _write_environment(folder: Path) -> None:
    """A venv of this Python, below /opt, that sees our packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    place = folder / "lib" / version / "site-packages"
    place.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(f"/opt/python/bin/{version}")
    (folder / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
    lines = ["import site; site.addsitedir('/opt/packages')"]
    lines += [f"/opt/checkout/{room}" for room in _ROOMS]
    (place / "ours.pth").write_text("\n".join(lines) + "\n")


def _control_group() -> Path:
    """A new control group beneath our own, so that the machine's are all beneath it."""
    mounts = Path("/proc/self/mounts").read_text()
    found = re.search(r"(?m)^\S+ (\S+) cgroup2 ", mounts)
    assert found, "no control groups of version 2"
    own = re.search(r"(?m)^0::/(.*)$", Path("/proc/self/cgroup").read_text())
    above = Path(found[1]) / (own[1] if own else "")
    return Path(tempfile.mkdtemp(prefix="imlmesh-test-", dir=above))


def _remove_group(group: Path) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while group.exists() and time.monotonic() < deadline_s:
        for below in [*sorted(group.rglob("*/"), reverse=True), group]:
            with contextlib.suppress(OSError):
                below.rmdir()
        time.sleep(0.05)
    assert not group.exists()
