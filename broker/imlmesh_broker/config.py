"""The files that Mosquitto reads: its configuration, who may use which topic, and what TLS may do.

The one rule: comments stand on lines of their own, since Mosquitto takes a comment behind a
value for a part of it. The broker keeps nothing that we need: no stored sessions, no database.
Deliberately absent: a listener without certificates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imlmesh_broker.rights import ALL_IN, Access
from imlmesh_protocol import limits
from imlmesh_protocol.ids import check_name
from imlmesh_protocol.wire import topics

#: a session ticket lets a certificate in after its end
OPENSSL_TEXT = """\
openssl_conf = imlmesh

[imlmesh]
ssl_conf = tls

[tls]
system_default = everybody

[everybody]
NumTickets = 0
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the files are, and where to listen; an empty host means every address.

    `served` holds lists, CAs, mesh.acl, broker.pem and broker.key. `plugin`: the acl-file
    plugin of Mosquitto 2.1, which is then configured in the words of 2.1; None: in those of 2.0.
    `user` is the account to run as: started by root, Mosquitto would change to its own and could
    not read the key.
    """

    served: Path
    node: tuple[str, int]
    control: tuple[str, int]
    user: str
    plugin: Path | None = None


def acl_text(mesh: str, control: str, access: Access = ALL_IN) -> str:
    """The access rules: the user `control` has the whole mesh, every node its own topics.

    What a user is denied counts before all that it is allowed, by patterns too.
    """
    check_name("orchestrator", control)
    lines = [f"user {control}", f"topic readwrite {topics.PREFIX}/{mesh}/#", ""]
    for name in sorted(access.revoked):
        lines += [f"user {check_name('node', name)}", "topic deny #", ""]
    rules = topics.acl_rules(mesh)
    kept = set(topics.acl_rules(mesh, topics.QUARANTINED))
    denied = [rule for right, rule in rules if (right, rule) not in kept]
    for name in sorted(access.quarantined):
        lines.append(f"user {check_name('node', name)}")
        lines += [f"topic deny {rule.replace('%u', name)}" for rule in denied]
        lines.append("")
    lines += [f"pattern {right} {rule}" for right, rule in rules]
    return "\n".join([*lines, ""])


def config_text(layout: Layout) -> str:
    """The configuration of Mosquitto."""
    return "\n".join([*_general(layout), *_node(layout), *_control(layout), ""])


def _general(layout: Layout) -> Iterator[str]:
    acl = layout.served / "mesh.acl"
    yield f"user {layout.user}"
    if layout.plugin is None:
        yield "allow_anonymous false"
        yield f"acl_file {acl}"
    else:
        yield f"global_plugin {layout.plugin}"
        yield f"plugin_opt_acl_file {acl}"
    yield "allow_zero_length_clientid false"
    yield "persistence false"
    yield "log_dest stderr"
    yield "log_type error"
    yield "log_type warning"
    yield "log_type notice"
    yield "connection_messages true"
    yield "sys_interval 0"
    yield f"max_packet_size {limits.BROKER_PACKET_BYTES}"
    yield f"max_queued_messages {limits.BROKER_QUEUED_MESSAGES}"
    yield f"max_inflight_messages {limits.BROKER_INFLIGHT_MESSAGES}"
    yield "# without it each acknowledged message costs 44 ms"
    yield "set_tcp_nodelay true"


def _node(layout: Layout) -> Iterator[str]:
    yield "# nodes"
    yield from _listener(layout, "node", *layout.node)
    yield "# without it any node takes over the session of any other"
    yield "use_username_as_clientid true"


def _control(layout: Layout) -> Iterator[str]:
    yield "# the orchestrator; under a node's client id it ends that node's session"
    yield from _listener(layout, "control", *layout.control)


def _listener(layout: Layout, role: str, host: str, port: int) -> Iterator[str]:
    yield f"listener {port} {host}".rstrip()
    if layout.plugin is not None:
        yield "listener_allow_anonymous false"
    yield f"cafile {layout.served / f'{role}-ca.pem'}"
    yield f"crlfile {layout.served / f'{role}-ca.crl'}"
    yield f"certfile {layout.served / 'broker.pem'}"
    yield f"keyfile {layout.served / 'broker.key'}"
    yield "tls_version tlsv1.3"
    yield "require_certificate true"
    yield "use_identity_as_username true"
