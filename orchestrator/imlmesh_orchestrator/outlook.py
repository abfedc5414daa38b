"""Where the actions of a plan could run, asked of the core before anything runs.

The one rule: nothing here knows better than the scheduler; a run that is never stored lets its own
functions answer. Actions that want the same share one answer, so 500 actions cost little more than
one. Deliberately absent: sending, and what is said of the answers.
"""

from dataclasses import dataclass

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.apply import apply
from imlmesh_orchestrator.core.calls import Calls, PoolKey
from imlmesh_orchestrator.core.members import nodes_of
from imlmesh_orchestrator.core.placement import Pool, candidates, pool_key, refresh, why_not
from imlmesh_orchestrator.core.state import ActionRecord, NodeRecord, RunRecord, State
from imlmesh_protocol.iml.plan import Action, Plan
from imlmesh_protocol.manifest import ActionSpec

_ANYWHERE = dict.fromkeys(("target_node", "target_group", "target_selector")) | {
    "target_mode": "any",
    "fallback_nodes": (),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Who may run one or more actions: `reasons` holds a code for each node that never may."""

    pool: Pool
    nodes: tuple[NodeRecord, ...]
    reasons: dict[str, str]

    @property
    def able(self) -> list[NodeRecord]:
        """Those that may, whether they are here now or not."""
        return [node for node in self.nodes if node.node not in self.reasons]


class Outlook:
    """A plan on the fleet of one moment. `state` is a copy: a run is put into it."""

    def __init__(self, plan: Plan, digest: str, state: State) -> None:
        self.plan = plan
        self.digest = digest
        self.state = state
        run = "r-0-plan"
        apply(state, c.RunCreated(0, "", run, 0, plan, digest, "", 0, 0, 0))
        self.run: RunRecord = state.runs[run]
        self.run.groups = dict(state.groups)
        self._answers: dict[tuple[PoolKey, bool], Answer] = {}
        self._specs: dict[tuple[str, str], list[ActionSpec]] = {}
        for name in self.run.compensation_only:
            # it runs where the work was done, whatever the plan says of its target
            record = self.run.actions[name]
            record.action = record.action.model_copy(update=_ANYWHERE)
            record.call, record.member_wise = Calls().of(record.action), False
        for record in self.run.actions.values():
            if record.member_wise:
                nodes = nodes_of(state, self.run, record)
                apply(state, c.MembersFixed(0, "", run, record.key, nodes))

    def record(self, action: Action) -> ActionRecord:
        """The unit of work that the action would be."""
        return self.run.actions[action.id]

    def answer(self, action: Action) -> Answer:
        """Who may run it; nodes by alias, but names in an order stay in it."""
        record = self.record(action)
        key = pool_key(self.run, record)
        known = self._answers.get((key, record.member_wise))
        if known is None:
            known = self._ask(key, record)
            self._answers[key, record.member_wise] = known
        return known

    def specs(self, module: str, action: str) -> list[ActionSpec]:
        """What the known nodes' manifests say of an action, without repeats."""
        known = self._specs.get((module, action))
        if known is None:
            known = []
            for node in self.state.nodes.values():
                spec = node.manifest.find(module, action)
                if spec is not None and spec not in known:
                    known.append(spec)
            self._specs[module, action] = known
        return known

    def _ask(self, key: PoolKey, record: ActionRecord) -> Answer:
        pool = Pool(key)
        refresh(self.state, pool)
        module, action, version, way, _ = key
        if record.members is not None:
            nodes = [self.state.nodes[member.node] for member in record.members.values()]
        else:
            nodes = list(candidates(self.state, key))
            if way != "order":
                nodes.sort(key=lambda node: node.alias)
        found = ((node.node, why_not(node, module, action, version)) for node in nodes)
        reasons = {node: code for node, code in found if code is not None}
        return Answer(pool, tuple(nodes), reasons)
