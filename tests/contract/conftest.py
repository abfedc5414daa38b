"""What the contract tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rooted import Rooted
from shell import Shell


@pytest.fixture
def fs(tmp_path: Path) -> Rooted:
    return Rooted(tmp_path)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.driver.close()
