"""What people ask of the core: each request becomes an event, and its answer is awaited.

The one rule: an answer comes when what it tells is stored. Deliberately absent: deciding, and looking
things up; that is the core's and the views'.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from imlmesh_orchestrator.ca.certificates import Issued
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.outbound import Outbound
from imlmesh_orchestrator.store.lifecycle import Lifecycle
from imlmesh_orchestrator.store.projections import Source
from imlmesh_protocol.errors import StoreError
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.states import Admission
from imlmesh_protocol.tick import Tick
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.engine import Engine


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Who wants in: id, alias, raw public key of its identity, ceiling of its rights."""

    node: str
    alias: str
    identity: bytes
    profile: str


def starts_at_ms(plan: Plan) -> int:
    """`not_before` of a plan in ms of mesh time; 0 without."""
    if plan.not_before is None:
        return 0
    return max(0, round(datetime.fromisoformat(plan.not_before.upper()).timestamp() * 1_000))


class Answering:
    """The asking side of a shell, which has all that this needs."""

    clock: Clock
    epoch: int
    lifecycle: Lifecycle
    engine: Engine[e.Event | Tick, c.Change, Any]
    _outbound: Outbound
    _requests: int

    async def submit(self, plan: Plan, digest: str, by: str, source: Source | None = None) -> str:
        """The id of a new run of a validated plan, once it is stored; MeshError when refused."""
        run, _ = await self.submit_from(plan, digest, by, source)
        return run

    async def submit_from(
        self,
        plan: Plan,
        digest: str,
        by: str,
        source: Source | None = None,
        *,
        priority: int = 0,
        retried: e.Retried | None = None,
    ) -> tuple[str, int]:
        """As `submit`, with the seq after which everything about a new run comes.

        `retried` is what the run takes over from the ended one that it retries.
        """
        cause = self._next_cause()
        if source is not None:
            self.lifecycle.expect(cause, source)
        event = e.PlanSubmitted(
            self.clock.now_ms(),
            cause,
            secrets.randbits(64),
            plan,
            digest,
            by,
            priority,
            starts_at_ms(plan),
            retried,
        )
        try:
            return await self._ask(event)
        finally:
            self.lifecycle.forget(cause)

    async def cancel(self, run: str, by: str) -> str:
        """The state of the run, now that cancelling it is stored."""
        event = e.CancelAsked(self.clock.now_ms(), self._next_cause(), run, by)
        return str((await self._ask(event))[0])

    async def pause(self, run: str, by: str) -> str:
        """Nothing new starts in the run until it is resumed; its state, now that this is stored."""
        event = e.PauseAsked(self.clock.now_ms(), self._next_cause(), run, by)
        return str((await self._ask(event))[0])

    async def resume(self, run: str, by: str) -> str:
        """The paused run goes on; its state, now that this is stored."""
        event = e.ResumeAsked(self.clock.now_ms(), self._next_cause(), run, by)
        return str((await self._ask(event))[0])

    async def set_memory(self, session: str, key: str, value: Any, by: str) -> None:
        """Write a value of a session's memory; `memory.too_large` when it can never fit."""
        await self._ask(
            e.MemorySet(self.clock.now_ms(), self._next_cause(), session, key, value, by)
        )

    async def delete_memory(self, session: str, key: str, by: str) -> None:
        """Take a value away; `memory.not_found`."""
        await self._ask(
            e.MemoryDeleteAsked(self.clock.now_ms(), self._next_cause(), session, key, by)
        )

    async def answer_approval(self, approval: str, option: str, by: str) -> None:
        """A person's choice, stored; `approval.closed`, `.superseded`, `.option` when it does not count."""
        event = e.AnswerGiven(self.clock.now_ms(), self._next_cause(), approval, option, by)
        await self._ask(event)

    async def acknowledge(self, by: str, reason: str) -> int:
        """Go on although the ledger is doubted; how many doubts that ends. `ledger.undoubted`."""
        event = e.AcknowledgementGiven(self.clock.now_ms(), self._next_cause(), by, reason)
        return int((await self._ask(event))[0])

    async def explain_silence(self, by: str, reason: str) -> int:
        """The nodes that fell silent together are gone; how many. `verdicts.not_frozen`."""
        event = e.SilenceExplained(self.clock.now_ms(), self._next_cause(), by, reason)
        return int((await self._ask(event))[0])

    async def enrol(self, newcomer: Newcomer, issued: Issued, by: str) -> None:
        """Let a node in with the certificate that was made for it; `node.exists`, `node.too_many`."""
        event = e.EnrolAsked(
            self.clock.now_ms(),
            self._next_cause(),
            newcomer.node,
            newcomer.alias,
            newcomer.identity,
            newcomer.profile,
            by,
            str(issued.serial),
            issued.not_after_ms,
        )
        await self._ask(event)

    async def ask(self, make: Callable[[int, str], e.Event]) -> Any:
        """What the core answers to the event that `make(at_ms, cause)` is, once that is stored."""
        return (await self._ask(make(self.clock.now_ms(), self._next_cause())))[0]

    async def set_group(self, group: str, nodes: tuple[str, ...]) -> None:
        """From now on the group has exactly these node ids; none removes it."""
        await self._ask(e.GroupSet(self.clock.now_ms(), self._next_cause(), group, nodes))

    async def set_admission(
        self, node: str, admission: Admission, reason: str, by: str, for_ms: int
    ) -> None:
        """Decide whether a node (id) may get work, stored; `for_ms` 0 is until somebody changes it.

        InputError `node.not_found`, `node.admission`.
        """
        now_ms, cause = self.clock.now_ms(), self._next_cause()
        await self._ask(e.AdmissionAsked(now_ms, cause, node, admission, reason, by, for_ms))

    async def set_labels(self, node: str, labels: Mapping[str, Any]) -> None:
        """Change labels of one node; None removes one."""
        await self._ask(e.LabelsSet(self.clock.now_ms(), self._next_cause(), node, labels))

    async def _ask(self, event: e.Event) -> tuple[Any, int]:
        if self.engine.failed.done():
            raise StoreError("store.failed", "the orchestrator is ending")
        if self.lifecycle.waits:
            # else it would be decided hours later, when nobody waits for it any more
            raise StoreError("store.full", "a commit waits for room on the disk of the stores")
        future = self._outbound.expect(event.cause)
        self.engine.post(event)
        try:
            return await future
        finally:
            self._outbound.forget(event.cause)

    def _next_cause(self) -> str:
        self._requests += 1
        return f"q-{self.epoch}-{self._requests}"
