"""What the orchestrator wants done, in the imperative. Performed only after the commit.

The one rule: a command carries all that is needed; the shell decides nothing.
"""

from dataclasses import dataclass
from typing import Any

from imlmesh_protocol.errors import Fault


@dataclass(slots=True)
class Command:
    pass


@dataclass(slots=True)
class SendDispatch(Command):
    """Travels with the other dispatches of this turn to the same node, in one delegate."""

    node: str
    dispatch: str
    bin: bytes


@dataclass(slots=True)
class SendAck(Command):
    """Answers a heartbeat and settles results; merged per node and turn."""

    node: str
    beat: int | None
    settled: tuple[str, ...]


@dataclass(slots=True)
class SendCancel(Command):
    node: str
    dispatches: tuple[str, ...]


@dataclass(slots=True)
class SendAdmission(Command):
    """Tell a node that it is in quarantine, or released; `do` is quarantine or release."""

    node: str
    do: str


@dataclass(slots=True)
class SendPermit(Command):
    """The permit of this body is signed and sent."""

    node: str
    body: bytes


@dataclass(slots=True)
class DropPermits(Command):
    """The node shall begin no run of these any more."""

    node: str
    permits: tuple[str, ...]


@dataclass(slots=True)
class AskInventory(Command):
    node: str
    nonce: str


@dataclass(slots=True)
class AskRebirth(Command):
    """Ask a node, or all of them (empty), to send its birth again."""

    node: str


@dataclass(slots=True)
class Reply(Command):
    """The answer to the request named by `cause`."""

    cause: str
    value: Any


@dataclass(slots=True)
class Refuse(Command):
    """The request named by `cause` cannot be met."""

    cause: str
    fault: Fault


@dataclass(slots=True)
class ReportRefusal(Command):
    """A node's message was believed but does not fit what we know; shown in `event tail`."""

    node: str
    fault: Fault
