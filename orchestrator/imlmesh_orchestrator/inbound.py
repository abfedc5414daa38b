"""What nodes say becomes events of the core, or a counted refusal.

The one rule: nothing is believed before its signature, and nothing here decides. Time requests
are answered at once, even those that come out of order, of which nothing else comes; log lines and
progress go to watchers alone; telemetry comes back by `telemetry` when there is time for it. An old or
repeated status is a hint that the node exists, answered by asking it to introduce itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from imlmesh_orchestrator.assembly import Assembly
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core import evidence
from imlmesh_orchestrator.quiet import Quiet
from imlmesh_orchestrator.share import Shares
from imlmesh_orchestrator.stream import Stream
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CODES, Fault, MeshError, ProtocolError, TrustError
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.manifest import PROFILES, manifest_from_wire
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.envelope import Opener
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.topics import Kind, Topic, Way, is_telemetry
from imlmesh_runtime.clock import Clock

#: what a message that its sender alone can have caused is evidence of
_EVIDENCE = {
    "message.invalid": evidence.MALFORMED,
    "message.kind": evidence.MALFORMED,
    "dispatch.unknown": evidence.MALFORMED,
    "message.two_senders": evidence.TAKEOVER,
    "message.expired": evidence.AHEAD,
}
#: what a retained status looks like when it comes again
_HINTS = frozenset({"message.expired", "message.replayed"})

# before the name of what saw something, such as a pin
_SOURCE = "source/"


class Heard(Protocol):
    """Where what was believed goes."""

    def post(self, event: e.Event) -> None:
        """To the core."""
        ...

    def post_quiet(self, make_event: Callable[[], e.Event | None]) -> None:
        """To the core, behind everything that is about actions."""
        ...

    def answer(self, node: str, kind: Kind, fields: dict[str, Any]) -> None:
        """Straight back to the node."""
        ...

    def alias(self, node: str) -> str:
        """What people call an enrolled node."""
        ...

    def is_live(self, node: str) -> bool:
        """Whether the node has a session now."""
        ...

    def last_boot(self, node: str) -> int:
        """The boot of the last birth that is stored of this node; 0 without."""
        ...

    def asked(self, node: str, obeys: int) -> None:
        """A believed question for the time, and the epoch that the node obeys if it refused an older one."""
        ...

    def born(self, node: str, fields: Mapping[str, Any]) -> None:
        """What a node says of itself when it is born."""
        ...

    def beat(self, event: e.HeartbeatArrived) -> None:
        """A believed heartbeat, to be kept."""
        ...

    def witnessed(self, node: str, seal: bytes | None) -> None:
        """A believed heartbeat names this seal of the ledger, or none."""
        ...

    def telemetry_came(self, topic: Topic, payload: bytes) -> None:
        """A message to be given to `Inbound.telemetry` behind everything else."""
        ...

    def measured(self, node: str, name: str, fields: Mapping[str, Any], at_ms: int) -> None:
        """Believed readings about `name`, to be kept as far as they make sense."""
        ...


class Inbound:
    """Reads every message of the link."""

    def __init__(self, opener: Opener, clock: Clock, stream: Stream, heard: Heard) -> None:
        self._opener = opener
        self._clock = clock
        self._stream = stream
        self._heard = heard
        self._assembly = Assembly()
        #: when each node was last told the time, and who was heard to follow it
        self._told_ms: dict[str, int] = {}
        self._follow: set[str] = set()
        self._late = Shares(limits.TIME_LATE_PER_S, limits.TIME_LATE_AT_ONCE)
        self._quiet = Quiet()
        self._read: dict[Kind, Callable[[Topic, Message, int], e.Event | None]] = {
            Kind.STATUS: self._status,
            Kind.ACCEPT: _accept,
            Kind.REJECT: _reject,
            Kind.COMPLETE: self._complete,
            Kind.RESPONSE: _response,
            Kind.EVENT: self._event,
            Kind.ESCALATE: _escalation,
        }

    def message(self, topic: str, payload: bytes, retained: bool = False) -> None:
        """One message as it came; never raises for what a peer did."""
        at_ms = self._clock.now_ms()
        try:
            parsed = topics.received(topic, retained)
            if parsed.way is not Way.FROM:
                raise ProtocolError("message.kind", f"no node writes to {topic[:200]!r}")
            if parsed.name in topics.PROBES:
                return  # a probe asks the broker, not us
            if parsed.kind is Kind.STATUS and not payload:
                return  # what the broker kept of a removed node was cleared
            if parsed.kind is Kind.HEARTBEAT:
                self._heartbeat(parsed, payload)
                return
            if is_telemetry(parsed.channel):
                self._heard.telemetry_came(parsed, payload)
                return
            if parsed.kind is Kind.REQUEST:
                self._request(parsed, payload, at_ms)
                return
            message = self._opener.open(parsed, payload, at_ms)
            self._follow.add(parsed.name)
            event = self._understand(parsed, message, at_ms)
        except MeshError as exc:
            if not (retained and exc.code in _HINTS):  # when we come, all are asked who is there
                self._refuse(at_ms, topic, exc)
            return
        if event is not None:
            self._heard.post(event)

    def _understand(self, topic: Topic, message: Message, at_ms: int) -> e.Event | None:
        try:
            return self._read[topic.kind](topic, message, at_ms)
        except MeshError as exc:
            raise _stamped(exc, message) from None

    def telemetry(self, topic: Topic, payload: bytes) -> None:
        """One message of telemetry, now that its turn has come."""
        at_ms = self._clock.now_ms()
        try:
            message = self._opener.open(topic, payload, at_ms)
            if message.channel == topics.REFUSALS:
                self._refused_there(message, at_ms)
            elif "readings" in message.fields:
                name = message.channel.partition("/")[2]
                self._heard.measured(message.iss, name, message.fields, at_ms)
            else:
                error = ProtocolError("message.invalid", f"{message.id[:80]} holds no readings")
                error.sender = message.iss
                raise error
        except MeshError as exc:
            place = topics.from_node(topic.mesh, topic.name, topic.kind, topic.channel)
            self._refuse(at_ms, place, exc)

    def _refuse(self, at_ms: int, topic: str, error: MeshError) -> None:
        if error.code in _HINTS and topic.endswith("/status"):
            node = topics.parse(topic).name
            if not self._heard.is_live(node):
                self._heard.answer(node, Kind.COMMAND, {"do": "rebirth"})
            return
        place = {"topic": topic[:200]} | ({"node": error.sender} if error.sender else {})
        self._stream.refusal(at_ms, place, error.code, error.message)
        kind = _EVIDENCE.get(error.code) if error.sender and error.stamp else None
        if kind is not None and (kind != evidence.AHEAD or self._knows_time(error.sender, at_ms)):
            self._heard.post(_evidence(at_ms, kind, error))

    def _knows_time(self, node: str, at_ms: int) -> bool:
        """Whether a node was told our time long enough ago for what it wrote before to be gone, and that
        it heard the answer: it is not to blame for a clock of ours that was put back while we were away."""
        told_ms = self._told_ms.get(node)
        if told_ms is None or node not in self._follow:
            return False
        return at_ms - told_ms > limits.TIME_KNOWN_MS

    def _heartbeat(self, topic: Topic, payload: bytes) -> None:
        size, came_ms = len(payload), self._clock.now_ms()
        self._quiet.came(topic.name, size)

        def opened() -> e.Event | None:
            at_ms = self._clock.now_ms()
            if self._quiet.read(topic.name, size, at_ms, at_ms - came_ms):
                self._heard.post(e.StoodStill(at_ms, "beats", at_ms - came_ms))
            self._assembly.expire(at_ms)
            try:
                message = self._opener.open(topic, payload, at_ms)
            except MeshError as exc:
                self._refuse(at_ms, topics.from_node(topic.mesh, topic.name, topic.kind), exc)
                return None
            body = message.fields
            event = e.HeartbeatArrived(
                at_ms,
                message.id,
                message.iss,
                message.term,
                message.session,
                body["beat"],
                tuple(body["held"]),
                body["health"],
            )
            self._heard.beat(event)
            self._heard.witnessed(event.node, body.get("seal"))
            return event

        self._heard.post_quiet(opened)

    def _status(self, topic: Topic, message: Message, at_ms: int) -> e.Event:
        state = message.fields["state"]
        if state == "online":
            birth = _birth(message, at_ms, self._heard.alias(message.iss))
            self._heard.born(message.iss, message.fields)
            return birth
        made_by = e.NodeLeft if state == "offline" else e.NodeGone
        return made_by(at_ms, message.id, message.iss, message.term, message.session)

    def _request(self, topic: Topic, payload: bytes, at_ms: int) -> None:
        """Tell the time; to another start than the one whose birth was taken last also which one that was,
        to who forgot how far it counted the boot that it must exceed."""
        message, late = self._opener.open_question(topic, payload, at_ms)
        node = message.iss
        if late is not None and not self._late.take(node, 1, at_ms):
            raise late
        if message.fields["what"] != "time":
            error = ProtocolError("message.kind", "a node asks for time alone")
            raise late or _stamped(error, message)
        fields = {"what": "time", "nonce": message.fields["nonce"], "at_ms": at_ms}
        stored = self._heard.last_boot(node)
        if late is not None or message.term < stored:
            fields["boot"] = max(stored, self._opener.last_term(node))
        elif 0 < stored < message.term:
            fields["boot"] = stored
        self._heard.answer(node, Kind.RESPONSE, fields)
        if late is not None:
            raise late
        self._told_ms[node] = at_ms
        self._heard.asked(node, message.fields.get("obeys", 0))

    def _complete(self, topic: Topic, message: Message, at_ms: int) -> e.Event | None:
        items = message.fields["results"]
        pieces = [item for item in items if "chunk" in item]
        whole = [item for item in items if "chunk" not in item] if pieces else items
        results = [_result(item) for item in whole]
        for item in pieces:
            results += self._assemble(message.iss, item, at_ms)
        return e.ResultsArrived(at_ms, message.id, message.iss, tuple(results)) if results else None

    def _assemble(self, node: str, item: Mapping[str, Any], at_ms: int) -> list[e.Result]:
        """The result that is whole with this chunk, if it is; else the node is told what is missing."""
        if split_dispatch(item["id"])[2] != node:
            raise TrustError("dispatch.unknown", f"{node} speaks of {item['id'][:120]}")
        index = self._assembly.take(node, item, at_ms)
        if index is not None:
            wants = {"beat": None, "settled": [], "wants": [[item["id"], index]]}
            self._heard.answer(node, Kind.ACK, wants)
            return []
        return [_result({**item, "result": self._assembly.value(node, item)})]

    def _event(self, topic: Topic, message: Message, at_ms: int) -> None:
        """Log lines, progress, and what sources saw."""
        if message.channel.startswith(_SOURCE):
            name = message.channel.removeprefix(_SOURCE)
            values = _few_and_plain(message.fields.get("values", {}))
            seen = {"at_ms": at_ms, "node": message.iss, "source": name, "values": values}
            self._stream.source(seen)
        if message.channel not in topics.CHANNELS:
            return
        body = message.fields
        dispatch = body.get("dispatch", "")
        run, action, node, _ = split_dispatch(dispatch)
        if node != message.iss:
            raise TrustError("dispatch.unknown", f"{message.iss} speaks of {dispatch[:120]}")
        data = {"at_ms": at_ms, "run": run, "action": action, "node": node, "dispatch": dispatch}
        if message.channel == "log":
            data |= {"stream": body.get("stream", "log"), "line": body.get("line", "")}
            data["line"] = data["line"][: limits.LOG_LINE_BYTES]
            self._stream.log_line(run, data)
        else:
            data |= {"fraction": body.get("fraction"), "message": body.get("message", "")}
            data["message"] = data["message"][: limits.PROGRESS_CHARS]
            self._stream.progress(run, data)

    def _refused_there(self, message: Message, at_ms: int) -> None:
        """Codes that a node counts; only known ones, or a node could grow our counters."""
        values = message.fields.get("values", {})
        counts = {code: n for code, n in values.items() if code in CODES and type(n) is int}
        self._stream.refused_there(at_ms, message.iss, counts)


def _stamped(error: MeshError, message: Message) -> MeshError:
    """Its sender is to blame for it."""
    error.sender, error.stamp = message.iss, (message.term, message.session, message.seq)
    return error


def _evidence(at_ms: int, kind: str, error: MeshError) -> e.EvidenceSeen:
    # of a session that speaks for a second machine all messages are one sighting
    parts = error.stamp[:2] if kind == evidence.TAKEOVER else error.stamp
    mark, text = ".".join(map(str, parts)), f"{error.code}: {error.message}"
    return e.EvidenceSeen(at_ms, f"{error.sender}.{mark}", error.sender, kind, text, mark)


def _few_and_plain(values: dict[str, Any]) -> dict[str, Any]:
    """What a source saw, as watchers get it; `message.invalid` when it is more than a few scalars."""
    plain = all(
        type(value) in (int, float, bool, type(None))
        or (type(value) is str and len(value) <= limits.SOURCE_TEXT_CHARS)
        for value in values.values()
    )
    if not plain or len(values) > limits.SOURCE_VALUES:
        text = f"a source tells at most {limits.SOURCE_VALUES} plain values"
        raise ProtocolError("message.invalid", text)
    return values


def _birth(message: Message, at_ms: int, alias: str) -> e.NodeBirth:
    body = message.fields
    missing = {"manifest", "facts", "profile", "heartbeat_ms", "lost_ms"} - body.keys()
    if missing:
        raise ProtocolError("message.invalid", f"a birth lacks {', '.join(sorted(missing))}")
    if body["profile"] not in PROFILES:
        raise ProtocolError("message.invalid", f"no such profile: {body['profile'][:40]!r}")
    timing = limits.Timing(body["heartbeat_ms"], body["lost_ms"])
    if timing not in limits.TIMINGS.values():
        raise ProtocolError("message.invalid", f"no such timing: {timing}")
    return e.NodeBirth(
        at_ms,
        message.id,
        message.iss,
        alias,
        message.term,
        message.session,
        manifest_from_wire(body["manifest"]),
        body["facts"],
        body["profile"],
        body["heartbeat_ms"],
        body["lost_ms"],
        body.get("journal_since", 0),
        body.get("permits", {}),
    )


def _accept(topic: Topic, message: Message, at_ms: int) -> e.Event:
    body = message.fields
    dispatches = tuple((name, digest) for name, digest in body["dispatches"])
    started = tuple(body.get("started", ()))
    return e.AcceptArrived(at_ms, message.id, message.iss, dispatches, started)


def _reject(topic: Topic, message: Message, at_ms: int) -> e.Event:
    refusals = tuple((item["id"], _fault(item)) for item in message.fields["refusals"])
    return e.RejectArrived(at_ms, message.id, message.iss, refusals)


def _result(item: Mapping[str, Any]) -> e.Result:
    return e.Result(
        item["id"],
        item["hash"],
        item["outcome"],
        item["duration_ms"],
        item.get("result"),
        _fault(item["error"]) if "error" in item else None,
    )


def _escalation(topic: Topic, message: Message, at_ms: int) -> e.Event:
    fault = Fault(message.fields["code"], message.fields["message"][: limits.FAULT_CHARS])
    if fault.code not in CODES:
        raise ProtocolError("message.invalid", f"no such code: {fault.code[:80]!r}")
    return e.EscalationArrived(at_ms, message.id, message.iss, fault)


def _response(topic: Topic, message: Message, at_ms: int) -> e.Event:
    body = message.fields
    if body["what"] != "inventory":
        raise ProtocolError("message.kind", "a node answers for its inventory alone")
    held, unsettled = tuple(body.get("held", ())), tuple(body.get("unsettled", ()))
    return e.InventoryArrived(at_ms, message.id, message.iss, body["nonce"], held, unsettled)


def _fault(item: Mapping[str, Any]) -> Fault:
    return Fault(item["code"], item["message"])
