"""The locks of requirements/: hashed, and holding all that pyproject.toml asks for.

Whether their wheels exist is asked of a registry, in tests/integration.
"""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from source_tree import ROOT

LOCKS = ("runtime.txt", "dev.txt", "uv.txt", "peers.txt", "esphome.txt")


def entries(lock: str) -> list[str]:
    """The lock's requirements, each with its hashes."""
    text = (ROOT / "requirements" / lock).read_text()
    return [entry for entry in re.split(r"\n(?=\S)", text.strip()) if not entry.startswith("#")]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_is_hashed(lock: str) -> None:
    assert entries(lock)
    loose = [entry.split()[0] for entry in entries(lock) if "--hash=sha256:" not in entry]
    assert not loose, "\n".join(loose)


def test_the_locks_hold_what_the_project_asks_for() -> None:
    """After a change of dependencies: make lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    base = project["project"]["dependencies"]
    extras = project["project"]["optional-dependencies"].values()
    hardware = [wanted for extra in extras for wanted in extra if not wanted.startswith("imlmesh[")]
    dev = [
        *base,
        *hardware,
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
    ]
    stale = []
    for lock, wanted in (("runtime.txt", base), ("dev.txt", dev)):
        pinned = dict(entry.split()[0].split("==") for entry in entries(lock))
        for requirement in map(Requirement, wanted):
            version = pinned.get(canonicalize_name(requirement.name))
            if version is None or version not in requirement.specifier:
                stale.append(f"{lock}: {requirement}, pinned {version}")
    assert not stale, "\n".join(stale)


def test_a_node_gets_nothing_of_development() -> None:
    pinned = {entry.split("==")[0] for entry in entries("runtime.txt")}
    assert pinned.isdisjoint({"pytest", "mypy", "ruff", "hatchling", "uv", "setuptools"})
