"""Every error of imlmesh: one tree, one table of codes.

    MeshError
    ├── InputError      (ValueError)       what a person or plan said
    ├── ProtocolError   (ValueError)       what a message said
    ├── TrustError      (PermissionError)  who said it
    ├── LinkError       (ConnectionError)  the way there
    ├── StoreError      (OSError)          the memory
    ├── DriverError     (RuntimeError)     the work itself
    │   ├── DriverTimeout   (TimeoutError)
    │   ├── DriverDenied    (PermissionError)
    │   └── DriverNotFound  (FileNotFoundError)
    └── InvariantError  (AssertionError)   our own fault

The one rule: codes travel and are compared; text is for people and never matched. A code that
`CODES` does not list cannot be raised.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Blame = Literal["input", "peer", "here", "mesh"]


@dataclass(frozen=True, slots=True)
class Code:
    """What is known of one code: whose fault, whether trying again may help, what to try."""

    blame: Blame
    retry: bool
    hint: str
    #: name of the builtin exception that `retry_on` of a plan matches
    builtin: str = "ValueError"


CODES: dict[str, Code] = {
    # plans
    "plan.syntax": Code(
        "input", False, "fix the marked place; `imlmesh plan new` writes a valid start"
    ),
    "plan.no_plan": Code("input", False, "ask for the plan as one JSON object and nothing else"),
    "plan.truncated": Code("input", False, "ask for the whole plan, or write what is missing"),
    "plan.version": Code("input", False, 'write protocol_version: "2.0"'),
    "plan.field": Code("input", False, "imlmesh plan schema"),
    "plan.unknown_field": Code(
        "input", False, "remove it, or look it up with: imlmesh plan schema"
    ),
    "plan.unsupported": Code("input", False, "remove it; this version does not act on it"),
    "plan.missing": Code("input", False, "imlmesh plan schema"),
    "plan.duplicate_key": Code("input", False, "keep one of the two"),
    "plan.duplicate_id": Code("input", False, "give each action an id of its own"),
    "plan.too_large": Code("input", False, "split the plan, or move data by file"),
    "plan.too_many_actions": Code(
        "input", False, "split the plan, or raise max_actions under [plans] in orchestrator.toml"
    ),
    "plan.cycle": Code("input", False, 'remove one of the "depends_on"'),
    "plan.self_dependency": Code("input", False, 'remove it from its own "depends_on"'),
    "plan.unknown_dependency": Code("input", False, "use the id of an action of this plan"),
    "plan.unknown_rollback": Code("input", False, "use the id of an action of this plan"),
    "plan.rollback_cycle": Code("input", False, 'remove one of the "rollback"'),
    "plan.depends_on_compensation": Code(
        "input", False, "it runs only to undo: depend on what it undoes, or name another rollback"
    ),
    "plan.targets": Code("input", False, "keep one of target_node, target_group, target_selector"),
    "plan.target_mode": Code("input", False, "write target_mode: all or rolling, or remove it"),
    "plan.quorum": Code("input", False, "at most as many as the nodes that are meant"),
    "plan.fallback": Code("input", False, "fallback_nodes stand beside a target_node"),
    "plan.requirement": Code("input", False, "for example: >=0.1,<2"),
    "plan.no_effect": Code("input", False, "remove it, or write what it belongs to"),
    "plan.effect": Code("input", False, "a plan may only be more careful than the driver"),
    "plan.impact": Code("input", False, "impact may only be raised above the driver's"),
    "plan.reroute": Code("input", False, "a once or physical action waits, fails or asks"),
    "plan.nonce_reused": Code("input", False, "use another nonce for another plan"),
    "plan.fingerprint": Code("input", False, "look again: imlmesh plan preview FILE"),
    "plan.not_found": Code("input", False, "check the path"),
    "selector.syntax": Code("input", False, 'for example: os == "linux" and cpu >= 2'),
    "selector.name": Code("input", False, "imlmesh node show NODE lists its labels and facts"),
    "template.syntax": Code("input", False, "for example: {{result.read.value}}"),
    "template.not_ancestor": Code("input", False, "add the action to depends_on"),
    "template.no_result": Code("input", False, "use a field that the action returns"),
    "template.member": Code(
        "input", False, "write {{result.ID.NODE.field}} or {{result.ID.*.field}}"
    ),
    "template.wildcard": Code("input", False, "* is for target_mode all and rolling"),
    "template.memory_key": Code("input", False, "add the key to memory.read_keys of the action"),
    "template.too_large": Code("input", False, "move large data by file or HTTP"),
    "template.env": Code("input", False, "only variables of the orchestrator that begin with IML_"),
    "action.unknown": Code("input", False, "imlmesh node show NODE lists what it can do"),
    "action.params": Code("input", False, "imlmesh node show NODE --actions shows the parameters"),
    "module.unknown": Code("input", False, "a node must offer it: imlmesh node list"),
    "module.version": Code("input", False, "imlmesh node show NODE lists its modules' versions"),
    # placement
    "place.no_node": Code("input", True, "imlmesh node list"),
    "place.unknown_node": Code("input", False, "imlmesh node list"),
    "place.no_group": Code("input", False, "imlmesh group list"),
    "place.empty_group": Code("input", False, "imlmesh group set GROUP NODE ..."),
    # runs
    "run.not_found": Code("input", False, "imlmesh run list"),
    "run.ambiguous": Code("input", False, "give more characters of the id"),
    "run.ended": Code("input", False, "imlmesh run show RUN"),
    "run.not_ended": Code("input", False, "wait for its end, or cancel it first"),
    "run.retried": Code("input", False, "retry the run that retried it"),
    "run.too_many": Code("here", True, "wait for a run to end, or cancel one"),
    "memory.not_found": Code("input", False, "imlmesh memory list", "KeyError"),
    "memory.too_large": Code("input", False, "keep less, or a path to it"),
    "run.expired": Code("mesh", False, "raise ttl_seconds"),
    "approval.not_found": Code("input", False, "imlmesh approval list"),
    "approval.closed": Code("input", False, "the first answer counted: imlmesh approval show ID"),
    "approval.superseded": Code("input", True, "look at the new question: imlmesh approval list"),
    "approval.option": Code("input", False, "use one of the options of: imlmesh approval show ID"),
    "approval.four_eyes": Code("input", False, "somebody else has to answer"),
    "node.not_found": Code("input", False, "imlmesh node list"),
    "node.lost": Code("mesh", True, "imlmesh node show NODE"),
    "node.interrupted": Code("mesh", True, "the machine restarted while the action ran"),
    "node.cordoned": Code("mesh", True, "imlmesh node release NODE"),
    "node.draining": Code("mesh", True, "imlmesh node release NODE"),
    "node.quarantined": Code("mesh", True, "imlmesh node show NODE tells why"),
    "node.revoked": Code("mesh", False, "it was removed for good: let a new node join"),
    "node.admission": Code("input", False, "imlmesh node show NODE tells what it is"),
    "node.stopping": Code("mesh", True, "another node does it, or this one when it is back"),
    "orchestrator.stopping": Code("mesh", True, "ask again when it is back"),
    "node.full": Code("mesh", True, "the node holds as many dispatches as it may"),
    "node.too_many": Code("input", False, "a mesh has a limit; make a second one"),
    "node.exists": Code("input", False, "ids are never used twice: choose another name"),
    "node.running": Code("input", False, "stop the other one first: Ctrl-C, or systemctl stop"),
    "action.not_started": Code("mesh", True, "it waited too long for a slot or a claim"),
    "action.cancelled": Code("input", False, ""),
    "action.partial": Code("mesh", True, "imlmesh run show RUN tells how each node ended"),
    "action.not_needed": Code("input", False, ""),
    "approval.denied": Code(
        "input", False, "imlmesh approval show ID tells who", "PermissionError"
    ),
    "approval.expired": Code(
        "input", False, "answer in time: imlmesh approval list", "TimeoutError"
    ),
    "run.not_paused": Code("input", False, "imlmesh run show RUN"),
    "action.dependency": Code("input", False, "an action that it waits for did not complete"),
    "action.done_by_person": Code("input", False, ""),
    "action.failed_by_person": Code("input", False, ""),
    "action.rerun_by_person": Code("input", False, ""),
    "action.straggler": Code("mesh", True, "nothing to do: the first result counts"),
    "action.poison": Code(
        "input", False, "imlmesh run logs RUN; it crashed wherever it ran", "RuntimeError"
    ),
    "action.lease_lost": Code(
        "mesh", True, "the node was cut off and ended the work", "ConnectionError"
    ),
    # drivers
    "driver.failed": Code("here", True, "imlmesh run logs RUN", "RuntimeError"),
    "driver.timeout": Code("here", True, "raise the action's timeout", "TimeoutError"),
    "driver.crashed": Code("here", True, "imlmesh run logs RUN", "RuntimeError"),
    "driver.killed_along": Code(
        "here", True, "look why the call that the message names had to end", "RuntimeError"
    ),
    "driver.busy": Code("here", True, "wait for the holder to end", "RuntimeError"),
    "driver.denied": Code(
        "input",
        False,
        "look at policy.toml, and at what the node's account or service may do: docs/service.md",
        "PermissionError",
    ),
    "driver.params": Code("input", False, "imlmesh node show NODE --actions", "ValueError"),
    "driver.not_found": Code("input", False, "check the path on the node", "FileNotFoundError"),
    "driver.missing": Code("here", False, "install the extra that the driver names", "ImportError"),
    "driver.platform": Code("here", False, "leave it out of [modules] of policy.toml here"),
    "driver.unavailable": Code(
        "here",
        True,
        "check device and wiring; a service needs: imlmesh service install node --hardware",
        "OSError",
    ),
    "driver.reading": Code(
        "here", True, "the sensor answered nonsense: try again, then check its wiring", "OSError"
    ),
    "result.too_large": Code("input", False, "return less, or move data by file", "ValueError"),
    "mqtt.unreachable": Code(
        "mesh", True, "check address and port of your broker", "ConnectionError"
    ),
    "mqtt.refused": Code(
        "input", False, "check user name, password and rights at your broker", "PermissionError"
    ),
    "policy.module": Code(
        "input", False, "allow it in the node's policy.toml [modules]", "PermissionError"
    ),
    "policy.profile": Code(
        "input", False, "the node's profile is lower than the action needs", "PermissionError"
    ),
    "policy.path": Code(
        "input", False, "use a path beneath a root of policy.toml", "PermissionError"
    ),
    "policy.command": Code("input", False, "allow it in policy.toml [commands]", "PermissionError"),
    "policy.env": Code("input", False, "allow it in policy.toml [env]", "PermissionError"),
    "policy.process": Code(
        "input", False, "a plan ends processes of the node's own account alone", "PermissionError"
    ),
    "policy.pin": Code("input", False, "allow it in policy.toml [pins]", "PermissionError"),
    "policy.bus": Code(
        "input", False, "allow it in policy.toml [i2c], [serial] or [onewire]", "PermissionError"
    ),
    "policy.broker": Code("input", False, "allow it in policy.toml [mqtt]", "PermissionError"),
    "policy.invalid": Code("input", False, "fix policy.toml at the named place"),
    # messages
    "message.invalid": Code("peer", False, "the sender speaks another version or is broken"),
    "message.too_large": Code("peer", False, "at most 256 KiB"),
    "message.kind": Code("peer", False, "this kind does not belong on this topic"),
    "message.expired": Code("peer", True, "check the clocks: imlmesh status"),
    "message.replayed": Code("peer", False, "it was seen before"),
    "message.audience": Code("peer", False, "it was meant for another receiver"),
    "message.epoch": Code("peer", False, "a newer orchestrator took over"),
    "message.two_senders": Code("peer", False, "two machines use the keys of one node: remove it"),
    "message.session": Code("peer", True, "it belongs to an ended session"),
    "message.retained": Code("peer", False, "only a status is kept by the broker"),
    "telemetry.invalid": Code("peer", False, "a finite number under a name of a-z, 0-9, _ . -"),
    "telemetry.late": Code("peer", False, "check the node's clock: imlmesh node show NODE"),
    "telemetry.metrics": Code(
        "peer", False, "use fewer names: imlmesh telemetry query --node NODE"
    ),
    "telemetry.rate": Code("peer", True, "measure less often, or send means"),
    "dispatch.hash": Code("peer", False, "the result belongs to another dispatch of that name"),
    "dispatch.unknown": Code("peer", False, "no such dispatch here"),
    # trust
    "signature.invalid": Code("peer", False, "the sender does not hold the key it claims"),
    "signature.unknown_key": Code("peer", False, "let the node join first: imlmesh node join"),
    "trust.file": Code("here", False, "restore the file, or let the node join anew"),
    "trust.rollback": Code("peer", False, "an old document was sent again; the newer one is kept"),
    "trust.root_away": Code("here", False, "bring the root key here, and add: --root FILE"),
    "trust.rotating": Code("input", False, "imlmesh trust show tells what is under way"),
    "trust.mode": Code("here", False, "chmod 600 the file"),
    # permits
    "permit.target": Code("input", False, "remove the target, or name the node of --node"),
    "permit.person": Code("input", False, "nobody is there to ask: leave it out of a permit"),
    "permit.on_error": Code(
        "input", False, "write on_error: abort, continue or skip, and no rollback"
    ),
    "permit.template": Code("input", False, "use {{result.ID.field}} of an action before it"),
    "permit.unfit": Code("input", False, "remove it: a node that is cut off cannot honour it"),
    "permit.rule": Code("input", False, "say one of --every, --after, --on"),
    "permit.node": Code("input", False, "imlmesh node show NODE"),
    "permit.too_large": Code("input", False, "grant several smaller ones, or move data by file"),
    "permit.too_many": Code("input", False, "imlmesh permit list, then imlmesh permit withdraw ID"),
    "permit.not_found": Code("input", False, "imlmesh permit list"),
    "permit.ended": Code("input", False, "imlmesh permit show ID"),
    "permit.withdrawn": Code("input", False, "imlmesh permit show ID tells who"),
    "permit.expired": Code("input", False, "grant another one: imlmesh permit grant"),
    "permit.untrusted": Code("peer", False, "its key is trusted no more: grant another one"),
    # joining
    "token.invalid": Code(
        "input", False, "paste the whole line that `imlmesh token create` printed"
    ),
    "token.unknown": Code("peer", False, "ask the owner for a new one: imlmesh token create"),
    "token.expired": Code("input", False, "ask the owner for a new one: imlmesh token create"),
    "token.used": Code(
        "input", False, "ask the owner for a new one: imlmesh token create --uses N"
    ),
    "token.revoked": Code("input", False, "ask the owner for a new one: imlmesh token create"),
    "token.burnt": Code(
        "peer", False, "somebody tried wrong secrets: imlmesh token create makes another"
    ),
    "token.proof": Code("peer", False, "paste the whole line that `imlmesh token create` printed"),
    "token.not_found": Code("input", False, "imlmesh token list"),
    "token.too_many": Code("input", False, "imlmesh token list; ended ones go after a week"),
    "join.invalid": Code("peer", False, "both machines need the same version of imlmesh"),
    "join.too_large": Code("peer", False, "at most 8 KiB"),
    "join.nonce": Code("peer", True, "join again; a nonce is good once and for a minute"),
    "join.signature": Code("peer", False, "the sender does not hold the identity key it claims"),
    "join.pin": Code(
        "peer", False, "somebody else answers at this address; nothing secret was sent to it"
    ),
    "join.unreachable": Code(
        "mesh", True, "imlmesh up --lan opens a mesh; then: --at ADDRESS:PORT", "ConnectionError"
    ),
    "join.several": Code("input", False, "choose one: --at ADDRESS:PORT"),
    "join.too_many": Code("peer", True, "imlmesh node discover; approve or ignore those that wait"),
    "join.not_found": Code("input", False, "imlmesh node discover lists who waits"),
    "join.ambiguous": Code("input", False, "use its code instead of its name"),
    "join.expired": Code("peer", True, "join again: nobody approved in time"),
    "join.ignored": Code("peer", False, "the owner ignores this node; ask the owner"),
    "join.request": Code("peer", False, "a request proves a key and asks for nothing else"),
    "join.profile": Code("input", False, "say so: --profile, or its code instead of its name"),
    "join.replaces": Code(
        "input", False, "only a node that is offline, lost or removed is replaced"
    ),
    "join.busy": Code("peer", True, "too many join at once; it is tried again", "ConnectionError"),
    "clock.behind": Code("here", True, "sudo timedatectl set-ntp true"),
    # link, broker
    "link.down": Code("mesh", True, "imlmesh status", "ConnectionError"),
    "link.full": Code(
        "mesh", True, "the broker is slow; it goes on when it caught up", "ConnectionError"
    ),
    "link.refused": Code(
        "mesh", False, "let the node join anew, or check the mesh id", "ConnectionError"
    ),
    "link.tls": Code("mesh", False, "the broker is not the one of this mesh", "ConnectionError"),
    "discovery.blocked": Code(
        "here", True, "give the address: imlmesh node run FOLDER --broker ADDRESS:PORT"
    ),
    "discovery.nothing": Code("mesh", True, "imlmesh up --lan announces a mesh"),
    "broker.missing": Code(
        "here", False, "sudo apt-get install mosquitto, or go without IMLMESH_BROKER"
    ),
    "broker.slow": Code("peer", True, "it connects again by itself; look at its network"),
    "broker.busy": Code("peer", True, "too many connect at once; it is tried again"),
    "broker.topic": Code("peer", False, "each id writes to its own topics: docs/PROTOCOL.md"),
    "broker.subscriptions": Code("peer", False, "one filter with + or # takes many topics"),
    "broker.behind": Code("here", True, "is the broker watched? docs/admission.md"),
    "broker.lists": Code("here", True, "the orchestrator writes ca/*.crl: imlmesh status"),
    "broker.access": Code("here", True, "the orchestrator writes broker/access.json"),
    "broker.unsafe": Code("here", False, "imlmesh doctor broker tells all that it lets through"),
    "broker.failed": Code("here", True, "look at logs/broker.log in the home folder"),
    "orchestrator.unreachable": Code("here", True, "imlmesh up", "ConnectionError"),
    "orchestrator.running": Code("input", False, "stop the other one first, or use another --home"),
    "process.failed": Code("here", True, "look at the logs folder of the home"),
    # services
    "service.no_systemd": Code("here", False, "imlmesh up runs a mesh without systemd"),
    "service.interpreter": Code(
        "here",
        False,
        "python3 -m venv /opt/imlmesh && /opt/imlmesh/bin/pip install imlmesh, and use that one",
    ),
    "service.foreign": Code("input", False, "move it away; to add to ours: systemctl edit UNIT"),
    "service.failed": Code("here", True, "systemctl status 'imlmesh-*'", "RuntimeError"),
    # stores
    "store.failed": Code("here", True, "check disk space and rights of the home folder", "OSError"),
    "store.behind": Code(
        "here", True, "the disk is slow; dispatching goes on when it caught up", "OSError"
    ),
    "store.full": Code("here", True, "free disk space", "OSError"),
    "store.version": Code(
        "here", False, "use the imlmesh version that made it, or a newer one", "OSError"
    ),
    "store.corrupt": Code("here", False, "restore a backup of the file", "OSError"),
    "journal.lost": Code("mesh", False, "look what the node did last: docs/edge.md", "OSError"),
    "spool.full": Code("mesh", True, "what a cut-off node drops first: docs/edge.md", "OSError"),
    "journal.full": Code("mesh", True, "free disk space on the node", "OSError"),
    "escalate.rate": Code("peer", True, "look at the node's log"),
    # ledger
    "ledger.doubted": Code("here", False, "imlmesh audit verify", "PermissionError"),
    "ledger.not_found": Code("input", False, "imlmesh audit list"),
    "epoch.behind": Code(
        "here", False, "stop this one if a newer one runs; else set the clock and start it again"
    ),
    "verdicts.not_frozen": Code("input", False, "nothing to decide: imlmesh node list"),
    "ledger.undoubted": Code("input", False, "there is nothing to acknowledge: imlmesh status"),
    "seal.invalid": Code("peer", False, "the sender does not hold the ledger key of this mesh"),
    "seal.rollback": Code("peer", False, "the ledger was cut: imlmesh audit verify"),
    "seal.fork": Code("peer", False, "the ledger was rewritten: imlmesh audit verify"),
    # configuration and use
    "config.invalid": Code("input", False, "fix the named place"),
    "folder.exists": Code("input", False, "choose another folder, or move what is in it"),
    "home.missing": Code("input", False, "imlmesh up makes one"),
    "name.invalid": Code("input", False, "for example: pi-garden"),
    "usage": Code("input", False, "add --help"),
    "access.denied": Code(
        "input", False, "use the account that runs the orchestrator", "PermissionError"
    ),
    "internal": Code("here", False, "please report it with the log", "RuntimeError"),
    "internal.invariant": Code("here", False, "please report it with the log", "AssertionError"),
}

#: the process of the driver ended in the middle of it
CRASHED = "driver.crashed"
#: the node killed that process for another call in it: no fault of this one, nor of the node
KILLED_ALONG = "driver.killed_along"
#: with these a node ends what it never began: no slot was free in time, or another held a claim
NEVER_BEGUN = frozenset({"action.not_started", "driver.busy"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a document: JSON pointer, and for files line and column (1-based)."""

    pointer: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None
    end_line: int | None = None
    end_column: int | None = None

    def __str__(self) -> str:
        if self.line is None:
            return self.file or self.pointer
        return f"{self.file or '<plan>'}:{self.line}:{self.column}"


class MeshError(Exception):
    """Base of all errors that imlmesh raises on purpose.

    `code` is stable and listed in `CODES`; `message` is for people; `place` says where in a
    document; `hint` is what to try, by default the code's own. `sender` is the node or orchestrator
    that provably wrote what is wrong, and `stamp` where: (boot or epoch, session, seq) of the message;
    both are empty while nobody is proved.
    """

    sender = ""
    stamp: tuple[int, ...] = ()

    def __init__(
        self, code: str, message: str, *, place: Place | None = None, hint: str | None = None
    ) -> None:
        if code not in CODES:
            raise KeyError(f"error code {code!r} is not in CODES")
        super().__init__(message)
        self.code = code
        self.message = message
        self.place = place
        self.hint = CODES[code].hint if hint is None else hint

    def __str__(self) -> str:
        where = f" at {self.place}" if self.place else ""
        return f"{self.code}: {self.message}{where}"

    def as_record(self) -> dict[str, Any]:
        """The JSON twin: code, message, hint and the place's fields that are known."""
        record: dict[str, Any] = {"code": self.code, "message": self.message, "hint": self.hint}
        if self.place:
            for name in Place.__slots__:
                value = getattr(self.place, name)
                if value is not None:
                    record[name] = value
        return record


class InputError(MeshError, ValueError):
    """What a person, a plan or a configuration said cannot be done."""


class ProtocolError(MeshError, ValueError):
    """A message is malformed, out of place, or out of date."""


class TrustError(MeshError, PermissionError):
    """A signature, certificate, key file or peer is not to be believed."""

    def __str__(self) -> str:
        return MeshError.__str__(self)


class LinkError(MeshError, ConnectionError):
    """The way to the broker or the orchestrator is closed."""

    def __str__(self) -> str:
        return MeshError.__str__(self)


class StoreError(MeshError, OSError):
    """A database could not keep or give back what it should."""

    def __str__(self) -> str:
        return MeshError.__str__(self)


class DriverError(MeshError, RuntimeError):
    """An action did not do its work."""


class DriverTimeout(DriverError, TimeoutError):
    """An action did not end within its time."""

    def __str__(self) -> str:
        return MeshError.__str__(self)


class DriverDenied(DriverError, PermissionError):
    """The node's policy forbids the action or one of its parameters."""

    def __str__(self) -> str:
        return MeshError.__str__(self)


class DriverNotFound(DriverError, FileNotFoundError):
    """What the action should work on is not there."""

    def __str__(self) -> str:
        return MeshError.__str__(self)


class InvariantError(MeshError, AssertionError):
    """Something that must never happen did: a bug of ours."""


class InputErrors(InputError):
    """Several input errors found at once; `errors` holds them, the first one names the group."""

    def __init__(self, errors: Iterable[MeshError]) -> None:
        self.errors: tuple[MeshError, ...] = tuple(errors)
        first = self.errors[0]
        super().__init__(first.code, first.message, place=first.place, hint=first.hint)


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as it travels and is stored: a stable code and a text for people."""

    code: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)
