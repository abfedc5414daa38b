"""The agent around its core: performs what the core asks for, and tells it what happened.

The one rule: the shell decides nothing. What is sent is sealed while the commit runs and leaves
after it; then drivers start, in the order asked for. Only repeatable work starts before.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imlmesh_node import health
from imlmesh_node.core import commands
from imlmesh_node.core.changes import Bulk, ResultRecord
from imlmesh_node.core.commands import Command
from imlmesh_node.executor import Executor
from imlmesh_node.inbox import Inbox, Refusals
from imlmesh_node.outbox import Letter, Outbox
from imlmesh_node.presence import Presence
from imlmesh_node.sizes import measure, packed_bytes
from imlmesh_node.witness import Witness
from imlmesh_protocol.limits import BATCH_BYTES, MESSAGE_VALUES, Timing
from imlmesh_protocol.manifest import Manifest
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.trust import HeldTrust

#: read(dispatch, index, done): calls done with that chunk of a result
ReadChunk = Callable[[str, int, Callable[[bytes], None]], None]

# below this many bytes a result cannot hold enough values to matter
_FEW_BYTES = 128


@dataclass(frozen=True, slots=True)
class Birth:
    """What a node says of itself when it comes; `folder` is the one whose disk is watched, `held` whose
    version it tells, `journal_since` the boot that began its journal."""

    manifest: Callable[[], Manifest]
    profile: Callable[[], str]
    timing: Timing
    folder: Path
    held: HeldTrust
    simulated: bool = False
    journal_since: Callable[[], int] = lambda: 1

    def fields(self) -> dict[str, Any]:
        manifest = self.manifest()
        return {
            "state": "online",
            "manifest": manifest.to_wire(),
            "facts": health.facts(manifest.modules) | self._simulation(),
            "profile": self.profile(),
            "heartbeat_ms": self.timing.heartbeat_ms,
            "lost_ms": self.timing.lost_ms,
            "trust": self.held.trust.version,
            "roster": self.held.roster.version if self.held.roster else 0,
            "journal_since": self.journal_since(),
        }

    def _simulation(self) -> dict[str, bool]:
        """A fact that selectors can ask for; only a simulated node has it."""
        return {"simulated": True} if self.simulated else {}


class Performer:
    """Performs commands for the engine; `gone` is set when the goodbye has left."""

    def __init__(
        self,
        outbox: Outbox,
        executor: Executor,
        birth: Birth,
        refusals: Refusals,
        read_chunk: ReadChunk,
        spool_health: Callable[[], dict[str, int]],
        witness: Witness,
    ) -> None:
        self._spool_health = spool_health
        self._witness = witness
        self._outbox = outbox
        self._read_chunk = read_chunk
        self._executor = executor
        self._birth = birth
        self._refusals = refusals
        self._after: list[Command] = []
        self.gone = asyncio.Event()
        #: asks the guard about a dispatch of the core's own
        self.check: Callable[[commands.CheckDispatch], None] = lambda command: None
        self._letters: dict[type, Callable[[Any], Letter]] = {
            commands.SendStatus: self._status,
            commands.SendHeartbeat: self._heartbeat,
            commands.SendInventory: self._inventory,
            commands.SendReject: self._reject,
            commands.SendAccept: self._accept,
            commands.Escalate: self._escalate,
        }

    def early(self, asked: Sequence[Command]) -> Sequence[Command]:
        rest: list[Command] = []
        for command in asked:
            if type(command) is commands.RunDriver and command.early:
                self._executor.run(command.dispatch)
            else:
                rest.append(command)
        return rest

    def ahead(self, asked: Sequence[Command]) -> Sequence[Command]:
        results: list[ResultRecord] = []
        rest: list[Command] = []
        for command in asked:
            if type(command) is commands.SendComplete and command.early:
                results.extend(command.results)
            else:
                rest.append(command)
        self._outbox.prepare(_completes(results))
        self._outbox.release()
        return rest

    def prepare(self, asked: Sequence[Command]) -> None:
        letters: list[Letter] = []
        last: list[Letter] = []
        results: list[ResultRecord] = []
        for command in asked:
            kind = type(command)
            if kind is commands.SendComplete:
                results.extend(command.results)  # type: ignore[union-attr]
            elif kind in self._letters:
                goodbye = kind is commands.SendStatus and command.state == "offline"  # type: ignore[union-attr]
                (last if goodbye else letters).append(self._letters[kind](command))
            else:
                self._after.append(command)
        letters += _completes(results)
        self._outbox.prepare(letters + last)
        if last:
            self._after.append(commands.SendStatus("offline"))

    def release(self) -> None:
        self._outbox.release()
        after, self._after = self._after, []
        for command in after:
            match command:
                case commands.RunDriver():
                    self._executor.run(command.dispatch)
                case commands.KillDriver():
                    self._executor.kill(command.dispatch, command.reason)
                case commands.CheckDispatch():
                    self.check(command)
                case commands.NoteRefusal():
                    self._refusals.note(command.fault.code, command.fault.message)
                case commands.SendChunk():
                    self._send_chunk(command)
                case commands.SendStatus():
                    self.gone.set()

    def _send_chunk(self, command: commands.SendChunk) -> None:
        """The journal holds it, so it leaves when that has been read."""

        def read(data: bytes) -> None:
            item = _head(command.result)
            item["chunk"] = _chunk(command.bulk, command.index, data)
            self._outbox.send(Letter(Kind.COMPLETE, {"results": [item]}))

        self._read_chunk(command.result.dispatch, command.index, read)

    def _status(self, command: commands.SendStatus) -> Letter:
        if command.state != "online":
            return Letter(Kind.STATUS, {"state": command.state}, retain=True)
        self._refusals.tell_soon()
        fields = self._birth.fields() | {"permits": dict(command.permits)}
        return Letter(Kind.STATUS, fields, retain=True)

    def _heartbeat(self, command: commands.SendHeartbeat) -> Letter:
        fields: dict[str, Any] = {"beat": command.beat, "held": list(command.held)}
        fields["health"] = health.health(self._birth.folder) | self._spool_health()
        if self._witness.document is not None:
            fields["seal"] = self._witness.document
        return Letter(Kind.HEARTBEAT, fields)

    def _inventory(self, command: commands.SendInventory) -> Letter:
        fields = {
            "what": "inventory",
            "nonce": command.nonce,
            "held": list(command.held),
            "unsettled": list(command.unsettled),
        }
        return Letter(Kind.RESPONSE, fields)

    def _reject(self, command: commands.SendReject) -> Letter:
        refusals = [
            {"id": id, "code": fault.code, "message": fault.message}
            for id, fault in command.refusals
        ]
        return Letter(Kind.REJECT, {"refusals": refusals})

    def _escalate(self, command: commands.Escalate) -> Letter:
        fault = command.fault
        return Letter(Kind.ESCALATE, {"code": fault.code, "message": fault.message})

    def _accept(self, command: commands.SendAccept) -> Letter:
        fields: dict[str, Any] = {"dispatches": [list(pair) for pair in command.pairs]}
        if command.started:
            fields["started"] = list(command.started)
        return Letter(Kind.ACCEPT, fields)


def _completes(results: Sequence[ResultRecord]) -> list[Letter]:
    return [Letter(Kind.COMPLETE, {"results": batch}) for batch in batches(results)]


def batches(results: Sequence[ResultRecord]) -> list[list[dict[str, Any]]]:
    """The results as they travel, in lists that fit one message each."""
    made: list[list[dict[str, Any]]] = []
    size = values = 0
    for result in results:
        item = _item(result)
        item_size = packed_bytes(item)
        # a value takes at least a byte
        item_values = item_size if item_size < _FEW_BYTES else measure(item)[1]
        if (
            not made
            or size + item_size > BATCH_BYTES
            or values + item_values > MESSAGE_VALUES - _FEW_BYTES
        ):
            made.append([])
            size = values = 0
        made[-1].append(item)
        size += item_size
        values += item_values
    return made


def _chunk(bulk: Bulk, index: int, data: bytes) -> dict[str, Any]:
    return {"index": index, "count": bulk.chunks, "hash": bulk.sha256, "data": data}


def _head(result: ResultRecord) -> dict[str, Any]:
    return {
        "id": result.dispatch,
        "hash": result.hash,
        "outcome": result.outcome,
        "duration_ms": result.duration_ms,
    }


def _item(result: ResultRecord) -> dict[str, Any]:
    item = _head(result)
    if result.error is None:
        item["result"] = result.result
    else:
        item["error"] = {"code": result.error.code, "message": result.error.message}
    return item


class LinkShell:
    """What the link tells the agent."""

    def __init__(self, presence: Presence, inbox: Inbox, turn_now: Callable[[], None]) -> None:
        self._presence = presence
        self._inbox = inbox
        self._turn_now = turn_now

    def will(self) -> Will | None:
        return self._presence.begin()

    def link_up(self) -> None:
        self._presence.link_up()

    def link_down(self, reason: str) -> None:
        self._presence.link_down(reason)

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        self._inbox.take(topic, payload, retained)

    def handed_over(self) -> None:
        self._turn_now()
