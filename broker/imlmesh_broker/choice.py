"""Which broker a mesh gets: Mosquitto where it is installed, else the embedded one.

The one rule: `IMLMESH_BROKER` forces one, and then there is no second choice. Deliberately absent:
a setting in a file; a broker keeps nothing, so any start may choose anew.
"""

import json
import sys
from collections.abc import Mapping
from typing import ClassVar

from imlmesh_broker.child import LOOPBACK, Broker
from imlmesh_broker.mosquitto import Mosquitto, find_mosquitto
from imlmesh_protocol.errors import InputError, LinkError

VARIABLE = "IMLMESH_BROKER"


class Embedded(Broker):
    """Our own broker, in a process of its own."""

    program: ClassVar[str] = "embedded broker"

    def command(self) -> list[str]:
        place = self.place
        options = {
            "--mesh": self.mesh,
            "--control": self.control,
            "--served": str(place.served),
            "--address": place.host,
            "--port": str(self.port),
            "--control-address": LOOPBACK,
            "--control-port": str(self.control_port),
            "--log": str(place.log),
        }
        pairs = [part for option in options.items() for part in option]
        # -P: what lies in the folder that somebody is in must not stand for a module of ours
        return [sys.executable, "-P", "-m", "imlmesh_broker.embedded", *pairs]

    @staticmethod
    def oversize_of(line: bytes) -> str | None:
        try:
            told = json.loads(line)
        except ValueError:
            return None
        if isinstance(told, dict) and told.get("code") == "message.too_large":
            return str(told.get("client", ""))
        return None


BROKERS: dict[str, type[Broker]] = {"mosquitto": Mosquitto, "embedded": Embedded}


def choose_broker(environ: Mapping[str, str]) -> type[Broker]:
    """The broker to start.

    LinkError `broker.missing` when Mosquitto is forced and not installed, InputError
    `config.invalid` when the variable names no broker.
    """
    forced = environ.get(VARIABLE)
    if forced is not None and forced not in BROKERS:
        names = " or ".join(sorted(BROKERS))
        raise InputError("config.invalid", f"{VARIABLE} is {forced[:80]!r}; it must be {names}")
    if forced == "embedded":
        return Embedded
    try:
        find_mosquitto()
    except LinkError:
        if forced is not None:
            raise
        return Embedded
    return Mosquitto
