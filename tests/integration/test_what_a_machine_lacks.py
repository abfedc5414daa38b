"""A program that set-up installs and that is missing skips tests on a person's machine, and fails them on a
build machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: each test stands for those that need the same; with the programs that it has, and a word of the reason
NEEDS = {
    "clients": ("tests/contract/test_brokers.py", "own_clients and embedded", (), "mosquitto_sub"),
    "a machine": (
        "tests/integration/test_booted_services.py",
        "",
        ("systemd-analyze", "systemctl", "systemd-sysusers"),
        "unshare",
    ),
}


def outcome(folder: Path, what: str, ci: str) -> str:
    """The end of what pytest says of those tests, on a machine that has few programs."""
    file, word, programs, _ = NEEDS[what]
    for program in programs:
        found = shutil.which(program)
        assert found is not None
        (folder / program).symlink_to(found)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-x",
            "-rs",
            file,
            "-k",
            word,
        ],
        cwd=ROOT,
        env={**environment, "PATH": str(folder), "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.mosquitto
@pytest.mark.usefixtures("systemd_tools")
@pytest.mark.parametrize("what", sorted(NEEDS))
def test_a_missing_program_fails_a_build_machine_alone(what: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    person, build = outcome(here, what, ""), outcome(there, what, "true")
    missing = NEEDS[what][3]
    assert "skipped" in person.splitlines()[-1]
    assert missing in person
    assert "error" in build.splitlines()[-1]
    assert missing in build
    assert "and CI=true requires it" in build
