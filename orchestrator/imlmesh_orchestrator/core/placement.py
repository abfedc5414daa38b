"""Which node gets an action: filters, then rank, and why each other node was left out.

The one rule: actions that ask for the same thing share a pool, so the question "who may run this"
is answered once for all of them and again only when a node, group or label changed
(`State.generation`). Deliberately absent: sending; a pool only says where.
"""

from collections import deque
from dataclasses import dataclass, field

from imlmesh_orchestrator.core.state import ActionRecord, NodeRecord, RunRecord, State
from imlmesh_protocol.iml.plan import Action
from imlmesh_protocol.iml.selector import parse_selector
from imlmesh_protocol.limits import NODE_WINDOW
from imlmesh_protocol.manifest import PROFILES, ActionSpec
from imlmesh_protocol.states import Liveness

# of the nodes in turn, how many are compared by load: two or more spread nearly as well as all
_COMPARED = 4

PoolKey = tuple[str, str, str, str | tuple[str, ...]]


@dataclass(slots=True)
class Pool:
    """Actions that want the same module, action and target, and the nodes that may run them."""

    key: PoolKey
    generation: int = -1
    eligible: list[NodeRecord] = field(default_factory=list)
    #: what each eligible node's manifest says of the action
    specs: dict[str, ActionSpec] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    waiting: deque[tuple[RunRecord, ActionRecord]] = field(default_factory=deque)
    #: how many of the last in `waiting` came since anybody was told that no node is eligible
    untold: int = 0
    rotation: int = 0


class Pools:
    """All pools; volatile, rebuilt from the runs after a restart."""

    def __init__(self) -> None:
        self._pools: dict[PoolKey, Pool] = {}
        #: pools with waiting actions that may have got room since they were last looked at
        self.due: dict[PoolKey, Pool] = {}
        self._blocked: dict[PoolKey, Pool] = {}

    def add(self, run: RunRecord, record: ActionRecord) -> None:
        """A ready action waits for a node."""
        key = pool_key(run, record.action)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(key)
        pool.waiting.append((run, record))
        pool.untold += 1
        self.due[key] = pool

    def block(self, pool: Pool) -> None:
        """Nobody can take the pool's first action now."""
        self._blocked[pool.key] = pool

    def room(self) -> None:
        """A node got room or changed: whoever is blocked may try again."""
        if self._blocked:
            self.due.update(self._blocked)
            self._blocked.clear()

    def drop_empty(self, pool: Pool) -> None:
        """Forget a pool that nobody waits in once there are many: keys hold selectors of plans."""
        if len(self._pools) > 1_000 and not pool.waiting:
            self._pools.pop(pool.key, None)


def pool_key(run: RunRecord, action: Action) -> PoolKey:
    """What makes two actions askers of the same nodes."""
    if action.target_node is not None:
        return (action.module, action.action, "node", action.target_node)
    if action.target_group is not None:
        return (action.module, action.action, "group", run.groups[action.target_group])
    if action.target_selector is not None:
        return (action.module, action.action, "selector", action.target_selector)
    return (action.module, action.action, "", "")


def refresh(state: State, pool: Pool) -> None:
    """Sort all nodes into eligible and refused, with the reason's code for each refused one."""
    if pool.generation == state.generation:
        return
    pool.generation = state.generation
    pool.eligible, pool.specs, pool.refused = [], {}, {}
    module, action, way, wanted = pool.key
    selector = parse_selector(str(wanted)) if way == "selector" else None
    target = state.find_node(str(wanted)) if way == "node" else None
    for record in state.nodes.values():
        if way == "node" and record is not target:
            continue
        if way == "group" and record.node not in wanted:
            continue
        if selector is not None and not selector.matches(record.names):
            continue
        code = why_not(record, module, action)
        if code is None and record.liveness is not Liveness.ONLINE:
            code = "node.lost"
        if code is None:
            pool.eligible.append(record)
            pool.specs[record.node] = record.manifest.modules[module].actions[action]
        else:
            pool.refused[record.node] = code


def why_not(record: NodeRecord, module: str, action: str) -> str | None:
    """The code of what keeps this node from ever running the action; None when it can."""
    if module not in record.manifest.modules:
        return "module.unknown"
    spec = record.manifest.find(module, action)
    if spec is None:
        return "action.unknown"
    if PROFILES.index(spec.permission) > PROFILES.index(record.profile):
        return "policy.profile"
    return None


def pick(pool: Pool, record: ActionRecord) -> NodeRecord | None:
    """The least busy of the next few eligible nodes, None when all are full or refused it.

    A node that was lost with this action is taken again only when there is no other.
    """
    chosen, fallback = None, None
    count, compared, least = len(pool.eligible), 0, 0
    for offset in range(count):
        node = pool.eligible[(pool.rotation + offset) % count]
        load = len(node.live)
        if load >= NODE_WINDOW or node.full or node.node in record.refused_by:
            continue
        if node.node in record.lost_on:
            fallback = fallback or node
            continue
        if chosen is None or load < least:
            chosen, least = node, load
        compared += 1
        if compared == _COMPARED:
            break
    pool.rotation += 1
    return chosen or fallback


def exhausted(pool: Pool, record: ActionRecord) -> bool:
    """Whether every node that could run it has already refused it."""
    return bool(record.refused_by) and all(node.node in record.refused_by for node in pool.eligible)
