"""What the contract tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iot_rig import IotRig
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


@pytest.fixture
def make_iot(tmp_path: Path) -> Iterator[Callable[..., IotRig]]:
    """Makes drivers; keyword arguments replace fields of the site."""
    made: list[IotRig] = []

    def make(**site: Any) -> IotRig:
        made.append(IotRig(tmp_path, **site))
        return made[-1]

    yield make
    for rig in made:
        rig.driver.close()


@pytest.fixture
def iot(make_iot: Callable[..., IotRig]) -> IotRig:
    """A driver over twins that stand still."""
    return make_iot()
