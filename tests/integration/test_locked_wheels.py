"""Every locked runtime package installs from binaries on a Raspberry Pi: nothing is compiled there."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Uv = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("platform", ["aarch64-manylinux_2_28", "x86_64-manylinux_2_28"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_lock_resolves_with_binaries_only(
    uv: Uv, tmp_path: Path, platform: str, python: str
) -> None:
    done = uv(
        *("pip", "install", "--dry-run", "--require-hashes", "--only-binary", ":all:"),
        *("--python-platform", platform, "--python-version", python),
        *("--target", str(tmp_path), "-r", "requirements/runtime.txt"),
    )
    assert done.returncode == 0, done.stderr
    assert "+ cryptography==" in done.stderr
