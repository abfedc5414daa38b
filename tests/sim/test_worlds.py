"""Many seeded worlds; a seed that fails tells its story."""

import os

import pytest

from world import World

FIRST = int(os.environ.get("FROM", "1"))
WORLDS = int(os.environ.get("WORLDS", "200"))
# worlds a test, so that a failing range is small and several processes can share them
BATCH = 25


@pytest.mark.timeout(0)
@pytest.mark.parametrize("first", range(FIRST, FIRST + WORLDS, BATCH))
def test_no_invariant_breaks_and_every_run_ends(first: int) -> None:
    for seed in range(first, min(first + BATCH, FIRST + WORLDS)):
        world = World(seed)
        try:
            world.run()
        except Exception as exc:
            story = "\n".join(world.story[-120:])
            pytest.fail(f"seed {seed}: {exc}\n{story}")
        assert world.orchestrator.idle()
        assert world.story
