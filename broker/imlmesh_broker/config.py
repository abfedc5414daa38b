"""The files that Mosquitto 2.0 reads: its configuration and who may use which topic.

The one rule: comments stand on lines of their own, since Mosquitto takes a comment behind a
value for a part of it. The broker keeps nothing that we need: no stored sessions, no database.
Deliberately absent: a listener without certificates.
"""

from pathlib import Path

from imlmesh_protocol import limits
from imlmesh_protocol.ids import check_name
from imlmesh_protocol.wire import topics


def acl_text(mesh: str, control: str) -> str:
    """The access rules: the user `control` has the whole mesh, every node its own topics."""
    check_name("orchestrator", control)
    patterns = [f"pattern {right} {pattern}" for right, pattern in topics.acl_rules(mesh)]
    own = [f"user {control}", f"topic readwrite {topics.PREFIX}/{mesh}/#"]
    return "\n".join([*own, "", *patterns, ""])


def config_text(folder: Path, ca_pem: Path, *, host: str, port: int, user: str) -> str:
    """The configuration for a broker whose acl, key and certificate are in `folder`.

    An empty `host` listens everywhere. `user` is the account to run as: started by root, Mosquitto
    would change to its own and could not read the key.
    """
    lines = [
        f"user {user}",
        "allow_anonymous false",
        f"acl_file {folder / 'mesh.acl'}",
        "persistence false",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages true",
        "sys_interval 0",
        f"max_packet_size {limits.BROKER_PACKET_BYTES}",
        f"max_queued_messages {limits.BROKER_QUEUED_MESSAGES}",
        f"max_inflight_messages {limits.BROKER_INFLIGHT_MESSAGES}",
        "# without it each acknowledged message costs 44 ms",
        "set_tcp_nodelay true",
        f"listener {port} {host}".rstrip(),
        f"cafile {ca_pem}",
        f"certfile {folder / 'broker.pem'}",
        f"keyfile {folder / 'broker.key'}",
        "tls_version tlsv1.3",
        "require_certificate true",
        "use_identity_as_username true",
        "# without it any node takes over the session of any other",
        "use_username_as_clientid true",
        "",
    ]
    return "\n".join(lines)
