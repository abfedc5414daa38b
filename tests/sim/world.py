"""One simulated mesh: the real cores on the memory link, in virtual time, out of one script.

A seed decides the plans, the faults of the network, when who is killed, and where in a commit.
After every event the invariants are asked; in the end everything heals and every run must end.
`World.story` holds what happened, a line each, for a seed that fails.
"""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from checks import Checks
from faulting import begin
from imlmesh_orchestrator.core import events as e
from imlmesh_protocol import limits
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.states import Admission
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.memory import Faults, MemoryHub, MemoryLink
from letters import Letter
from permits import ask
from plans import GROUP
from script import Cut, Script, script_of
from sim_node import SimNode
from sim_orchestrator import SimOrchestrator

MESH = "sim"
START_MS = 1_000_000_000  # so that a wall clock can step back from it
SETTLE_MS = 900_000  # a healed mesh must be done with everything by then
# and one whose nodes misbehaved, once they were on probation; what waits for a removed one, never
PROBATION_MS = 2 * limits.QUARANTINE_MS
GIVEN_UP_MS = 600_000
PIN_MS = 3_000  # a pin that permits wait for tells something so often


class CountingHub(MemoryHub):
    """The hub, which also tells what it did to messages."""

    def __init__(self, dice: random.Random, happened: Callable[[str], None]) -> None:
        super().__init__(dice)
        self._happened = happened
        #: clients that nothing reaches any more, and whether they are heard still
        self.never_heals: dict[str, bool] = {}

    def heal(self, client_id: str) -> None:
        super().heal(client_id)
        if client_id in self.never_heals:
            self.partition(client_id, from_client=not self.never_heals[client_id])

    def _send(
        self, client: MemoryLink, topic: str, payload: bytes, *, retained: bool = False
    ) -> None:
        before = self._order
        super()._send(client, topic, payload, retained=retained)
        if self._order == before:
            self._happened("a message lost")
        elif self._order > before + 1:
            self._happened("a message repeated")


class World:
    """Made by a script, or the one of a seed; `story` is kept as text."""

    def __init__(self, script: Script | int) -> None:
        self.script = script_of(script) if isinstance(script, int) else script
        seed = self.script.seed
        self.dice = random.Random(f"{seed}/cores")
        self._people = random.Random(f"{seed}/people")
        self.permit_dice = random.Random(f"{seed}/permit ids")
        self._power = random.Random(f"{seed}/power")
        self.now_ms = START_MS
        self.faulty_until_ms = START_MS  # nothing happens by chance before `run`
        self.story: list[str] = []
        #: nodes that are dead, deaf or cut off for good
        self.gone: set[str] = set()
        #: how often each kind of fault really happened
        self.faults: Counter[str] = Counter()
        #: the power cuts that happened by chance, so that a smaller script can name them
        self.cuts: list[Cut] = []
        #: how many commits each process has begun
        self.commits: Counter[str] = Counter()
        self.letters: list[Letter] = []
        self.hub = CountingHub(random.Random(f"{seed}/network"), self.happened)
        self.hub.deliver(self.now_ms)
        self.checks = Checks(self)
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self.orchestrator = SimOrchestrator(self)
        self.nodes = {name: SimNode(self, name) for name in self.script.nodes}
        self.orchestrator.start()
        for node in self.nodes.values():
            node.start()

    def tell(self, text: str) -> None:
        self.story.append(f"{self.now_ms - START_MS:>8} {text}")

    def happened(self, kind: str) -> None:
        self.faults[kind] += 1

    def link(self, name: str, subscriptions: tuple[str, ...]) -> MemoryLink:
        return MemoryLink(self.hub, name, subscriptions)

    def write(self, letter: Letter) -> bytes:
        """A letter as bytes: its number. The wire has tests of its own."""
        self.letters.append(letter)
        return str(len(self.letters) - 1).encode()

    def read(self, payload: bytes) -> Letter:
        return self.letters[int(payload)]

    def came(self, payload: bytes, newest: int) -> int:
        """The number of the newest letter that somebody has heard, with this one."""
        number = int(payload)
        if number < newest:
            self.happened("a message overtaken")
        return max(number, newest)

    def at(self, at_ms: int, act: Callable[[], None]) -> None:
        self._order += 1
        self._agenda.append((at_ms, self._order, act))
        self._agenda.sort(key=lambda entry: entry[:2])

    def power_cut(self, who: str, before: bool, chance: float) -> int | None:
        """For how long the power goes on this side of a commit, if so."""
        self.commits[who] += before
        commit = self.commits[who]
        wanted = self.script.cuts
        if wanted is None:
            if self.now_ms >= self.faulty_until_ms or self._power.random() > chance:
                return None
            pause_ms = self._power.choice((100, 2_000, 12_000))
            self.cuts.append(Cut(who, commit, before, pause_ms))
        else:
            found = [c for c in wanted if (c.who, c.commit, c.before) == (who, commit, before)]
            if not found:
                return None
            pause_ms = found[0].pause_ms
        side = "before" if before else "after"
        self.tell(f"{who}: power cut {side} its commit {commit}")
        self.happened(f"power cut {side} a commit")
        return pause_ms

    def run(self) -> None:
        """Let one world pass from the first plan to the last answer."""
        self.settle()
        self.faulty_until_ms = self.now_ms + self.script.faulty_ms
        for at_ms, plan in self.script.plans:
            self.at(self.now_ms + at_ms, lambda p=plan: self.submit(p))
        for wish in self.script.wishes:
            self.at(self.now_ms + wish.at_ms, lambda w=wish: ask(self, w))
            for node in (wish.node,) if wish.rule.source else ():
                for at_ms in range(wish.at_ms, self.script.faulty_ms, PIN_MS):
                    self.at(self.now_ms + at_ms, self.nodes[node].pin_told)
        self.hub.faults = self.script.network
        self.tell(f"network: {self.hub.faults}")
        for fault in self.script.faults:
            self.at(self.now_ms + fault.at_ms, lambda f=fault: begin(self, f))
        self.advance(self.script.faulty_ms)
        self.heal()
        self._let_end()
        self.check_end()

    def submit(self, plan: dict[str, Any]) -> None:
        self.orchestrator.submit(Plan.model_validate(plan))

    def _let_end(self) -> None:
        removed, misbehaved = self.orchestrator.not_open()
        settle_ms = SETTLE_MS + (PROBATION_MS if misbehaved else 0)
        given_up_ms = self.now_ms + settle_ms - GIVEN_UP_MS // 2
        end_ms = self.now_ms + settle_ms
        while self.now_ms < end_ms and not (
            self.orchestrator.idle() and not self.checks.permits.waits()
        ):
            self.advance(1_000)
            if removed and self.now_ms >= given_up_ms:
                self.orchestrator.cancel()
                removed = False

    def settle(self) -> None:
        """All nodes are there, and stand in a group."""
        self.advance(3_000)
        self.orchestrator.post(e.GroupSet, group=GROUP, nodes=tuple(self.nodes))

    def heal(self) -> None:
        self.checks.replays()
        self.tell("everything heals")
        self.hub.faults = Faults()
        self.hub.restart()
        for machine in (self.orchestrator.machine, *(n.machine for n in self.nodes.values())):
            machine.free_disk()
        for client in (*self.nodes, "orchestrator"):
            self.hub.heal(client)
        self.orchestrator.resume_machine()
        for node in self.nodes.values():
            node.resume()
        agenda, self._agenda = self._agenda, []
        for _, _, act in agenda:
            act()
        for node in self.nodes.values():
            node.start()
        self.orchestrator.start()
        self.orchestrator.resume()
        self.orchestrator.post(e.OutflowMeasured, behind=False)
        for name in self.nodes:
            if self.dice.random() < 0.7 or not self.orchestrator.is_own(name):
                self.orchestrator.decide(name, Admission.OPEN)

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
        times += [at_ms for at_ms, _, _ in self._agenda[:1]]
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def _due(self) -> None:
        while self._agenda and self._agenda[0][0] <= self.now_ms:
            self._agenda.pop(0)[2]()
        self.hub.deliver(self.now_ms)
        self.orchestrator.tick()
        for node in self.nodes.values():
            node.tick()
        self.check()

    def check(self) -> None:
        problems = self.checks.now() + self.orchestrator.problems()
        for node in self.nodes.values():
            problems += node.problems()
        if problems:
            raise AssertionError("; ".join(problems))

    def check_end(self) -> None:
        self.check()
        problems = self.orchestrator.unfinished() + self.orchestrator.replay_differs()
        problems += self.checks.permits.unfinished()
        if problems:
            raise AssertionError("; ".join(problems))

    def now_answer(self) -> None:
        """A person looks at the open questions and answers each in some way; some gates they let
        expire."""
        for approval in list(self.orchestrator.core.state.approvals.values()):
            if approval.kind == "gate" and self._people.random() < 0.3:
                continue
            option = self._people.choice(approval.options)
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
