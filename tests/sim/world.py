"""One simulated mesh: the real cores on the memory link, in virtual time, out of one seed.

A seed decides the plan, the faults of the network, when who is killed, and where in a commit.
After every event the invariants are asked; in the end everything heals and every run must end.
`World.story` holds what happened, a line each, for a seed that fails.
"""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from imlmesh_orchestrator.core import events as e
from imlmesh_protocol import limits
from imlmesh_protocol.states import Admission
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.memory import Faults, MemoryHub, MemoryLink
from plans import GROUP, random_plan
from sim_node import SimNode
from sim_orchestrator import SimOrchestrator

MESH = "sim"
FAULTS = (
    "kill",
    "kill",
    "cut",
    "half",
    "drop",
    "orchestrator",
    "broker",
    "replay",
    "replay",
    "torn",
    "cancel",
    "pause",
    "cordoned",
    "draining",
    "quarantined",
    "quarantined",
    "revoked",
    "misbehave",
)
SETTLE_MS = 900_000  # a healed mesh must be done with everything by then
# and one whose nodes misbehaved, once they were on probation; what waits for a removed one, never
PROBATION_MS = 2 * limits.QUARANTINE_MS
GIVEN_UP_MS = 600_000


class World:
    """`faulty_ms` is how long faults go on; `story` is kept as text."""

    def __init__(self, seed: int, *, nodes: int = 3, faulty_ms: int = 40_000) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.now_ms = 1_000_000
        self.faulty_until_ms = self.now_ms + faulty_ms
        self.story: list[str] = []
        self.letters: list[Any] = []
        self.hub = MemoryHub(random.Random(seed + 1))
        self.hub.deliver(self.now_ms)
        #: (run, unit) → how often the effect of a once or physical unit of work began
        self.effects: Counter[tuple[str, str]] = Counter()
        #: (node, dispatch) of once and physical drivers that were started
        self.started: Counter[tuple[str, str]] = Counter()
        #: (run, unit) → how often a person or the plan's own retry asked to run it again
        self.reruns: Counter[tuple[str, str]] = Counter()
        #: unit of work by dispatch
        self.unit_of: dict[str, tuple[str, str]] = {}
        self._script: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self.orchestrator = SimOrchestrator(self)
        self.nodes = {name: SimNode(self, name) for name in (f"n{i}" for i in range(nodes))}
        self.orchestrator.start()
        for node in self.nodes.values():
            node.start()

    def tell(self, text: str) -> None:
        self.story.append(f"{self.now_ms - 1_000_000:>8} {text}")

    def link(self, name: str, subscriptions: tuple[str, ...]) -> MemoryLink:
        return MemoryLink(self.hub, name, subscriptions)

    def write(self, letter: Any) -> bytes:
        """A letter as bytes: its number. The wire has tests of its own."""
        self.letters.append(letter)
        return str(len(self.letters) - 1).encode()

    def read(self, payload: bytes) -> Any:
        return self.letters[int(payload)]

    def at(self, at_ms: int, act: Callable[[], None]) -> None:
        self._order += 1
        self._script.append((at_ms, self._order, act))
        self._script.sort(key=lambda entry: entry[:2])

    def run(self) -> None:
        """Let one world pass from the first plan to the last answer."""
        self.settle()
        for _ in range(self.dice.randint(1, 3)):
            self.orchestrator.submit(random_plan(self.dice, list(self.nodes)))
        self.hub.faults = Faults(
            loss=self.dice.choice((0.0, 0.02, 0.15)),
            repeat=self.dice.choice((0.0, 0.1)),
            delay_ms=self.dice.choice((0, 5)),
            jitter_ms=self.dice.choice((0, 0, 40)),
        )
        self.tell(f"network: {self.hub.faults}")
        self._plan_faults()
        self.advance(self.faulty_until_ms - self.now_ms)
        self._heal()
        self._let_end()
        self.check_end()

    def _let_end(self) -> None:
        removed, misbehaved = self.orchestrator.not_open()
        settle_ms = SETTLE_MS + (PROBATION_MS if misbehaved else 0)
        given_up_ms = self.now_ms + settle_ms - GIVEN_UP_MS // 2
        end_ms = self.now_ms + settle_ms
        while self.now_ms < end_ms and not self.orchestrator.idle():
            self.advance(1_000)
            if removed and self.now_ms >= given_up_ms:
                self.orchestrator.cancel()
                removed = False

    def settle(self) -> None:
        """All nodes are there, and stand in a group."""
        self.advance(3_000)
        self.orchestrator.post(e.GroupSet, group=GROUP, nodes=tuple(self.nodes))

    def _plan_faults(self) -> None:
        for _ in range(self.dice.randint(0, 6)):
            at_ms = self.now_ms + self.dice.randint(0, self.faulty_until_ms - self.now_ms)
            pause_ms = self.dice.choice((200, 3_000, 9_000, 20_000))
            node = self.nodes[self.dice.choice(list(self.nodes))]
            fault = self.dice.choice(FAULTS)
            self.at(at_ms, lambda f=fault, n=node, p=pause_ms: self._fault(f, n, p))

    def _fault(self, fault: str, node: SimNode, pause_ms: int) -> None:
        self.tell(f"fault: {fault} {node.name} for {pause_ms} ms")
        later_ms = self.now_ms + pause_ms
        if fault == "kill":
            node.kill()
            self.at(later_ms, node.start)
        elif fault == "torn":
            node.lose_journal()
            self.at(later_ms, node.start)
        elif fault == "cut":
            self.hub.partition(node.name)
            self.at(later_ms, lambda: self.hub.heal(node.name))
        elif fault == "half":
            self.hub.partition(node.name, to_client=self.dice.random() < 0.5)
            self.at(later_ms, lambda: self.hub.heal(node.name))
        elif fault == "drop":
            self.hub.drop(node.name)
        elif fault == "replay":
            self._replay(node)
        elif fault == "cancel":
            self.orchestrator.cancel()
        elif fault == "pause":
            self.orchestrator.pause()
            self.at(later_ms, self.orchestrator.resume)
        elif fault in [*Admission]:
            self.orchestrator.decide(node.name, Admission(fault))
            if self.dice.random() < 0.5:
                self.at(later_ms, lambda: self.orchestrator.decide(node.name, Admission.OPEN))
        elif fault == "misbehave":
            for mark in range(limits.EVIDENCE_MALFORMED):
                seen = {"kind": "malformed", "text": "as the world says", "mark": str(mark)}
                self.orchestrator.post(e.EvidenceSeen, node=node.name, **seen)
        elif fault == "orchestrator":
            self.orchestrator.kill()
            self.at(later_ms, self.orchestrator.start)
        else:
            self.hub.stop()
            self.at(later_ms, self.hub.restart)

    def _replay(self, node: SimNode) -> None:
        """Somebody at the broker sends again what this node was sent within the last minute."""
        for at_ms, topic, payload in self.orchestrator.published:
            if at_ms > self.now_ms - limits.MESSAGE_EXPIRY_MS and f"/to/{node.name}/" in topic:
                self.hub.publish("somebody", topic, payload)

    def _heal(self) -> None:
        self.tell("everything heals")
        self.hub.faults = Faults()
        for _, _, act in self._script:
            act()
        self._script.clear()
        for node in self.nodes.values():
            self.hub.heal(node.name)
            node.start()
        self.orchestrator.start()
        self.orchestrator.resume()
        self.hub.restart()
        for node in self.nodes:
            if self.dice.random() < 0.7 or not self.orchestrator.is_own(node):
                self.orchestrator.decide(node, Admission.OPEN)

    def advance(self, by_ms: int) -> None:
        """Handle all that is due in the next `by_ms`, each at its own time."""
        end_ms = self.now_ms + by_ms
        while (at_ms := self._next_ms()) is not None and at_ms <= end_ms:
            self.now_ms = max(self.now_ms, at_ms)
            self._due()
        self.now_ms = end_ms

    def _next_ms(self) -> int | None:
        times = [self.hub.next_ms, self.orchestrator.next_ms()]
        times += [node.next_ms() for node in self.nodes.values()]
        times += [at_ms for at_ms, _, _ in self._script[:1]]
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def _due(self) -> None:
        while self._script and self._script[0][0] <= self.now_ms:
            self._script.pop(0)[2]()
        self.hub.deliver(self.now_ms)
        self.orchestrator.tick()
        for node in self.nodes.values():
            node.tick()
        self.check()

    def count_effect(self, node: str, dispatch: str) -> None:
        """A once or physical driver begins on a node."""
        self.effects[self.unit_of[dispatch]] += 1
        self.started[node, dispatch] += 1

    def check(self) -> None:
        problems = self.orchestrator.problems()
        for (run, action), count in self.effects.items():
            if count > 1 + self.reruns[run, action]:
                problems.append(f"the effect of {run}/{action} began {count} times")
        for (node, dispatch), count in self.started.items():
            if count > 1:
                problems.append(f"{dispatch} ran {count} times on {node}")
        for node in self.nodes.values():
            problems += node.problems()
        if problems:
            raise AssertionError("; ".join(problems))

    def check_end(self) -> None:
        self.check()
        problems = self.orchestrator.unfinished() + self.orchestrator.replay_differs()
        if problems:
            raise AssertionError("; ".join(problems))

    def now_answer(self) -> None:
        """A person looks at the open questions and answers each in some way; some gates they let
        expire."""
        for approval in list(self.orchestrator.core.state.approvals.values()):
            if approval.kind == "gate" and self.dice.random() < 0.3:
                continue
            option = self.dice.choice(approval.options)
            self.tell(f"a person answers {approval.approval}: {option}")
            self.orchestrator.post(
                e.AnswerGiven, approval=approval.approval, option=option, by="eve"
            )


def node_filter(name: str) -> tuple[str, ...]:
    return topics.node_subscriptions(MESH, name)


def up(node: str, kind: Kind) -> str:
    return topics.from_node(MESH, node, kind)


def down(node: str, kind: Kind) -> str:
    return topics.to_node(MESH, node, kind) if node else topics.to_all(MESH, kind)
