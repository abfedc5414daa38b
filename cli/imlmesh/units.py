"""The units of systemd that this installation would have: the shipped ones, with its own words.

The one rule: what a unit says stands in systemd/ alone; here only the interpreter, addresses and
the groups of a machine are filled in. Deliberately absent: writing and starting them.
"""

import re
from collections.abc import Iterable
from typing import Literal

from imlmesh.shipped import shipped
from imlmesh_protocol.errors import MeshError

Kind = Literal["node", "orchestrator"]
KINDS: tuple[Kind, ...] = ("node", "orchestrator")
#: groups that own pins and buses, in the order of hardware.conf
HARDWARE_GROUPS = ("gpio", "i2c", "spi", "dialout")
HARDWARE = "imlmesh-node@.service.d/hardware.conf"
#: tells the Mosquitto of a machine who may come in
ACCESS = "imlmesh-access.service"

_PYTHON = "/opt/imlmesh/bin/python"
_BROKER = "127.0.0.1:8884"
_JOIN = "127.0.0.1:8766"
_JOIN_LAN = "0.0.0.0:8766"
#: what systemd refuses in the path of a program, or reads as something else
_NOT_TAKEN = re.compile(r"[^ -~]|[\"'\\*?\[\];$|&<>]")
#: every shipped unit says so in its first lines
_MARK = "`imlmesh service install "


def unit_name(kind: Kind, node: str = "") -> str:
    """`imlmesh-orchestrator.service`, `imlmesh-node@.service`, or of one node."""
    return (
        "imlmesh-orchestrator.service" if kind == "orchestrator" else f"imlmesh-node@{node}.service"
    )


def unit_text(
    kind: Kind,
    python: str,
    broker: str | None = None,
    join: str | None = None,
    *,
    lan: bool = False,
) -> str:
    """The unit's file. `python` is an absolute path, `broker` and `join` are ADDRESS:PORT for an
    orchestrator; with `lan` it tells the network where it is, and nodes of other machines may join.

    MeshError `service.interpreter` for a path that systemd does not take as a program.
    """
    text = _by_python(unit_name(kind), python)
    called = f"--broker {broker or _BROKER}{' --lan' if lan else ''}\n"
    text = text.replace(f"--broker {_BROKER}\n", called)
    near = _JOIN_LAN if lan else _JOIN
    return text.replace(f"--join {_JOIN} ", f"--join {join or near} ")


def access_text(python: str) -> str:
    """The file of ACCESS; raises as `unit_text`."""
    return _by_python(ACCESS, python)


def _by_python(name: str, python: str) -> str:
    if not python.startswith("/") or _NOT_TAKEN.search(python):
        raise MeshError("service.interpreter", f"systemd does not take the path {python!r}")
    text = shipped("systemd", name).read_text(encoding="utf-8")
    word = python.replace("%", "%%")
    return text.replace(f"={_PYTHON} ", f'="{word}" ' if " " in word else f"={word} ")


def hardware_text(groups: Iterable[str]) -> str:
    """The drop-in for pins and buses, with those of HARDWARE_GROUPS that are among `groups`."""
    present = [group for group in HARDWARE_GROUPS if group in set(groups)]
    text = shipped("systemd", HARDWARE).read_text(encoding="utf-8")
    return re.sub(r"(?m)^(SupplementaryGroups=).*$", rf"\g<1>{' '.join(present)}", text)


def is_ours(text: str) -> bool:
    """Whether a unit or drop-in was written by us, and may be written anew or removed."""
    return _MARK in text
