"""Worlds in which most nodes fall silent together, the orchestrator is deaf, or stands still.

The usual invariants hold, and besides: nobody is called lost while we cannot hear, and a freeze
ends by itself once everybody is there again.
"""

from dataclasses import replace

import pytest

from faulting import begin
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import LivenessChanged, VerdictsFrozen
from imlmesh_protocol.states import Liveness
from script import FAULTY_MS, Fault, script_of
from sim_orchestrator import NAME
from world import World

WORLDS = 60
BATCH = 15
FAULTS = ("silent", "silent", "deaf", "still", "kill", "drop", "orchestrator")


class SilentWorld(World):
    def __init__(self, seed: int) -> None:
        names = tuple(f"n{i}" for i in range(5))
        super().__init__(replace(script_of(seed), nodes=names, faults=()))
        #: how many verdicts fell while they must not
        self.unjust = 0
        for _ in range(self.dice.randint(1, 4)):
            at_ms = self.now_ms + 3_000 + self.dice.randint(0, FAULTY_MS)
            self.at(at_ms, self._fall_silent)

    def _fall_silent(self) -> None:
        fault, pause_ms = self.dice.choice(FAULTS), self.dice.choice((3_000, 9_000, 25_000))
        later_ms = self.now_ms + pause_ms
        if fault == "silent":
            many = self.dice.sample(sorted(self.nodes), self.dice.randint(3, 5))
            self.tell(f"fault: {', '.join(many)} fall silent for {pause_ms} ms")
            for name in many:
                self.hub.partition(name)
                self.at(later_ms + self.dice.randint(0, 4_000), lambda n=name: self.hub.heal(n))
        elif fault == "deaf":
            self.tell(f"fault: the orchestrator is deaf for {pause_ms} ms")
            before = self._lost()
            self.hub.partition(NAME)
            self.orchestrator.post(e.LoopbackMeasured, hears=False)
            self.at(later_ms, lambda: self._hear(before))
        elif fault == "still":
            self.tell(f"fault: the orchestrator stands still for {pause_ms} ms")
            self.hub.partition(NAME)
            self.orchestrator.still_until_ms = later_ms
            self.at(later_ms, lambda: self.hub.heal(NAME))
        else:
            begin(self, Fault(0, fault, self.dice.choice(sorted(self.nodes)), pause_ms))

    def _lost(self) -> int:
        return sum(
            isinstance(change, LivenessChanged) and change.liveness is Liveness.LOST
            for change in self.orchestrator.stored
        )

    def _hear(self, before: int) -> None:
        if not self.orchestrator.core.state.hears:  # no new session began meanwhile
            self.unjust += self._lost() - before
        self.hub.heal(NAME)
        self.orchestrator.post(e.LoopbackMeasured, hears=True)

    def heal(self) -> None:
        super().heal()
        self.orchestrator.still_until_ms = 0
        self.hub.heal(NAME)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("first", range(1, WORLDS + 1, BATCH))
def test_nobody_is_judged_unjustly_and_every_run_ends(first: int) -> None:
    frozen = 0
    for seed in range(first, first + BATCH):
        world = SilentWorld(seed)
        try:
            world.run()
            world.advance(60_000)
        except Exception as exc:
            story = "\n".join(world.story[-120:])
            pytest.fail(f"seed {seed}: {exc}\n{story}")
        assert world.orchestrator.idle()
        assert world.unjust == 0, f"seed {seed}"
        assert world.orchestrator.core.state.freeze is None, f"seed {seed}"
        frozen += sum(isinstance(c, VerdictsFrozen) for c in world.orchestrator.stored)
    assert frozen > 0
