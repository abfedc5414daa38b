"""From a ready unit of work to a dispatch on a node.

The one rule: a dispatch is committed before it is sent and keeps its bytes for life; the run that
has had the least goes first. Deliberately absent: what nodes answer; `dispatching` knows.
"""

import heapq
from collections.abc import Mapping
from hashlib import sha256
from itertools import islice
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import flow, gates
from imlmesh_orchestrator.core.calls import Terms
from imlmesh_orchestrator.core.commands import SendDispatch
from imlmesh_orchestrator.core.placement import Pool, exhausted, pick, refresh, stuck
from imlmesh_orchestrator.core.queues import Entry
from imlmesh_orchestrator.core.rendering import params_of
from imlmesh_orchestrator.core.settling import settle
from imlmesh_orchestrator.core.state import ActionRecord, NodeRecord, RunRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault, InputError
from imlmesh_protocol.ids import dispatch_id
from imlmesh_protocol.iml.params import effect_of
from imlmesh_protocol.manifest import ActionSpec
from imlmesh_protocol.states import ActionState, Effect
from imlmesh_protocol.wire.dispatches import encode_attempt, encode_terms

_ANY_NUMBER = 1 << 62
_SEEKING = frozenset({ActionState.PENDING, ActionState.WAITING})


def place_ready(turn: Turn) -> None:
    """Dispatch all that is ready and has a node with room, the least served run first."""
    settle(turn)
    state = turn.state
    if not state.bus_open or state.behind or state.doubts or state.stopping:
        return
    pools = turn.pools
    while pools.stirred:
        pools.stirred = False
        # what was full has no more room than what has ended since
        limit = pools.ended if pools.full and not pools.changed else _ANY_NUMBER
        pools.ended, pools.changed = 0, False
        if len(pools.hungry) == 1:
            _drain(turn, next(iter(pools.hungry.values())), limit)
        else:
            pools.full = False
            _take_turns(turn, list(pools.hungry.values()))
        for pool in list(pools.hungry.values()):
            if pool.aside:
                pool.take_back(pools.level)
        settle(turn)


def _drain(turn: Turn, pool: Pool, limit: int) -> None:
    refresh(turn.state, pool)
    placed = 0
    # nobody stands aside yet, and who does takes no room
    while placed - len(pool.aside) < limit:
        first = _first(turn, pool)
        if first is None:
            turn.pools.full = False
            turn.pools.drop_empty(pool)
            return
        if not _place(turn, pool, first):
            turn.pools.full = bool(pool.eligible)
            return
        placed += 1


def _take_turns(turn: Turn, pools: list[Pool]) -> None:
    """Pools may want the same nodes, so what counts is what their first runs have had."""
    queue: list[tuple[float, int, Pool]] = []
    for place, pool in enumerate(pools):
        refresh(turn.state, pool)
        first = _first(turn, pool)
        if first is None:
            turn.pools.drop_empty(pool)
        else:
            queue.append((first[0].served, place, pool))
    heapq.heapify(queue)
    while queue:
        _, place, pool = queue[0]
        first = _first(turn, pool)
        if first is None:
            turn.pools.drop_empty(pool)
            heapq.heappop(queue)
        elif _place(turn, pool, first):
            heapq.heapreplace(queue, (first[0].served, place, pool))
        else:
            heapq.heappop(queue)


def _first(turn: Turn, pool: Pool) -> Entry | None:
    """Whose turn it is, of those that still want a node."""
    while (first := pool.waiting.first()) is not None:
        run, record = first
        if (
            record.state in _SEEKING
            and record.retry_at_ms <= turn.at_ms
            and run.may_place(record)
            and not (record.parent and record.parent.state is ActionState.AWAITING_APPROVAL)
        ):
            return first
        pool.waiting.take()
    return None


def _place(turn: Turn, pool: Pool, first: Entry) -> bool:
    """Settle the pool's first unit: dispatched, failed or held; False when it must wait."""
    run, record = first
    node = pick(pool, record)
    if node is None:
        return _settle_unplaced(turn, pool, first)
    pool.waiting.take()
    run.served += run.cost
    turn.pools.level = run.served
    _dispatch(turn, run, record, node)
    return True


def _settle_unplaced(turn: Turn, pool: Pool, first: Entry) -> bool:
    run, record = first
    if exhausted(pool, record):
        pool.waiting.take()
        fault = record.fault or Fault("place.no_node", "every node refused it")
        flow.break_off(turn, run, record, fault)
        return True
    bound = stuck(turn.state, run, record) if record.node else None
    if bound is not None:
        pool.waiting.take()
        flow.break_off(turn, run, record, bound)
        return True
    if not pool.eligible and pool.untold:
        _tell_waiting(turn, pool)
    if record.refused_by:
        # only others may go where there is room now
        pool.aside.append(pool.waiting.put_aside())
        return True
    return False


def _tell_waiting(turn: Turn, pool: Pool) -> None:
    """Every run says what it waits for, not only the one whose action is the pool's first."""
    reasons = dict(islice(pool.refused.items(), limits.WAITING_REASONS))
    for run, record in pool.untold:
        if record.queued and record.state is ActionState.PENDING:
            turn.change(c.ActionWaiting(turn.at_ms, turn.cause, run.run, record.key, reasons))
    pool.untold.clear()


def _dispatch(turn: Turn, run: RunRecord, record: ActionRecord, node: NodeRecord) -> None:
    call, terms = record.call, _terms(record, node)
    params, shared = record.params, terms.shared
    claiming = terms.spec.claims or call.claims
    # `_filled` looks more closely
    if record.templated or claiming or call.asks or run.again or turn.state.risky:
        filled = _filled(turn, run, record, node, terms.spec)
        if filled is None:
            return
        params, claims = filled
        if claims:
            shared = _shared(record, terms, claims)
    attempt = _next_attempt(run, record) if record.undoes else record.attempt + 1
    name = record.action.id if record.node else record.key
    dispatch = dispatch_id(run.run, name, node.node, attempt)
    encoded = encode_attempt(dispatch, params, shared)
    turn.change(
        c.DispatchPlanned(
            turn.at_ms,
            turn.cause,
            run.run,
            dispatch,
            record.key,
            node.node,
            attempt,
            encoded,
            sha256(encoded).digest(),
            terms.effect,
            terms.timeout_ms,
            terms.lease_ms,
            terms.on_loss,
        )
    )
    turn.commands.append(SendDispatch(node.node, dispatch, encoded))
    turn.sent.append(dispatch)


def _terms(record: ActionRecord, node: NodeRecord) -> Terms:
    """The terms of the call on this node; those of members and compensations are their own."""
    if record.node:
        return _new_terms(record, node)
    terms = record.call.terms.get(node.node)
    if terms is None or terms.described != node.described:
        terms = record.call.terms[node.node] = _new_terms(record, node)
    return terms


def _new_terms(record: ActionRecord, node: NodeRecord) -> Terms:
    action = record.action
    spec = node.manifest.modules[action.module].actions[action.action]
    effect = effect_of(action, spec)
    lease_ms = limits.lease_ms_of(action.lease_seconds, node.heartbeat_ms, node.lost_ms)
    on_loss = loss_policy(record, effect)
    terms = Terms(node.described, spec, effect, on_loss, action.timeout * 1_000, lease_ms)
    terms.shared = _shared(record, terms, ())
    return terms


def _shared(record: ActionRecord, terms: Terms, claims: tuple[str, ...]) -> bytes:
    action = record.action
    return encode_terms(
        action.module,
        action.action,
        terms.effect,
        terms.timeout_ms,
        terms.lease_ms,
        "stop" if terms.on_loss == "reroute" else "finish",
        claims,
        action.on_busy,
    )


def _filled(
    turn: Turn, run: RunRecord, record: ActionRecord, node: NodeRecord, spec: ActionSpec
) -> tuple[Mapping[str, Any], tuple[str, ...]] | None:
    """Params and claims of the call on this node; None when that ended the unit or asks a person."""
    try:
        params = params_of(turn.state, turn.env, run, record, node.node)
        claims = spec.claims_for(params) if spec.claims else ()
        if gates.may_ask(turn.state, run, record) and _must_ask(turn, run, record):
            return None
    except InputError as exc:
        flow.fail(turn, run, record, Fault(exc.code, exc.message))
        return None
    except KeyError as exc:
        flow.fail(turn, run, record, Fault("action.params", f"{exc.args[0]} is missing"))
        return None
    if record.call.claims:
        claims = tuple(dict.fromkeys((*claims, *record.call.claims)))
    if claims and any(len(claim) > limits.CLAIM_CHARS for claim in claims):
        text = f"a claim has more than {limits.CLAIM_CHARS} characters"
        flow.fail(turn, run, record, Fault("action.params", text))
        return None
    return params, claims


def _next_attempt(run: RunRecord, record: ActionRecord) -> int:
    """Compensations by one action share its dispatch ids, and so count together."""
    own = (
        record.attempt if record.undo_params is not None else run.actions[record.action.id].attempt
    )
    return max(record.attempt, own) + 1


def _must_ask(turn: Turn, run: RunRecord, record: ActionRecord) -> bool:
    """Ask (again) when what would run now is not what a person agreed to."""
    whole = record.parent or record
    reason = gates.reason_for(turn.state, run, whole)
    if reason is None:
        return False
    if gates.approved(record, gates.digest_of(turn.state, turn.env, run, record)):
        return False
    # members that none has begun are asked about as the whole that they are
    begun = record.parent is None or whole.state is ActionState.RUNNING
    flow.hold(turn, run, record if begun else whole, reason)
    return True


def loss_policy(record: ActionRecord, effect: Effect) -> str:
    """What the loss of its node means: the plan's word, else by effect and target.

    A plan's reroute was checked against the manifests of then; the node's own may be stricter.
    Nobody else can do what is bound to one node: a member fails, an undoing asks.
    """
    action = record.action
    wanted = action.on_node_loss
    if record.undoes or (wanted in (None, "reroute") and not effect.repeatable):
        return "ask"
    if record.node or record.member_wise:
        return "fail" if wanted in (None, "reroute") else str(wanted)
    if wanted is not None:
        return str(wanted)
    bound = action.target_node is not None and not action.fallback_nodes
    return "wait" if bound else "reroute"
