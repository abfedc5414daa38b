"""Set-up's way to Debian packages: nothing that it installs starts, and what was there is there again."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: writes down what a package would meet that wants to start its service
APT = """\
#!/bin/sh
echo "apt-get $*" >>"$SAID"
case " $* " in *" install "*)
    /usr/sbin/policy-rc.d mosquitto start; echo "policy $?" >>"$SAID"
    exit {code}
esac
"""
PROGRAMS = {
    "dpkg": "#!/bin/sh\necho /etc/init.d/mosquitto\n",
    "update-rc.d": '#!/bin/sh\necho "update-rc.d $*" >>"$SAID"\n',
}


class Machine:
    """A machine with these programs, whose /usr/sbin is a folder of the test."""

    def __init__(self, folder: Path, apt_code: int = 0) -> None:
        self.sbin, self.bin, self.log = folder / "sbin", folder / "bin", folder / "said"
        self.sbin.mkdir()
        self.bin.mkdir()
        self.policy = self.sbin / "policy-rc.d"
        self.program("apt-get", APT.format(code=apt_code))
        for name, text in PROGRAMS.items():
            self.program(name, text)

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def install(self) -> subprocess.CompletedProcess[str]:
        """`setup/debian.sh mosquitto` there."""
        there = f'mount --bind "{self.sbin}" /usr/sbin && exec bash setup/debian.sh mosquitto'
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", there],
            cwd=ROOT,
            env={"PATH": f"{self.bin}:/usr/bin:/bin", "SAID": str(self.log)},
            capture_output=True,
            text=True,
            check=False,
        )

    def said(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.mark.usefixtures("as_root", "namespaces_allowed")
@pytest.mark.parametrize("code", [0, 100])
@pytest.mark.parametrize("before", [None, "#!/bin/sh\nexit 0\n"])
def test_no_service_starts_and_the_old_policy_comes_back(
    tmp_path: Path, code: int, before: str | None
) -> None:
    machine = Machine(tmp_path, code)
    if before is not None:
        machine.policy.write_text(before)
    done = machine.install()
    assert (done.returncode == 0) == (code == 0), done.stderr
    update, install, *rest = machine.said()
    assert "update" in update
    assert install.endswith("install -y --no-install-recommends mosquitto")
    # 101: what asks may not start anything
    assert rest == ["policy 101", *(["update-rc.d mosquitto disable"] if code == 0 else [])]
    left = {path.name: path.read_text() for path in machine.sbin.iterdir()}
    assert left == ({} if before is None else {"policy-rc.d": before})
    if code:
        assert "try: apt-get update && apt-get install mosquitto" in done.stderr


@pytest.mark.usefixtures("as_root", "namespaces_allowed")
def test_what_a_killed_set_up_left_behind_is_put_right(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    old = "#!/bin/sh\nexit 0\n"
    machine.policy.with_name("policy-rc.d.before-imlmesh").write_text(old)
    machine.policy.write_text(
        "#!/bin/sh\n# imlmesh set-up: no service starts during this install\nexit 101\n"
    )
    assert machine.install().returncode == 0
    assert [path.name for path in machine.sbin.iterdir()] == ["policy-rc.d"]
    assert machine.policy.read_text() == old


@pytest.mark.usefixtures("as_root", "namespaces_allowed")
def test_without_the_right_nothing_is_touched_and_nothing_asked(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.program("id", "#!/bin/sh\necho 1000\n")
    machine.program("sudo", '#!/bin/sh\necho "sudo $*" >>"$SAID"\nexit 1\n')
    done = machine.install()
    assert done.returncode == 1
    assert "no right to install; run: sudo apt-get install mosquitto" in done.stderr
    # -n: it never asks for a password
    assert machine.said() == ["sudo -n true"]
    assert list(machine.sbin.iterdir()) == []
