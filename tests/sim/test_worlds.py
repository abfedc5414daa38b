"""Many seeded worlds; a seed that fails tells its story, made small.

`make sim WORLDS=100000 FROM=2001` goes on where an earlier run ended.
"""

import hashlib
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from asked import asked
from script import GONE, WEIGHTS, script_of
from shrinking import report
from world import World

FIRST = asked("FROM", 1)
WORLDS = asked("WORLDS", 2_000)
# worlds a test, so that a failing range is small and several processes can share them
BATCH = 50
#: what the network, the power and the disks do, beside the faults of scripts
BY_CHANCE = (
    "a message lost",
    "a message repeated",
    "a message overtaken",
    "power cut before a commit",
    "power cut after a commit",
    "a commit failed: journal",
    "a commit failed: store",
    "half: deaf",
    "half: mute",
    "a result in chunks",
    "a run by permit",
    "killed along",
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What cores of dying processes log is in the story."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("first", range(FIRST, FIRST + WORLDS, BATCH))
def test_no_invariant_breaks_and_every_run_ends(first: int) -> None:
    for seed in range(first, min(first + BATCH, FIRST + WORLDS)):
        world = World(seed)
        try:
            world.run()
        except Exception:
            pytest.fail(f"seed {seed}: {report(script_of(seed))}", pytrace=False)
        assert world.orchestrator.idle()


@pytest.mark.timeout(0)
def test_every_kind_of_fault_happens() -> None:
    """Within a few hundred worlds, and each has work to do while it happens."""
    happened: Counter[str] = Counter()
    results = 0
    for seed in range(1, 151):
        world = World(seed)
        world.run()
        happened += world.faults
        results += sum(
            type(change).__name__ == "ResultTaken" for change in world.orchestrator.stored
        )
    print(", ".join(f"{kind} {count}" for kind, count in sorted(happened.items())))
    missing = {*WEIGHTS, *GONE, *BY_CHANCE} - set(happened)
    assert not missing
    assert min(happened.values()) >= 5, happened
    assert results > 1_000


@pytest.mark.timeout(30)
def test_a_permit_whose_time_is_over_is_not_brought_again_and_again() -> None:
    """An orchestrator that starts after the end of a permit hears its node before its own timer."""
    world = World(4235)
    world.run()
    assert world.orchestrator.idle()


def _story(seeds: range) -> str:
    told = hashlib.sha256()
    for seed in seeds:
        world = World(seed)
        world.run()
        told.update("\n".join(world.story).encode())
        told.update(str(sorted(world.faults.items())).encode())
    return told.hexdigest()


def test_a_seed_tells_the_same_story_every_time() -> None:
    """Also in another process, where sets have another order."""
    ask = "import test_worlds; print(test_worlds._story(range(1, 21)))"
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=Path(__file__).parent,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert _story(range(1, 21)) == there.stdout.strip()
    assert _story(range(21, 41)) != there.stdout.strip()


@pytest.mark.parametrize("text", ["0", "-5", "1e5", "many"])
def test_a_number_that_would_run_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("WORLDS", text)
    with pytest.raises(pytest.UsageError, match=f"WORLDS={text}: a whole number"):
        asked("WORLDS", 2_000)
    monkeypatch.setenv("WORLDS", "")
    assert asked("WORLDS", 2_000) == 2_000
