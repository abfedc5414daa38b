"""Permits in worlds: random ones, and what must hold of every run that a node begins by itself.

The one rule: what is asked here is asked of the journal and of effects, in the world's own time. A script
has permits by a die of their own, so that worlds without them stay what they were.
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imlmesh_node.core import changes as nc
from imlmesh_node.core.state import AgentState
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import permit_changes as p
from imlmesh_orchestrator.core import permit_events as pe
from imlmesh_protocol import limits
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.permits import PermitAction, Rule, split_permit_run
from imlmesh_protocol.states import Effect

if TYPE_CHECKING:
    from checks import Checks
    from world import World

_EFFECTS = {
    "look": Effect.PURE,
    "write": Effect.IDEMPOTENT,
    "send": Effect.ONCE,
    "push": Effect.PHYSICAL,
}


@dataclass(frozen=True, slots=True)
class Wish:
    """A permit that somebody wants at `at_ms` after the first plan; `actions` as data of a plan."""

    at_ms: int
    node: str
    rule: Rule
    budget: int
    for_ms: int
    actions: tuple[dict[str, Any], ...]
    #: when it is withdrawn, after it was granted; 0 for never
    withdrawn_ms: int = 0

    def asked(self) -> dict[str, Any]:
        """The fields of the event."""
        document = {
            "protocol_version": "2.0",
            "plan_id": "permitted",
            "execution_mode": "parallel",
            "actions": [dict(action) for action in self.actions],
        }
        made = tuple(_action(action) for action in self.actions)
        return {
            "mesh": "sim",
            "node": self.node,
            "plan": Plan.model_validate(document),
            "digest": "d",
            "actions": made,
            "rule": self.rule,
            "budget": self.budget,
            "for_ms": self.for_ms,
            "by": "eve",
        }


def random_wishes(seed: int, nodes: tuple[str, ...]) -> tuple[Wish, ...]:
    """None for most seeds, else up to three."""
    dice = random.Random(f"{seed}/permits")
    if dice.random() < 0.6:
        return ()
    return tuple(_wish(dice, nodes) for _ in range(dice.randint(1, 3)))


def _wish(dice: random.Random, nodes: tuple[str, ...]) -> Wish:
    rules = (
        Rule("every", dice.choice((1_000, 4_000))),
        Rule("every", 1_000),
        Rule("cut_off", dice.choice((0, 8_000))),
        Rule("on", source="pin", value=1),
    )
    actions: list[dict[str, Any]] = []
    for index in range(dice.randint(1, 4)):
        do = dice.choice(tuple(_EFFECTS))
        earlier = [action["id"] for action in actions]
        params = {"ms": dice.choice((0, 50, 3_000)), "fails": dice.choice((0, 0, 0, 1))}
        actions.append(
            {
                "id": f"b{index}",
                "module": "toy",
                "action": do,
                "depends_on": dice.sample(earlier, dice.randint(0, min(1, len(earlier)))),
                "on_error": dice.choice(("abort", "continue", "skip")),
                "timeout": dice.choice((2, 20)),
                "params": params,
            }
        )
    return Wish(
        dice.randint(0, 3_000),
        dice.choice(nodes),
        dice.choice(rules),
        dice.choice((1, 2, 5)),
        dice.choice((12_000, 3_600_000)),
        tuple(actions),
        dice.choice((0, 0, 1_000, 15_000)),
    )


def _action(action: dict[str, Any]) -> PermitAction:
    claims = ("pin:17",) if action["action"] == "push" else ()
    return PermitAction(
        action["id"],
        action["module"],
        action["action"],
        action["params"],
        _EFFECTS[action["action"]],
        action.get("timeout", 20) * 1_000,
        tuple(action.get("depends_on", ())),
        action.get("on_error", "abort"),
        claims=claims,
    )


def ask(world: "World", wish: Wish) -> None:
    """Somebody asks until there is an orchestrator to hear it; who is not there gets none."""
    own = world.orchestrator
    if not own.alive or own.machine.asleep:
        world.at(world.now_ms + 500, lambda: ask(world, wish))
        return
    own.post(pe.PermitAsked, dice=world.permit_dice.getrandbits(64), **wish.asked())
    if wish.withdrawn_ms and own.core.state.permits:
        permit = list(own.core.state.permits)[-1]
        world.at(world.now_ms + wish.withdrawn_ms, lambda: withdraw(world, permit))


def withdraw(world: "World", permit: str) -> None:
    """A person takes it back, if there is somebody to hear it."""
    world.orchestrator.post(pe.PermitWithdrawAsked, permit=permit, by="eve")


class PermitChecks:
    """Breaches are told to `checks`."""

    def __init__(self, world: "World", checks: "Checks") -> None:
        self._world = world
        self._checks = checks
        self._granted: dict[str, p.PermitGranted] = {}
        #: runs that a node began, by (permit, number), and how often each was reported
        self._begun: dict[tuple[str, int], str] = {}
        self._reported: Counter[tuple[str, int]] = Counter()
        #: permits whose reports may be evidence alone, or lie in a journal that is lost
        self._excused: set[str] = set()
        #: when each node was last surely in contact, in the world's time
        self._contact_ms: dict[str, int] = {}

    def contact(self, node: str, at_ms: int) -> None:
        """A beat that it sent then was answered, or a session was opened."""
        self._contact_ms[node] = max(at_ms, self._contact_ms.get(node, 0))

    def starts(self, node: str) -> None:
        """Who starts counts from now."""
        self.contact(node, self._world.now_ms)

    def committed(self, change: c.Change) -> None:
        if isinstance(change, p.PermitGranted):
            self._granted[change.permit] = change
        elif isinstance(change, p.PermitRunReported):
            place = (change.permit, change.number)
            self._reported[place] += 1
            if self._reported[place] > 1:
                self._checks.breach(f"{change.of} is reported {self._reported[place]} times")
            if self._begun.get(place) != change.node:
                self._checks.breach(f"{change.of} is reported, and {change.node} never began it")

    def excuse(self, node: str) -> None:
        """Its journal is lost, or its word does not count."""
        self._excused |= {name for name, one in self._granted.items() if one.node == node}

    def journalled(self, node: str, change: Any, stored: AgentState) -> None:
        """`stored`: the journal before this change."""
        if isinstance(change, nc.MeshTimeNoted):
            self.contact(
                node, self._world.now_ms
            )  # whoever tells the time, or brings a permit, is there
        if not isinstance(change, nc.PermitRunBegun):
            return
        place, now_ms = (change.permit, change.number), self._world.now_ms
        granted = self._granted.get(change.permit)
        if granted is None or granted.node != node:
            self._checks.breach(f"{node} runs {change.permit}, which it was never given")
            return
        self._world.happened("a run by permit")
        if place in self._begun or change.number > granted.budget:
            self._checks.breach(f"{node} runs {change.permit} beyond its budget: {change.number}")
        self._begun[place] = node
        silent_ms = now_ms - self._contact_ms.get(node, 0)
        if silent_ms < limits.LAN.lost_ms:
            self._checks.breach(f"{node} runs {change.permit} while in contact, {silent_ms} ms ago")
        if change.at_ms >= granted.to_ms:
            self._checks.breach(f"{node} runs {change.permit} after its time")
        held = stored.permits.get(change.permit)
        if held is None or held.dropped:
            self._checks.breach(f"{node} runs {change.permit}, which it dropped or never stored")
        if stored.quarantined:
            self._checks.breach(f"{node} is in quarantine and runs {change.permit}")

    def driver_starts(self, node: str, dispatch: str, stored: AgentState) -> None:
        """Whether the budget was taken, durably, before the effect."""
        run, _, _, _ = split_dispatch(dispatch)
        found = split_permit_run(run)
        record = stored.permits.get(found[0]) if found else None
        if found is None or record is None or record.used < found[1]:
            self._checks.breach(f"{dispatch} starts on {node} before its run is counted")

    def waits(self) -> bool:
        """Whether a node still has to end or to tell of a run."""
        return bool(self._missing()) or any(self._open())

    def unfinished(self) -> list[str]:
        """What is wrong when all is over."""
        missing = [
            f"{permit}-{number} of {self._begun[permit, number]} was never reported"
            for permit, number in self._missing()
        ]
        return missing + [f"{name} is still open on {node}" for node, name in self._open()]

    def _missing(self) -> list[tuple[str, int]]:
        return [
            place
            for place in self._begun
            if place not in self._reported
            and place[0] not in self._excused
            and self._begun[place] not in self._world.gone
        ]

    def _open(self) -> Iterable[tuple[str, str]]:
        for node in self._world.nodes.values():
            if node.name in self._world.gone:
                continue
            for record in node.stored.permits.values():
                if record.open:
                    yield node.name, record.permit.id


def unit_of(dispatch: str) -> tuple[str, str] | None:
    """(run, action) of a dispatch of a run by permit."""
    run, action, _, _ = split_dispatch(dispatch)
    return (run, action) if split_permit_run(run) is not None else None


def is_by_permit(change: c.Change) -> bool:
    """Whether it tells of a run that a node began by itself."""
    return isinstance(change, c.RunChange) and split_permit_run(change.run) is not None
