"""`imlmesh doctor broker`, and that `up` is not ready before the broker passed the same questions."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography import x509

from imlmesh import running
from imlmesh.main import run
from imlmesh.mesh import make_mesh
from imlmesh.running import RunningMesh
from imlmesh_broker import Embedded
from imlmesh_broker.mosquitto import Mosquitto
from imlmesh_protocol.errors import InputError, TrustError

KINDS = [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"]


@pytest.fixture(params=KINDS)
async def up(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RunningMesh]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMLMESH_BROKER", request.param)
        mesh, _ = make_mesh(tmp_path / "home", "lan")
        up = RunningMesh(mesh, lambda line: None)
        try:
            await up.start_broker()
            yield up
        finally:
            await up.stop()


async def doctor(capsys: pytest.CaptureFixture[str], home: Path, *words: str) -> tuple[int, str]:
    """Exit code and stdout of `imlmesh doctor broker`."""
    capsys.readouterr()
    asked = ["doctor", "broker", "--home", str(home), *words]
    code = await asyncio.to_thread(run, asked)
    return code, capsys.readouterr().out


async def test_a_broker_of_up_passes_and_what_the_probe_made_is_revoked(up, capsys):
    root = up.mesh.home.root
    code, out = await doctor(capsys, root, "-o", "json")
    record = json.loads(out)
    assert (code, record["schema"], record["passed"]) == (0, "imlmesh.doctor/1", True)
    assert len(record["findings"]) == 17
    # two by up, two by doctor
    revoked = x509.load_pem_x509_crl((up.mesh.home.ca / "node-ca.crl").read_bytes())
    assert len(list(revoked)) == 4
    places = ["--address", up.mesh.broker_address, "--control", up.mesh.control_address]
    code, out = await doctor(capsys, root, *places)
    assert code == 0
    assert "$share steals nothing" in out
    assert " no " not in out


async def test_a_mesh_at_work_is_asked_without_a_trace(up, capsys):
    with await up.start_orchestrator() as client:
        code, out = await doctor(capsys, up.mesh.home.root, "-o", "json")
        assert (code, json.loads(out)["passed"]) == (0, True)
        assert client.get("health")["messages"]["refused"] == {}
        with pytest.raises(InputError) as caught:
            await asyncio.to_thread(up.mesh.own_node, client, "probe-a")
        assert caught.value.code == "node.exists"


async def test_another_address_is_asked_and_fails_whole(up, capsys):
    code, out = await doctor(capsys, up.mesh.home.root, "--address", "127.0.0.1:1", "-o", "json")
    record = json.loads(out)
    assert (code, record["passed"]) == (1, False)
    assert {one["passed"] for one in record["findings"]} == {False}
    assert {one["seen"] for one in record["findings"][1:]} == {"not asked"}


async def test_before_the_first_start_there_is_nobody_to_ask(tmp_path, capsys):
    mesh, _ = make_mesh(tmp_path / "home", "lan")
    code = await asyncio.to_thread(run, ["doctor", "broker", "--home", str(mesh.home.root)])
    assert code == 3
    assert "home.missing" in capsys.readouterr().err


class Altered(Mosquitto):
    """Mosquitto with lines left out of its configuration, or with others."""

    changes: ClassVar[list[tuple[str, str]]] = []

    def command(self) -> list[str]:
        command = super().command()
        conf = self.place.served / "mosquitto.conf"
        text = conf.read_text()
        for old, new in self.changes:
            assert old in text
            text = text.replace(old, new)
        conf.write_text(text)
        return command


#: what is changed in the configuration -> what is found first
UNSAFE = {
    "foreign topic not written": [("acl_file ", "# acl_file ")],
    "foreign client id takes nobody over": [("use_username_as_clientid true", "")],
    "anonymous refused for nodes": [
        ("allow_anonymous false", "allow_anonymous true"),
        ("require_certificate true\nuse_identity_as_username true", ""),
        ("use_username_as_clientid true", ""),
    ],
    "oversize packet refused": [("max_packet_size 278528\n", "")],
}


@pytest.mark.mosquitto
@pytest.mark.parametrize("name", sorted(UNSAFE))
async def test_an_unsafe_broker_makes_no_ready_mesh(name, tmp_path, monkeypatch):
    class Unsafe(Altered):
        changes = UNSAFE[name]

    monkeypatch.setattr(running, "choose_broker", lambda environ: Unsafe)
    # for what never comes, one question after the other
    monkeypatch.setattr("imlmesh_protocol.limits.PROBE_ANSWER_MS", 1_000)
    monkeypatch.setattr("imlmesh_protocol.limits.PROBE_REVOKED_MS", 2_000)
    mesh, _ = make_mesh(tmp_path / "home", "lan")
    up = RunningMesh(mesh, lambda line: None)
    try:
        with pytest.raises(TrustError) as caught:
            await up.start_broker()
    finally:
        await up.stop()
    assert caught.value.code == "broker.unsafe"
    assert caught.value.message.startswith(f"{name}: no; ")


async def test_without_the_list_a_revoked_certificate_comes_in_and_that_is_seen(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("imlmesh_protocol.limits.PROBE_REVOKED_MS", 200)

    class Deaf(Embedded):
        """It is never told."""

        async def _reload(self) -> None:
            return

    monkeypatch.setattr(running, "choose_broker", lambda environ: Deaf)
    mesh, _ = make_mesh(tmp_path / "home", "lan")
    up = RunningMesh(mesh, lambda line: None)
    try:
        with pytest.raises(TrustError, match="revoked certificate refused"):
            await up.start_broker()
    finally:
        await up.stop()
