"""The memory of sessions: what plans and people write, and what makes room for it.

The one rule: it is bounded as a whole; the oldest-written values go first, and every one that goes
is a change of its own.
"""

from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.commands import Refuse, Reply
from imlmesh_orchestrator.core.events import MemoryDeleteAsked, MemorySet
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.wire.codec import pack


def write(turn: Turn, session: str, key: str, value: Any, by: str) -> bool:
    """Keep a value, and let go of the oldest ones that do not fit beside it.

    False when it is too large: then nothing stands under its key, rather than what it replaces, and
    that is told even where nothing stood.
    """
    size = len(pack(value))
    if size > limits.MEMORY_VALUE_BYTES:
        turn.change(c.MemoryDropped(turn.at_ms, turn.cause, session, key, by))
        return False
    turn.change(c.MemoryWritten(turn.at_ms, turn.cause, session, key, value, size, by))
    state = turn.state
    while len(state.memory) > 1 and (
        len(state.memory) > limits.MEMORY_KEYS or state.memory_bytes > limits.MEMORY_BYTES
    ):
        old_session, old_key = next(iter(state.memory))
        turn.change(c.MemoryDropped(turn.at_ms, turn.cause, old_session, old_key, by))
    return True


def put(turn: Turn, event: MemorySet) -> None:
    """A person's value."""
    if write(turn, event.session, event.key, event.value, event.by):
        turn.command(Reply(event.cause, event.key))
    else:
        fault = Fault("memory.too_large", f"at most {limits.MEMORY_VALUE_BYTES:,} bytes")
        turn.command(Refuse(event.cause, fault))


def delete(turn: Turn, event: MemoryDeleteAsked) -> None:
    """A person takes a value away."""
    if (event.session, event.key) not in turn.state.memory:
        text = f"session {event.session} has no key {event.key}"
        turn.command(Refuse(event.cause, Fault("memory.not_found", text)))
        return
    turn.change(c.MemoryDropped(turn.at_ms, turn.cause, event.session, event.key, event.by))
    turn.command(Reply(event.cause, event.key))
