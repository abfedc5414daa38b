"""What `make sim` was asked for, by variables of the environment."""

import os

import pytest


def asked(name: str, default: int) -> int:
    """A whole number from 1; anything else runs nothing, which must not look like a success."""
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise pytest.UsageError(f"{name}={text}: a whole number from 1 is wanted")
    return int(text)
