"""`make test` fails when nothing ran, unless a word of ARGS may have fitted nothing."""

import os
import subprocess

import pytest

from source_tree import ROOT


def ended_with(code: int, args: str) -> bool:
    """Whether `make test` is content with a pytest that ends so."""
    # what the make above us was told is not for this one
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-o", "setup", "test", f"PYTEST=sh -c 'exit {code}' pytest", f"ARGS={args}"]
    return (
        subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize("args", ["", " ", "-k lease", "-k 'lease and not \"lost\"'"])
def test_nothing_to_run_is_fine_for_a_word_alone(args: str) -> None:
    assert ended_with(0, args)
    assert not ended_with(1, args)
    assert ended_with(5, args) == bool(args.strip())
