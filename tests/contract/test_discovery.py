"""mDNS as it is spoken, on loopback alone: who announces is heard, and whoever ends is forgotten."""

import asyncio
import secrets
from pathlib import Path

import pytest

from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.discovery import MESHES, NODES, Discovery, Service, root_hash
from imlmesh_runtime.multicast import Network
from imlmesh_runtime.paths import Home

LOOPBACK = Network("127.0.0.1", "255.0.0.0", True)
WITHIN_S = 20


def here() -> tuple[Network, ...]:
    return (LOOPBACK,)


async def test_a_service_is_heard_and_forgotten_again() -> None:
    # a name of its own: loopback is shared with whatever else runs here
    root = secrets.token_hex(4)
    mesh = Service("m" * 63, root, port=8883, addresses=("127.0.0.1",))
    speaker, listener = (
        Discovery(announced=mesh, here=here),
        Discovery(watched=MESHES, here=here),
    )
    deaf = Discovery(watched=NODES, here=here)
    for each in (speaker, listener, deaf):
        each.start()

    def heard() -> bool:
        return mesh in listener.found.values()

    try:
        async with asyncio.timeout(WITHIN_S):
            await listener.until(heard)
            assert listener.trouble == ""
            await speaker.close()
            await listener.until(lambda: not heard())
        assert root not in {service.root for service in deaf.found.values()}
    finally:
        for each in (listener, deaf, speaker):
            await each.close()


async def test_two_nodes_of_one_name_are_both_shown() -> None:
    node = Service("home", secrets.token_hex(4), "pi-bed", addresses=("127.0.0.1",))
    speakers = [Discovery(announced=node, here=here) for _ in range(2)]
    listener = Discovery(watched=NODES, here=here)
    try:
        async with asyncio.timeout(WITHIN_S):
            listener.start()
            speakers[0].start()
            await listener.until(lambda: node in listener.found.values())
            speakers[1].start()
            await listener.until(lambda: list(listener.found.values()).count(node) == 2)
    finally:
        for each in (listener, *speakers):
            await each.close()


async def test_a_network_that_comes_later_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imlmesh_protocol.limits.DISCOVERY_LOOK_MS", 20)
    present: list[Network] = []
    mesh = Service("home", secrets.token_hex(4), port=8883, addresses=("127.0.0.1",))
    speaker = Discovery(announced=mesh, here=lambda: tuple(present))
    listener = Discovery(watched=MESHES, here=here)
    try:
        async with asyncio.timeout(WITHIN_S):
            speaker.start()
            listener.start()
            await speaker.until(lambda: speaker.trouble == "this computer is in no network")
            present.append(LOOPBACK)
            await speaker.until(lambda: speaker.trouble == "")
            await listener.until(lambda: mesh in listener.found.values())
            present.clear()
            await speaker.until(lambda: speaker.trouble)
            await listener.until(lambda: mesh not in listener.found.values())
    finally:
        for each in (listener, speaker):
            await each.close()


def test_meshes_of_one_name_have_root_hashes_of_their_own(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        home = Home(tmp_path / name)
        Authority.create(home, "home", "control")
        hashes.add(root_hash(home.ca / "ca.pem"))
    assert len(hashes) == 2
    with pytest.raises(TrustError) as caught:
        root_hash(tmp_path / "a" / "ca" / "ca.key")
    assert caught.value.code == "trust.file"
