"""Which node gets an action: filters, then rank, and why each other node was left out.

The one rule: actions that ask for the same thing share a pool, so the question "who may run this"
is answered once for all of them, and again only of the nodes that changed (`State.touched`).
Deliberately absent: sending; a pool only says where.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice

from imlmesh_orchestrator.core.calls import PoolKey
from imlmesh_orchestrator.core.queues import Entry, FairQueue
from imlmesh_orchestrator.core.state import ActionRecord, NodeRecord, RunRecord, State
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.iml.requirements import satisfies
from imlmesh_protocol.iml.selector import parse_selector
from imlmesh_protocol.manifest import PROFILES
from imlmesh_protocol.states import PRESENT, Admission, Liveness

# reading a selector costs ten times what asking it of a node does
_parsed = lru_cache(maxsize=limits.POOLS_KEPT)(parse_selector)


@dataclass(slots=True)
class Pool:
    """Units that want the same module, action and target, and the nodes that may run them."""

    key: PoolKey
    generation: int = -1
    #: nodes that could run it: online, or suspect and so soon back or lost
    able: dict[str, NodeRecord] = field(default_factory=dict)
    #: those of them that may get it now
    eligible: list[NodeRecord] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    waiting: FairQueue = field(default_factory=FairQueue)
    #: units that only some of the eligible nodes have not refused, and those are full
    aside: list[Entry] = field(default_factory=list)
    #: while no node is eligible: those that nobody has told so
    untold: list[Entry] = field(default_factory=list)
    #: so many of them, and those that wait no more are swept out
    sweep_at: int = limits.UNTOLD_SWEPT
    rotation: int = 0
    #: whether it is one of those that units wait in
    hungry: bool = False

    def sweep(self) -> None:
        """Forget those that nobody need be told of any more."""
        self.untold = [(run, unit) for run, unit in self.untold if unit.queued and not run.ended]
        self.sweep_at = max(limits.UNTOLD_SWEPT, 2 * len(self.untold))

    def take_back(self, level: float) -> None:
        """Whoever stood aside waits with the others again."""
        for run, record in self.aside:
            self.waiting.add(run, record, level)
        self.aside.clear()


class Pools:
    """All pools; volatile, rebuilt from the runs after a restart."""

    def __init__(self) -> None:
        self._pools: dict[PoolKey, Pool] = {}
        #: pools that units wait in
        self.hungry: dict[PoolKey, Pool] = {}
        #: whether any of them may have got a node since they were last looked at, and why: units
        #: came or nodes changed in any way, or no more than so many dispatches have ended
        self.stirred = False
        self.changed = False
        self.ended = 0
        #: whether the last look ended because every node was full
        self.full = False
        #: what the run served last had had; see `queues`
        self.level = 0.0

    def add(self, run: RunRecord, record: ActionRecord) -> None:
        """A ready unit waits for a node."""
        if record.queued:
            return
        record.queued = True
        key = record.call.pool
        if key is None or record.node:
            key = pool_key(run, record)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(key)
        pool.waiting.add(run, record, self.level)
        if not pool.eligible:
            pool.untold.append((run, record))
            if len(pool.untold) > pool.sweep_at:
                pool.sweep()
        if not pool.hungry:
            pool.hungry = True
            self.hungry[key] = pool
        self.stirred = True

    def room(self) -> None:
        """A node changed: whoever waits may try again."""
        self.stirred = self.changed = True

    def room_for(self, dispatches: int) -> None:
        """At most so many dispatches have ended."""
        self.ended += dispatches
        self.stirred = True

    def drop_empty(self, pool: Pool) -> None:
        """Nobody waits here; once there are many such pools forget them, for keys hold selectors."""
        if pool.aside:
            return
        pool.hungry = False
        self.hungry.pop(pool.key, None)
        if len(self._pools) > limits.POOLS_KEPT:
            self._pools.pop(pool.key, None)


def pool_key(run: RunRecord, record: ActionRecord) -> PoolKey:
    """What makes two units askers of the same nodes."""
    if record.node:
        action = record.action
        version = run.plan.module_requirements.get(action.module, "")
        return (action.module, action.action, version, "bound", record.node)
    call = record.call
    if call.pool is None:
        call.pool = _target_key(run, record)
    return call.pool


def _target_key(run: RunRecord, record: ActionRecord) -> PoolKey:
    action = record.action
    version = run.plan.module_requirements.get(action.module, "")
    if action.fallback_nodes and action.target_node is not None and not record.member_wise:
        names = (action.target_node, *action.fallback_nodes)
        return (action.module, action.action, version, "order", names)
    if action.target_node is not None:
        return (action.module, action.action, version, "node", action.target_node)
    if action.target_group is not None:
        nodes = run.groups[action.target_group]
        return (action.module, action.action, version, "group", nodes)
    if action.target_selector is not None:
        return (action.module, action.action, version, "selector", action.target_selector)
    return (action.module, action.action, version, "", "")


def candidates(state: State, key: PoolKey) -> Iterable[NodeRecord]:
    """The known nodes that a target names, whatever they can do; a list of names in its order."""
    way, wanted = key[3], key[4]
    names = (wanted,) if isinstance(wanted, str) else wanted
    if way in ("node", "order"):
        return [node for name in names if (node := state.find_node(name)) is not None]
    if way in ("bound", "group"):
        # ids, which an alias may look like
        return [state.nodes[name] for name in names if name in state.nodes]
    return _meant(state, key, state.nodes.values())


def _meant(state: State, key: PoolKey, nodes: Iterable[NodeRecord]) -> Iterable[NodeRecord]:
    """Those of these nodes that a selector, or no target at all, means; none that was removed."""
    if state.admissions:
        gone = Admission.REVOKED
        nodes = [node for node in nodes if state.admission_of(node.node) is not gone]
    if key[3] != "selector":
        return nodes
    selector = _parsed(str(key[4]))
    return [node for node in nodes if selector.matches(node.names)]


def refresh(state: State, pool: Pool) -> None:
    """Sort the candidates into able and refused, with the reason's code for each refused one.

    Names are few and may change hands, so all of them are looked up again; of all nodes only those
    that changed are.
    """
    if pool.generation == state.generation:
        return
    if pool.generation >= 0 and pool.key[3] in ("", "selector"):
        touched = state.touched_since(pool.generation)
        for node in touched:
            pool.able.pop(node.node, None)
            pool.refused.pop(node.node, None)
        found = _meant(state, pool.key, touched)
    else:
        pool.able, pool.refused = {}, {}
        found = candidates(state, pool.key)
    pool.generation = state.generation
    module, action, version = pool.key[:3]
    for node in found:
        code = why_not(node, module, action, version) or barred(state, node.node)
        if code is None and node.liveness in PRESENT:
            pool.able[node.node] = node
        if code is not None or node.liveness is not Liveness.ONLINE:
            pool.refused[node.node] = code or "node.lost"
    eligible = list(_eligible(pool))
    if pool.eligible and not eligible:
        pool.untold = pool.waiting.entries()
    pool.eligible = eligible


def _eligible(pool: Pool) -> Iterator[NodeRecord]:
    for node in pool.able.values():
        if node.liveness is Liveness.ONLINE:
            yield node
        elif pool.key[3] == "order":
            return  # its turn comes before that of the names behind it


def why_not(record: NodeRecord, module: str, action: str, version: str = "") -> str | None:
    """The code of what keeps this node from ever running the action; None when it can.

    `version` is what the plan wants of the module, a PEP 440 specifier; empty means any.
    """
    if module not in record.manifest.modules:
        return "module.unknown"
    if version and not satisfies(record.manifest.modules[module].version, version):
        return "module.version"
    spec = record.manifest.find(module, action)
    if spec is None:
        return "action.unknown"
    if PROFILES.index(spec.permission) > PROFILES.index(record.profile):
        return "policy.profile"
    return None


_BARRED = {
    Admission.CORDONED: "node.cordoned",
    Admission.DRAINING: "node.draining",
    Admission.QUARANTINED: "node.quarantined",
    Admission.REVOKED: "node.revoked",
}


def barred(state: State, node: str) -> str | None:
    """The code of what keeps this node (id) from getting anything new; None when it is open."""
    record = state.admissions.get(node)
    return None if record is None else _BARRED[record.admission]


def pick(pool: Pool, record: ActionRecord) -> NodeRecord | None:
    """The least busy of the next few eligible nodes, None when all are full or refused it.

    A node that was lost with this action, or where it crashed, is taken again only when there is no
    other. Of names in an order the first that has not refused it is the only choice.
    """
    if pool.key[3] == "order":
        first = next((n for n in pool.able.values() if n.node not in record.refused_by), None)
        return first if first is not None and _may_get(first) else None
    if record.refused_by or record.lost_on or record.crashed_on:
        left = [node for node in pool.eligible if node.node not in record.refused_by]
        tried = {*record.lost_on, *record.crashed_on}
        others = [node for node in left if node.node not in tried]
        return _least_busy(others) or _least_busy(left)
    few = len(pool.eligible) <= limits.NODES_COMPARED
    return _least_busy(pool.eligible if few else _in_turn(pool))


def _in_turn(pool: Pool) -> list[NodeRecord]:
    """The next few that have room."""
    start = pool.rotation = (pool.rotation + 1) % len(pool.eligible)
    nodes = chain(islice(pool.eligible, start, None), islice(pool.eligible, start))
    return list(islice(filter(_may_get, nodes), limits.NODES_COMPARED))


def _least_busy(nodes: Iterable[NodeRecord]) -> NodeRecord | None:
    chosen, least = None, limits.NODE_WINDOW
    for node in nodes:
        load = len(node.live)
        if load < least and not node.full:
            chosen, least = node, load
    return chosen


def _may_get(node: NodeRecord) -> bool:
    has_room = len(node.live) < limits.NODE_WINDOW and not node.full
    return has_room and node.liveness is Liveness.ONLINE


def exhausted(pool: Pool, record: ActionRecord) -> bool:
    """Whether every node that could run it has already refused it."""
    return bool(record.refused_by) and all(node in record.refused_by for node in pool.able)


def stuck(state: State, run: RunRecord, record: ActionRecord) -> Fault | None:
    """Why a unit that is bound to one node cannot run there, if so; a suspect one is waited for."""
    node = state.nodes.get(record.node)
    if node is None:
        return Fault("place.unknown_node", f"no node {record.node}")
    action = record.action
    version = run.plan.module_requirements.get(action.module, "")
    code = why_not(node, action.module, action.action, version)
    if code is not None:
        text = f"{node.alias} cannot run {action.module}.{action.action}"
        return Fault(code, text)
    code = barred(state, node.node)
    if code is not None:
        return Fault(code, f"{node.alias} is {state.admission_of(node.node)}")
    if node.liveness in (Liveness.LOST, Liveness.OFFLINE):
        return Fault("node.lost", f"{node.alias} is {node.liveness}")
    return None


def matching(state: State, run: RunRecord, record: ActionRecord) -> list[NodeRecord]:
    """The nodes that a member-wise action stands for; without a target all that can run it."""
    key = pool_key(run, record)
    found = candidates(state, key)
    if key[3]:
        return list(found)
    module, action, version = key[:3]
    return [node for node in found if why_not(node, module, action, version) is None]
