"""What the contract tests share."""

from pathlib import Path

import pytest

from rooted import Rooted


@pytest.fixture
def fs(tmp_path: Path) -> Rooted:
    return Rooted(tmp_path)
