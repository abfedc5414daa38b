"""One scenario done once: its runs, what was measured, and what must not have happened.

The one rule: a run is judged when it has ended and by what it left in files. A person answers meanwhile,
as one would: yes at a gate, and of what nobody knows that it happened. Deliberately absent: faults.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from imlmesh.chaos.field import Field
from imlmesh.chaos.plans import Work, count, doubted, lines_of, unexplained
from imlmesh.client import path_of
from imlmesh_orchestrator.core import changes as c
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.states import Liveness

_ANSWER_EVERY_S = 0.1


@dataclass(slots=True)
class Measured:
    """Seconds, None for what a scenario does not have; `lost` and `doubled` are effects, `broken` is what
    must hold and did not, `asked` how many actions a person was asked about, `left_out` why the
    scenario was not done. `recoveries_s` are those of each kill where there are many. It was not `played` when the mesh was not whole before."""

    detection_s: float | None = None
    reroute_s: float | None = None
    recovery_s: float | None = None
    recoveries_s: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    asked: int = 0
    notes: list[str] = field(default_factory=list)
    left_out: str = ""
    played: bool = True

    @property
    def times(self) -> int:
        """How often something was done to the mesh."""
        return len(self.recoveries_s) or int(self.played)

    def all_of(self, name: str) -> list[float]:
        """All measurements of detection, reroute or recovery."""
        one: float | None = getattr(self, f"{name}_s")
        many = self.recoveries_s if name == "recovery" else []
        return many or ([] if one is None else [one])


class Trial:
    """What a scenario works with. `result` is filled on the way; `judge` adds what became of the runs.

    `dice` draw all that is random in it. `busy_s` is how long the scenario of that name keeps the CPU busy.
    """

    def __init__(
        self, place: Field, dice: random.Random, *, person: bool = True, busy_s: float = 0.0
    ) -> None:
        self.dice = dice
        self.busy_s = busy_s
        self.field = place
        self.result = Measured()
        self.works: dict[str, Work] = {}
        self.began_s = time.monotonic()
        self._person = asyncio.get_running_loop().create_task(self._answer()) if person else None

    async def submit(self, work: Work) -> str:
        """Start a run of it, as soon as an orchestrator takes it; its id."""
        text = {"text": work.plan.to_json()}
        async with asyncio.timeout(limits.CHAOS_SEEN_S):
            while True:
                found = await self.field.ask("runs", text)
                if found is not None:
                    break
                await asyncio.sleep(_ANSWER_EVERY_S)
        self.works[found["run"]] = work
        return str(found["run"])

    def must(self, held: bool, otherwise: str) -> None:
        """Note what is broken when it does not hold."""
        if not held:
            self.result.broken.append(otherwise)

    async def holds(self, node: str, beginning: str = "") -> None:
        """Returns when the node has accepted an action whose name begins so."""

        def accepted(change: c.Change) -> bool:
            if not isinstance(change, c.DispatchAccepted):
                return False
            _, action, where, _ = split_dispatch(change.dispatch)
            return change.run in self.works and where == node and action.startswith(beginning)

        if await self.field.watcher.first(accepted, self.began_s) is None:
            raise MeshError("process.failed", f"{node} never got an action {beginning}".strip())

    async def marked(self, run: str) -> None:
        """Returns when an effect of the run has begun."""
        async with asyncio.timeout(limits.CHAOS_SEEN_S):
            while True:
                if lines_of(run, self.field.files()):
                    return
                await asyncio.sleep(_ANSWER_EVERY_S)

    async def lost(self, node: str, at_s: float) -> None:
        """Measure when it is called lost."""
        self.result.detection_s = await self.field.seen_as(node, Liveness.LOST, at_s)
        self.must(self.result.detection_s is not None, f"{node} was never called lost")

    async def moved(self, at_s: float) -> None:
        """Measure when its work goes elsewhere."""

        def again(change: c.Change) -> bool:
            if not isinstance(change, c.DispatchPlanned) or change.run not in self.works:
                return False
            return change.attempt > 1 and change.action.startswith("move-")

        self.result.reroute_s = await self.field.watcher.first(again, at_s)
        self.must(self.result.reroute_s is not None, "no work was moved")

    async def back(self, at_s: float, *nodes: str) -> None:
        """Measure when all of them are online again."""
        for node in nodes:
            took_s = await self.field.seen_as(node, Liveness.ONLINE, at_s)
            if took_s is None:
                self.must(False, f"{node} did not come back")
            else:
                self.result.recovery_s = max(self.result.recovery_s or 0.0, took_s)

    async def goes_on(
        self,
        at_s: float,
        wanted: type[c.RunChange],
        nodes: Iterable[str] = ("",),
        of: str | None = None,
    ) -> None:
        """Measure when such a change is there again, of each of `nodes` and of one run when given."""

        def by(node: str) -> Callable[[c.Change], bool]:
            def is_it(change: c.Change) -> bool:
                if not isinstance(change, wanted) or of not in (None, change.run):
                    return False
                return node in ("", split_dispatch(getattr(change, "dispatch", ""))[2])

            return is_it

        for node in nodes:
            took_s = await self.field.watcher.first(by(node), at_s)
            if took_s is None:
                self.must(False, f"nothing went on {node}".strip())
            else:
                self.result.recovery_s = max(self.result.recovery_s or 0.0, took_s)

    def verdicts(self, at_s: float, *wanted: Liveness) -> list[str]:
        """`node liveness` of each such verdict since then."""
        return [
            f"{seen.change.node} {seen.change.liveness}"
            for seen in self.field.watcher.since(at_s)
            if isinstance(seen.change, c.LivenessChanged) and seen.change.liveness in wanted
        ]

    def most_attempts(self, run: str) -> int:
        """Of all actions of a run that move, how often the most unlucky one was sent somewhere."""
        return max(
            seen.change.attempt
            for seen in self.field.watcher.since(self.began_s)
            if isinstance(seen.change, c.DispatchPlanned) and seen.change.run == run
        )

    def nobody_lost(self, at_s: float, *but: str) -> None:
        """Nobody else may have been called lost since then."""
        false = [v for v in self.verdicts(at_s, Liveness.LOST) if v.split()[0] not in but]
        self.must(not false, f"called lost: {', '.join(false)}")

    async def ended(self) -> None:
        """Returns when all runs have ended, or the time is over, which `judge` then tells."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.CHAOS_RUN_S):
                while True:
                    if not set(self.works) - self._ended():
                        return
                    await asyncio.sleep(_ANSWER_EVERY_S)

    async def judge(self) -> Measured:
        """Count the effects of all runs."""
        await self.ended()
        await self.close()
        told = [seen.change for seen in self.field.watcher.since(self.began_s)]
        for run, work in self.works.items():
            found = await self.field.until(path_of("runs", run), lambda _: True)
            if found["ended_at_ms"] is None:
                self.must(False, f"{run} did not end: {found['state']}, {found['waits_for']}")
            own = [
                change for change in told if isinstance(change, c.RunChange) and change.run == run
            ]
            asked = {name for change in own if (name := doubted(work, change)) is not None}
            self.result.asked += len(asked)
            counted = count(work, found, self.field.files(), asked)
            self.result.lost += counted.lost
            self.result.doubled += counted.doubled
            if work.completes and (silently := unexplained(work, found, asked)):
                text = f"{len(silently)} did not complete and nobody was asked: {silently[0]}"
                self.must(False, f"{run}: {text}")
            if work.ending is not None:
                states = {unit["id"]: unit["state"] for unit in found["actions"]}
                ending = found["state"], states
                self.must(ending == work.ending, f"{run} ended otherwise: {ending}")
        return self.result

    async def close(self) -> None:
        """The person goes."""
        if self._person is not None:
            self._person.cancel()
            await asyncio.wait([self._person])
            self._person = None

    def _ended(self) -> set[str]:
        since = self.field.watcher.since(self.began_s)
        return {seen.change.run for seen in since if isinstance(seen.change, c.RunEnded)}

    async def _answer(self) -> None:
        while True:
            await asyncio.sleep(_ANSWER_EVERY_S)
            # refused: somebody, or something, was quicker
            with contextlib.suppress(MeshError):
                found = await self.field.ask("approvals?state=pending")
                for each in (found or {"approvals": []})["approvals"]:
                    option = "approve" if each["kind"] == "gate" else "done"
                    path = path_of("approvals", each["approval"], "answer")
                    await self.field.ask(path, {"option": option})
