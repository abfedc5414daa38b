"""How a run flows: what becomes ready, what an end means for the rest, when the run is over.

The one rule: the end of any unit of work is handled in one place, `after_end`, whichever way it
came; what that makes ready waits in the turn's queue for `settling`. Deliberately absent: choosing
nodes (`placement`), what results mean (`dispatching`).
"""

from imlmesh_orchestrator.core import asking, gates, members, memory
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.commands import ReportRefusal
from imlmesh_orchestrator.core.placement import stuck
from imlmesh_orchestrator.core.rendering import session_of
from imlmesh_orchestrator.core.state import ActionRecord, Gate, RunRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_orchestrator.core.waves import descendants
from imlmesh_protocol.errors import Fault, InputError
from imlmesh_protocol.states import RUN_ENDED, ActionState, RunState

# a name of an enum costs ten times a global, and this one is asked for with every action
_COMPLETED = ActionState.COMPLETED
_WAITING = frozenset({ActionState.PENDING, ActionState.WAITING, ActionState.AWAITING_APPROVAL})
_SEEKING = frozenset({ActionState.PENDING, ActionState.WAITING})
_DEPENDENCY = Fault("action.dependency", "an action that it waits for did not complete")
_LEFT_OUT = Fault("action.dependency", "its action ended before its turn came")
_CANCELLED = Fault("action.cancelled", "cancelled")
_UNUSED = Fault("action.not_needed", "it runs only to undo something, and nothing had to be undone")


def release_open(turn: Turn, run: RunRecord) -> None:
    """Make ready all that nothing holds back: at the start of a run, of a wave, after a pause or
    a restart."""
    if run.compensations is not None:
        undo_next(turn, run)
        return
    for record in run.actions.values():
        if record.members is not None and not record.ended:
            advance(turn, run, record)
    if run.sequence is not None:
        _release_next(turn, run)
    else:
        for gate in run.gates:
            if not gate.remaining:
                _open(turn, run, gate)


def _open(turn: Turn, run: RunRecord, gate: Gate) -> None:
    turn.ready.append((run, [run.actions[name] for name in gate.members]))


def _release_next(turn: Turn, run: RunRecord) -> None:
    """Sequential: the first action that has not ended, when it is not under way already."""
    sequence = run.sequence or []
    while run.cursor < len(sequence):
        record = run.actions[sequence[run.cursor]]
        if not record.ended:
            turn.ready.append((run, [record]))
            return
        run.cursor += 1


def ready(turn: Turn, run: RunRecord, records: list[ActionRecord]) -> None:
    """Actions whose dependencies are satisfied ask for approval, then wait for a node."""
    if turn.at_ms < run.starts_at_ms or not run.starting_now:
        return
    for record in records:
        if record.state not in _SEEKING:  # also when the one before it has aborted the run
            continue
        if run.waves is not None and any(run.waves[: record.wave]):
            continue
        group = record.call.group
        if group is not None and not _frozen(turn, run, group):
            fail(turn, run, record, Fault("place.empty_group", f"group {group} has no node"))
        elif record.member_wise and record.members is None and not _fix_members(turn, run, record):
            continue
        elif record.retry_at_ms <= turn.at_ms:
            _pass_gate(turn, run, record)


def _frozen(turn: Turn, run: RunRecord, group: str) -> tuple[str, ...]:
    """The nodes of a group, decided once for the whole run."""
    if group not in run.groups:
        nodes = turn.state.groups.get(group, ())
        turn.change(c.GroupFrozen(turn.at_ms, turn.cause, run.run, group, nodes))
    return run.groups[group]


def _fix_members(turn: Turn, run: RunRecord, record: ActionRecord) -> bool:
    """Decide once which nodes a member-wise action stands for; False when that ended it."""
    nodes = members.nodes_of(turn.state, run, record)
    if not nodes:
        fail(turn, run, record, Fault("place.no_node", "no node matches its target"))
        return False
    turn.change(c.MembersFixed(turn.at_ms, turn.cause, run.run, record.key, nodes))
    if members.needed(record) > len(nodes):
        text = f"{members.needed(record)} nodes are needed, there are {len(nodes)}"
        fail(turn, run, record, Fault("action.partial", text))
        return False
    for key in record.members or ():
        if key in run.kept:
            end_one(turn, run, run.units[key], ActionState.COMPLETED, None)
    return True


def seek(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    """Through the gate, if there is one, then to a node."""
    if record.retry_at_ms <= turn.at_ms and run.may_place(record):
        _pass_gate(turn, run, record)


def _pass_gate(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    if record.parent is None and not record.approved and gates.may_ask(turn.state, run, record):
        reason = gates.reason_for(turn.state, run, record)
        if reason is not None:
            hold(turn, run, record, reason)
            return
    if record.member_wise:
        advance(turn, run, record)
    else:
        turn.pools.add(run, record)


def hold(turn: Turn, run: RunRecord, record: ActionRecord, reason: str) -> None:
    """Ask a person whether this may run as it would run now."""
    try:
        digest = gates.digest_of(turn.state, turn.env, run, record)
    except InputError as exc:
        fail(turn, run, record, Fault(exc.code, exc.message))
        return
    asking.ask_gate(turn, run, record, reason, digest)


def advance(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    """Give the next members of a member-wise action to their nodes, or end it."""
    while not record.ended and record.state is not ActionState.AWAITING_APPROVAL:
        verdict = members.verdict(record)
        if verdict is not None:
            _end_whole(turn, run, record, verdict)
            return
        failed = False
        for member in members.startable(record):
            fault = stuck(turn.state, run, member)
            if fault is None:
                seek(turn, run, member)
            elif run.may_place(member):
                failed = True
                end_one(turn, run, member, ActionState.FAILED, fault)
        if not failed:
            return
        _stop_rolling(turn, run, record)


def _stop_rolling(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    """More members failed than rolling allows: who has not begun is left alone."""
    if members.overdrawn(record):
        rest = [m.key for m in (record.members or {}).values() if m.state in _WAITING]
        asking.supersede(turn, run, rest)
        _end_many(turn, run, rest, ActionState.SKIPPED, _LEFT_OUT)


def _end_whole(turn: Turn, run: RunRecord, record: ActionRecord, verdict: Fault | bool) -> None:
    unknown = [m for m in (record.members or {}).values() if m.state is ActionState.UNKNOWN]
    if unknown:
        keys = [member.key for member in unknown]
        asking.supersede(turn, run, keys)
        fault = Fault("node.lost", "the others sufficed, so nobody waits for this node's word")
        _end_many(turn, run, keys, ActionState.FAILED, fault)
    if isinstance(verdict, Fault):
        if run.state is RunState.CANCELLING:
            end_one(turn, run, record, ActionState.CANCELLED, _CANCELLED)
            after_end(turn, run, record)
        else:
            fail(turn, run, record, verdict)
    else:
        end_one(turn, run, record, ActionState.COMPLETED, None)
        after_end(turn, run, record)


def wait_again(turn: Turn, run: RunRecord, record: ActionRecord, reasons: dict[str, str]) -> None:
    """The unit has no dispatch any more and looks for a node again."""
    turn.change(c.ActionWaiting(turn.at_ms, turn.cause, run.run, record.key, reasons))
    if record.undoes and run.state is not RunState.CANCELLING:
        undo_next(turn, run)
    elif run.starting:
        seek(turn, run, record)
    else:
        end_waiting(turn, run)


def fail(turn: Turn, run: RunRecord, record: ActionRecord, fault: Fault) -> None:
    """The unit failed without a result of its own; on_error says what that means."""
    end(turn, run, record, failed_state(record), fault)


def break_off(turn: Turn, run: RunRecord, record: ActionRecord, fault: Fault) -> None:
    """The unit cannot go on: it failed, but what could not be undone is a person's question, and
    meanwhile the next compensation runs."""
    if record.undoes and run.state is not RunState.CANCELLING:
        asking.ask_compensation(turn, run, record, fault)
        undo_next(turn, run)
    else:
        fail(turn, run, record, fault)


def failed_state(record: ActionRecord) -> ActionState:
    """What a failed unit becomes: an action with on_error skip counts as skipped."""
    if record.action.on_error == "skip" and record.parent is None and not record.undoes:
        return ActionState.SKIPPED
    return ActionState.FAILED


def after_end(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    """A unit has just ended: release, skip, abort or undo what depends on that; end the run."""
    if run.state in RUN_ENDED:
        return
    if record.parent is not None:
        if record.state is ActionState.FAILED:
            _stop_rolling(turn, run, record.parent)
        advance(turn, run, record.parent)
        return
    completed = record.state is _COMPLETED
    if completed and record.call.remembers:
        _remember(turn, run, record)
    if record.undoes:
        undo_next(turn, run)
        return
    if completed or record.satisfied:
        if run.sequence is None:
            for gate in record.opens:
                if not gate.remaining:
                    _open(turn, run, gate)
    elif record.state is ActionState.SKIPPED:
        skip_descendants(turn, run, record)
    elif record.state is ActionState.FAILED and run.state is not RunState.CANCELLING:
        if record.action.on_error == "rollback":
            turn.change(c.RollbackDue(turn.at_ms, turn.cause, run.run, record.key))
        if run.starting:
            abort(turn, run, record.key, record.fault or Fault("internal", ""))
    if run.sequence is not None or run.waves is not None:
        _release_in_order(turn, run, record)
    if not run.open:
        finish_if_done(turn, run)


def _release_in_order(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    if not run.starting:
        return
    if run.sequence is not None:
        _release_next(turn, run)
    elif run.waves is not None and not run.waves[record.wave]:
        release_open(turn, run)


def _remember(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    wanted = record.action.memory
    if wanted is not None and wanted.write_key is not None and record.fault is None:
        key, by = wanted.write_key, f"{run.run}/{record.key}"
        if not memory.write(turn, session_of(run), key, record.result, by):
            fault = Fault("memory.too_large", f"the result of {by} is too large for memory")
            turn.command(ReportRefusal(record.worked_on, fault))


def abort(turn: Turn, run: RunRecord, action: str, fault: Fault) -> None:
    """Nothing new starts; what runs may end; the rest is skipped."""
    turn.change(c.RunAborting(turn.at_ms, turn.cause, run.run, fault, action))
    end_waiting(turn, run)


def end_waiting(turn: Turn, run: RunRecord) -> None:
    """All that waits ends, since nothing new starts any more: skipped, or cancelled with the run.

    What failed and waited for its next try has failed.
    """
    cancelling = run.state is RunState.CANCELLING
    waiting = [
        record
        for record in run.units.values()
        if record.state in _WAITING
        and record.key not in run.compensation_only
        and (cancelling or not record.undoes)
        and (record.state is ActionState.AWAITING_APPROVAL or not members.suffice(record))
    ]
    asking.supersede(turn, run, {record.key for record in waiting})
    if cancelling:
        _end_many(turn, run, [r.key for r in waiting], ActionState.CANCELLED, _CANCELLED)
    else:
        tried = [record for record in waiting if record.failures]
        for record in tried:
            end_one(turn, run, record, ActionState.FAILED, record.fault)
        untried = [record.key for record in waiting if not record.failures]
        _end_many(turn, run, untried, ActionState.SKIPPED, _why_skipped(run))
    for record in run.actions.values():
        if record.members is not None and not record.ended:
            advance(turn, run, record)
    finish_if_done(turn, run)


def _why_skipped(run: RunRecord) -> Fault:
    if run.aborting is not None and run.aborting.code == "run.expired":
        return run.aborting
    return _DEPENDENCY


def skip_descendants(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    """What can now never start is skipped."""
    names = descendants(run.actions, record)
    _end_many(turn, run, names, ActionState.SKIPPED, _DEPENDENCY)


def end(turn: Turn, run: RunRecord, record: ActionRecord, new: ActionState, fault: Fault) -> None:
    """The unit ends without a result of its own; members that have not begun never will."""
    rest = [m.key for m in (record.members or {}).values() if m.state in _WAITING]
    asking.supersede(turn, run, rest)
    _end_many(turn, run, rest, ActionState.SKIPPED, _LEFT_OUT)
    end_one(turn, run, record, new, fault)
    after_end(turn, run, record)


def end_one(
    turn: Turn, run: RunRecord, record: ActionRecord, new: ActionState, fault: Fault | None
) -> None:
    turn.change(c.ActionEnded(turn.at_ms, turn.cause, run.run, record.key, new, fault))


def _end_many(turn: Turn, run: RunRecord, keys: list[str], new: ActionState, fault: Fault) -> None:
    if keys:
        turn.change(c.ActionsEnded(turn.at_ms, turn.cause, run.run, tuple(keys), new, fault))


def end_cancelled(turn: Turn, run: RunRecord, keys: list[str], fault: Fault) -> None:
    """Units whose node confirmed, or never had, what was to be stopped."""
    _end_many(turn, run, keys, ActionState.CANCELLED, fault)
    for key in keys:
        whole = run.units[key].parent
        if whole is not None:
            advance(turn, run, whole)
    finish_if_done(turn, run)


def undo_next(turn: Turn, run: RunRecord) -> None:
    """The next undoing may begin, once what goes on now is settled; `settling` looks."""
    turn.ready.append((run, None))


def finish_if_done(turn: Turn, run: RunRecord) -> None:
    """Undo what must be undone, and end the run when its last unit has ended."""
    if run.open or run.ended:
        return
    if run.rollbacks and run.compensations is None and run.state is not RunState.CANCELLING:
        undo_next(turn, run)
        return
    if any(not run.units[key].ended for key in run.compensations or ()):
        return
    cancelling = run.state is RunState.CANCELLING
    if (run.aborting is None and not cancelling) or _came_too_late(run):
        end_run(turn, run, RunState.COMPLETED, None)
    elif cancelling:
        end_run(turn, run, RunState.CANCELLED, None)
    else:
        end_run(turn, run, RunState.FAILED, run.aborting)


def _came_too_late(run: RunRecord) -> bool:
    """Whether the abort or cancel stopped nothing, and everything ended well all the same."""
    return not run.cut_short and all(
        record.satisfied or record.state is ActionState.SKIPPED
        for record in run.actions.values()
        if record.key not in run.compensation_only
    )


def end_run(
    turn: Turn, run: RunRecord, new: RunState, fault: Fault | None, *, unconfirmed: bool = False
) -> None:
    """Close what only undoes, then the run."""
    for name in sorted(run.compensation_only):
        _end_compensating(turn, run, run.actions[name])
    pending = run.compensation_pending or (bool(run.rollbacks) and run.compensations is None)
    turn.change(c.RunEnded(turn.at_ms, turn.cause, run.run, new, fault, unconfirmed, pending))


def _end_compensating(turn: Turn, run: RunRecord, record: ActionRecord) -> None:
    """What an action that only undoes became in the end: what its uses became."""
    units = map(run.units.__getitem__, run.compensations or ())
    uses = [u for u in units if u.action.id == record.key and u.undo_params is None]
    if not uses:
        end_one(turn, run, record, ActionState.SKIPPED, _UNUSED)
    elif all(unit.state is ActionState.COMPLETED for unit in uses):
        end_one(turn, run, record, ActionState.COMPLETED, None)
    else:
        fault = next(unit.fault for unit in uses if unit.state is not ActionState.COMPLETED)
        end_one(turn, run, record, ActionState.FAILED, fault)
