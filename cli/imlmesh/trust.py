"""What `imlmesh trust` does: reads and changes the keys of the home, and tells the orchestrator.

The one rule: the root key is used here, where its owner is, and never travels. What is changed in the
folder counts for nodes as soon as the orchestrator has taken it up; without one, when it starts.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from imlmesh.client import Client
from imlmesh.mesh import check_owner, nodes_address
from imlmesh_orchestrator.ca import Authority, rotation
from imlmesh_orchestrator.ca.asking_broker import AskedBroker
from imlmesh_orchestrator.ca.authority import CONTROL, NODE, VOICES
from imlmesh_protocol.errors import InputError, LinkError
from imlmesh_runtime.link.address import address_of, is_address
from imlmesh_runtime.pairs import validity_of
from imlmesh_runtime.paths import Home, find_home
from imlmesh_runtime.trust import HeldTrust, key_id, load_signer

SCHEMA = "imlmesh.trust/1"


def opened(home: str | None) -> tuple[Home, Authority]:
    """The home and its authority; InputError `home.missing`, `access.denied`."""
    found = find_home(home, os.environ)
    check_owner(found)
    return found, Authority.open(found)


def standing(home: str | None) -> dict[str, Any]:
    """All that is known of trust: keys, CAs, what rolls over, and which nodes hold which version."""
    found, authority = opened(home)
    held = HeldTrust(found.ca, authority.mesh)
    root = found.ca / "root.key"
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "mesh": authority.mesh,
        "version": held.trust.version,
        "root": {"id": held.root.key_id.hex(), "file": str(root) if root.exists() else None},
        "keys": list(_keys(found, authority)),
        "cas": list(_cas(authority)),
        "under_way": rotation.under_way(authority),
    }
    told = _ask(found, lambda client: client.get("trust"))
    return record | {"orchestrator": told is not None, "nodes": told["nodes"] if told else []}


def rotate(home: str | None, what: str, root: Path | None) -> dict[str, Any]:
    """Make a new key or CA known beside the old one; the standing after that.

    TrustError `trust.root_away`, `trust.file`; InputError `usage`, `trust.rotating`.
    """
    found, authority = opened(home)
    signer = rotation.root_signer(authority, root)
    told = _ask(found, lambda client: client.get("trust"))
    rotation.rotate(authority, what, signer, _broker(found, told))
    return _taken_up(home, found)


def finish(home: str | None, what: str, root: Path | None, *, anyway: bool) -> dict[str, Any]:
    """Rely on the new one alone; the standing after that.

    InputError `trust.rotating` also while a node is online that does not know the new one yet,
    unless `anyway`.
    """
    found, authority = opened(home)
    signer = rotation.root_signer(authority, root)
    told = _ask(found, lambda client: client.get("trust"))
    behind = [node for node in told["nodes"] if node["behind"]] if told else []
    online = [node["alias"] for node in behind if node["liveness"] == "online"]
    if online and not anyway:
        text = f"{', '.join(online)}: online, and not yet told of what is new"
        raise InputError("trust.rotating", text, hint="try again in a moment, or add --anyway")
    rotation.finish(authority, what, signer, found.broker, _broker(found, told))
    missed = [node["node"] for node in behind]
    return _taken_up(home, found) | {"missed": missed}


def _broker(found: Home, told: dict[str, Any] | None) -> AskedBroker:
    if told is None:
        return AskedBroker({})
    places = {NODE: nodes_address(found), CONTROL: told["broker"]}
    return AskedBroker(
        {role: address_of(place) for role, place in places.items() if place and is_address(place)}
    )


def _taken_up(home: str | None, found: Home) -> dict[str, Any]:
    _ask(found, lambda client: client.post("trust/reload", {}))
    return standing(home)


def _ask(found: Home, question: Callable[[Client], dict[str, Any]]) -> dict[str, Any] | None:
    """The orchestrator's answer, None when none runs for this home."""
    try:
        with Client.connect(found.root) as client:
            return question(client)
    except LinkError:
        return None


def _keys(found: Home, authority: Authority) -> Iterator[dict[str, Any]]:
    trust = authority.trust
    for what in VOICES:
        signing = load_signer(found.ca / f"{what}.key").key_id
        for raw in getattr(trust, what):
            yield {"what": what, "id": key_id(raw).hex(), "signs": key_id(raw) == signing}


def _cas(authority: Authority) -> Iterator[dict[str, Any]]:
    trust = authority.trust
    for role, cas in ((NODE, trust.node_cas), (CONTROL, trust.control_cas)):
        vouching = authority.issuer(role).der
        for der in cas:
            ends_ms = validity_of(der).ends_ms
            days = (ends_ms - time.time_ns() // 1_000_000) // 86_400_000
            yield {
                "what": f"{role}-ca",
                "id": key_id(der).hex(),
                "signs": der == vouching,
                "ends_at_ms": ends_ms,
                "days_left": days,
            }
