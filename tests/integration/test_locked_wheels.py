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


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("lock", ["dev", "uv"])
def test_what_set_up_installs_on_a_pi_of_debian_12_has_binaries_too(
    uv: Uv, tmp_path: Path, lock: str
) -> None:
    done = uv(
        *("pip", "install", "--dry-run", "--require-hashes", "--only-binary", ":all:"),
        *("--python-platform", "aarch64-manylinux_2_36", "--python-version", "3.11"),
        *("--target", str(tmp_path), "-r", f"requirements/{lock}.txt"),
    )
    assert done.returncode == 0, done.stderr
    assert {"dev": "+ lgpio==", "uv": "+ uv=="}[lock] in done.stderr
