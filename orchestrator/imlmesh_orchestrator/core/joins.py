"""Who joins: by a token at once, without one when a person says so, or while the door is open.

The one rule: more than local_worker waits for a person, whatever token came along; so does whatever
exceeds the token. Deliberately absent: proofs and codes, which are checked before an event is made.
"""

from collections.abc import Iterable

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_orchestrator.core import tokens
from imlmesh_orchestrator.core.commands import Refuse, Reply
from imlmesh_orchestrator.core.enrolment import fault_of
from imlmesh_orchestrator.core.joining_state import JoinRecord
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.manifest import PROFILES
from imlmesh_protocol.states import Liveness

#: what the one who asked hears
IN, WAITS = "in", "waits"
#: what nobody is let in with unseen
_MOST = "local_worker"
_GONE = frozenset({Liveness.LOST, Liveness.OFFLINE})


def ask(turn: Turn, event: e.JoinAsked) -> None:
    """Let the node in, or hold it for a person, or refuse it.

    Whoever is in already hears so again: its answer was lost. So does who waits already by a token.
    That costs no use of a token.
    """
    state = turn.state
    if state.identities.get(event.identity) == event.node:
        turn.command(Reply(event.cause, IN))
        return
    if event.token and event.proven and _waits_already(turn, event):
        turn.command(Reply(event.cause, WAITS))
        return
    fault = tokens.check(turn, event) if event.token else None
    fault = fault or fault_of(state, event.node, event.node, event.identity)
    if fault is None and state.ignored.get(event.identity, 0) > turn.at_ms:
        fault = Fault("join.ignored", f"{event.node} is ignored here")
    if fault is None:
        fault = _decide(turn, event)
    if fault is not None:
        turn.command(Refuse(event.cause, fault))


def _decide(turn: Turn, event: e.JoinAsked) -> Fault | None:
    state = turn.state
    if event.token:
        record = state.tokens[event.token]
        profile, groups = event.profile or record.profile, record.groups
        allowed, by = record.profile, f"token {record.token}"
    elif event.code:
        profile, groups = event.profile or _MOST, ()
        allowed, by = _door(turn)
    else:
        held = state.joins.get(event.identity)
        if held is None or held.expires_at_ms <= turn.at_ms:
            return Fault("join.expired", f"nobody waits here as {event.node}")
        profile, groups = held.profile, held.groups
        allowed, by = _door(turn)
    if allowed and PROFILES.index(profile) <= min(map(PROFILES.index, (allowed, _MOST))):
        _let_in(turn, event.node, event.node, event.identity, profile, by, groups)
        turn.command(Reply(event.cause, IN))
    else:
        if event.token or event.code:
            fault = _hold(turn, event, profile, groups)
            if fault is not None:
                return fault
        turn.command(Reply(event.cause, WAITS))
    if event.token:
        turn.change(j.TokenSpent(turn.at_ms, turn.cause, event.token, event.node))
    return None


def _waits_already(turn: Turn, event: e.JoinAsked) -> bool:
    """Whether this node proved a token for the same wish before, and a person has not answered yet."""
    held, token = turn.state.joins.get(event.identity), turn.state.tokens.get(event.token)
    if held is None or held.code or held.node != event.node or held.expires_at_ms <= turn.at_ms:
        return False
    return token is not None and held.profile == (event.profile or token.profile)


def _door(turn: Turn) -> tuple[str, str]:
    """What the open door lets in, and who opened it; nothing while it is closed."""
    state = turn.state
    by = f"the door that {state.opened_by} opened"
    since_ms = state.open_until_ms - limits.JOIN_OPEN_MS
    came = (each.by == by and each.at_ms > since_ms for each in state.enrolled.values())
    if state.open_until_ms <= turn.at_ms or sum(came) >= limits.JOIN_OPEN_NODES:
        return "", ""
    return _MOST, by


def _hold(turn: Turn, event: e.JoinAsked, profile: str, groups: tuple[str, ...]) -> Fault | None:
    others = [each for each in waiting(turn.state, turn.at_ms) if each.identity != event.identity]
    near = sum(each.address == event.address for each in others)
    if len(others) >= limits.JOIN_WAITING or near >= limits.JOIN_WAITING_OF_ADDRESS:
        return Fault("join.too_many", "too many nodes wait for a person already")
    turn.change(
        j.JoinHeld(
            turn.at_ms,
            turn.cause,
            event.identity,
            event.node,
            profile,
            event.code,
            groups,
            event.address,
            turn.at_ms + (limits.JOIN_WAITS_MS if event.code else limits.JOIN_PROVEN_WAITS_MS),
        )
    )
    return None


def answer(turn: Turn, event: e.JoinAnswered) -> None:
    """A person approves a waiting node, named by its id or its code, or ignores it."""
    found = _find(turn, event.name)
    if isinstance(found, Fault):
        turn.command(Refuse(event.cause, found))
        return
    if not event.approved:
        until_ms = turn.at_ms + limits.JOIN_IGNORED_MS
        turn.change(
            j.JoinIgnored(turn.at_ms, turn.cause, found.identity, found.node, event.by, until_ms)
        )
        turn.command(Reply(event.cause, (found.node, found.code)))
        return
    alias, fault = found.node, None
    if event.replaces:
        replaced = turn.state.find_id(event.replaces)
        fault = _not_replaced(turn.state, replaced, event.replaces)
        if fault is None and replaced is not None:
            alias = turn.state.alias_of(replaced)
    fault = fault or _unsaid(found, event) or fault_of(turn.state, *_names(found))
    if fault is not None:
        turn.command(Refuse(event.cause, fault))
        return
    if event.replaces and replaced is not None:
        retired = _free_alias(turn.state, alias)
        turn.change(j.NodeAliased(turn.at_ms, turn.cause, replaced, retired))
    profile = event.profile or found.profile
    _let_in(turn, found.node, alias, found.identity, profile, event.by, found.groups)
    turn.command(Reply(event.cause, (found.node, found.code)))


def open_door(turn: Turn, event: e.JoinWindowAsked) -> None:
    """For a while, or close it with 0."""
    until_ms = turn.at_ms + event.for_ms if event.for_ms else 0
    turn.change(j.JoinWindowSet(turn.at_ms, turn.cause, until_ms, event.by))
    turn.command(Reply(event.cause, until_ms))


def waiting(state: State, at_ms: int) -> list[JoinRecord]:
    """The nodes that wait for a person, the oldest first."""
    return [each for each in state.joins.values() if each.expires_at_ms > at_ms]


def _find(turn: Turn, name: str) -> JoinRecord | Fault:
    code = name.upper()
    everybody = waiting(turn.state, turn.at_ms)
    found = [each for each in everybody if each.code and each.code == code]
    found = found or [each for each in everybody if each.node == name]
    if not found:
        return Fault("join.not_found", f"no node waits as {name!r}")
    if len(found) > 1:
        codes = ", ".join(each.code or f"from {each.address}" for each in found)
        return Fault("join.ambiguous", f"several wait as {name!r}: {codes}")
    return found[0]


def _unsaid(found: JoinRecord, event: e.JoinAnswered) -> Fault | None:
    """Who proved no token may ask for more while a person looks: more than the usual is given to a
    code, which stands for one wish, or when it is said."""
    named = event.profile or (found.code and event.name.upper() == found.code)
    if named or not found.code or PROFILES.index(found.profile) <= PROFILES.index(_MOST):
        return None
    return Fault("join.profile", f"{found.node} asks to be {found.profile}")


def _names(found: JoinRecord) -> tuple[str, str, bytes]:
    return found.node, found.node, found.identity


def _not_replaced(state: State, old: str | None, name: str) -> Fault | None:
    if old is None:
        return Fault("node.not_found", f"no node {name!r}")
    node = state.nodes.get(old)
    if node is not None and node.liveness not in _GONE:
        return Fault("join.replaces", f"{node.alias} is {node.liveness}")
    return None


def _free_alias(state: State, alias: str) -> str:
    """What a replaced node is called from now on."""
    names = (f"{alias[:56]}-old{number or ''}" for number in range(limits.ENROLLED_NODES + 1))
    return next(name for name in names if state.find_id(name) is None)


def _let_in(
    turn: Turn,
    node: str,
    alias: str,
    identity: bytes,
    profile: str,
    by: str,
    groups: Iterable[str],
) -> None:
    turn.change(c.NodeEnrolled(turn.at_ms, turn.cause, node, alias, identity, profile, by))
    for group in groups:
        nodes = (*turn.state.groups.get(group, ()), node)
        turn.change(c.GroupChanged(turn.at_ms, turn.cause, group, nodes))
