"""Certificates of nodes renew while work runs, and bring back nodes whose last one has ended."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from forked import Forked, Start
from imlmesh.client import Client
from imlmesh.mesh import let_in
from imlmesh_broker import Broker, BrokerPlace, choose_broker
from imlmesh_node.joining import NewKeys, Place
from imlmesh_node.renewing import bring_up_to_date
from imlmesh_orchestrator.answering import Newcomer
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.ca.authority import CONTROL
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.entry.renewing import Renewing
from imlmesh_orchestrator.main import RunningOrchestrator, load_setup
from imlmesh_orchestrator.shell import Shell
from imlmesh_orchestrator.store.lifecycle import Numbered
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.states import Admission
from imlmesh_protocol.wire.renewal import renewal_input
from imlmesh_runtime.clock import MeshClock
from imlmesh_runtime.files import write_all
from imlmesh_runtime.link.endings import without_clock
from imlmesh_runtime.pairs import own_certificate, validity_of, write_pair
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import (
    ControlKeys,
    NodeKeys,
    Signer,
    broker_name,
    new_tls_key,
)
from join_server import JoinServer, Nonces
from orchestrator_mesh import ENDED, ME, MESH, POLICY, action, opened_mesh, plan
from waiting import slower

WITHIN_S = 40


@dataclass
class Rig:
    """A mesh with its orchestrator in this process; nodes are processes."""

    home: Home
    shell: Shell
    broker: str
    joins: JoinServer
    join_port: int
    changes: list[c.Change]
    processes: list[Forked]
    running_broker: Broker

    def signal_broker(self, number: signal.Signals) -> None:
        """To its process."""
        assert self.running_broker.pid is not None
        os.kill(self.running_broker.pid, number)

    async def let_in(self, name: str) -> Path:
        folder = self.home.node(name)
        place = Place(MESH, name, ME, (self.broker,), timing="lan")
        with Client.connect(self.home.root) as client:
            await asyncio.to_thread(let_in, client, folder, place, "local_worker", POLICY)
        with (folder / "mesh.toml").open("a") as file:
            file.write(f'join = ["127.0.0.1:{self.join_port}"]\n')
        return folder

    async def start(self, folder: Path) -> Forked:
        log = self.home.logs / f"{folder.name}.log"
        process = Forked(Start("imlmesh_node", (str(folder),), log))
        self.processes.append(process)
        return process

    async def until(self, holds: Callable[[], Any]) -> Any:
        while True:
            if found := holds():
                return found
            await asyncio.sleep(0.05)

    async def online(self, name: str) -> None:
        await self.until(
            lambda: (known := self.shell.state.nodes.get(name)) and known.liveness == "online"
        )

    def of(self, kind: type[Any], node: str) -> list[Any]:
        return [one for one in self.changes if type(one) is kind and one.node == node]


@contextlib.asynccontextmanager
async def rig_at(
    folder: Path, node_s: int, prepare: Callable[[Authority], None] = lambda _: None
) -> AsyncIterator[Rig]:
    home = Home(folder / "h")
    authority = Authority.create(home, MESH, ME)
    prepare(authority)
    (home.root / "orchestrator.toml").write_text(f"[certificates]\nnode_s = {node_s}\n")
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    broker = choose_broker(os.environ)(MESH, ME, place, ControlKeys.load(home.ca, MESH).context)
    await broker.start()
    address = f"127.0.0.1:{broker.port}"
    ports = f"port = {broker.port}\ncontrol_port = {broker.control_port}\n"
    (home.orchestrator / "mesh.toml").write_text(f'{ports}timing = "lan"\n')
    running = RunningOrchestrator(load_setup(home, f"127.0.0.1:{broker.control_port}"))
    processes: list[Forked] = []
    try:
        async with asyncio.timeout(60):
            shell = await running.start()
            changes: list[c.Change] = []

            def committed(numbered: list[Numbered]) -> None:
                changes.extend(change for _, change in numbered)

            shell.lifecycle.watch(committed)
            nonces = Nonces()
            renewing = Renewing(authority, shell, nonces.take, node_s)
            joins = JoinServer(home.ca, nonces, renewing.renew)
            async with joins.serving() as port:
                yield Rig(home, shell, address, joins, port, changes, processes, broker)
    finally:
        for process in processes:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        await running.close()
        await broker.stop()


def ends_ms(folder: Path) -> int:
    return validity_of(own_certificate(folder / "keys" / "node.pem")).ends_ms


def life_s(idle_s: int) -> int:
    """Of a certificate whose last third is time enough to renew it, also where others compute: the
    embedded broker ends a session with its certificate, to the second."""
    return round(idle_s * min(slower(), 2))


async def test_a_certificate_renews_twice_while_an_action_runs(tmp_path):
    node_s = life_s(4)
    async with rig_at(tmp_path, node_s=node_s) as rig:
        folder = await rig.let_in("pi")
        await rig.start(folder)
        await rig.online("pi")
        params = {"delay_ms": 2_000 * node_s, "marker": "done", "value": 1}
        sent = plan(action("work", "act", params=params))
        with Client.connect(rig.home.root) as client:
            asked = {"text": sent, "file": "p.json"}
            run = (await asyncio.to_thread(client.post, "runs", asked))["run"]
            state = await rig.until(
                lambda: (found := rig.shell.state.runs.get(run)) and found.state in ENDED and found
            )
        assert state.state == "completed"
        assert (folder / "files" / "done").read_text().splitlines() == [f"{run}/work/pi/1"]
        # the one of the start, and at least two more in two lives of work
        assert len(rig.of(c.CertificateIssued, "pi")) >= 3
        assert ends_ms(folder) > time.time() * 1_000
        assert not (folder / "keys" / "node.key").exists()
        sessions = {one.session for one in rig.of(c.NodeReturned, "pi")}
        assert len(sessions) >= 2
        assert {str(one.liveness) for one in rig.of(c.LivenessChanged, "pi")} == {"online"}
        # work was dispatched once
        assert [one.attempt for one in rig.changes if type(one) is c.DispatchPlanned] == [1]


async def test_a_node_whose_certificate_has_ended_comes_back_by_its_identity(tmp_path):
    async with rig_at(tmp_path, node_s=3) as rig:
        folder = await rig.let_in("pi")
        await rig.until(lambda: time.time() * 1_000 > ends_ms(folder) + 500)
        await rig.start(folder)
        await rig.online("pi")
        assert rig.joins.asked.count("/v1/renew") >= 1
        assert ends_ms(folder) > time.time() * 1_000 - 3_000


@pytest.mark.parametrize("spoilt", ["node.pem", "node.key", "renewed"])
async def test_a_node_whose_pair_was_spoilt_on_its_disk_comes_back_by_its_identity(
    tmp_path, spoilt
):
    async with rig_at(tmp_path, node_s=600) as rig:
        folder = await rig.let_in("pi")
        if spoilt == "renewed":  # then key and certificate are one file
            (folder / "keys" / "node.key").unlink()
            spoilt = "node.pem"
        (folder / "keys" / spoilt).write_bytes(b"")
        await rig.start(folder)
        await rig.online("pi")
        assert rig.joins.asked.count("/v1/renew") >= 1
        assert ends_ms(folder) > time.time() * 1_000
        assert "Traceback" not in (rig.home.logs / "pi.log").read_text()


async def test_an_answer_that_is_lost_is_asked_for_again(tmp_path, monkeypatch):
    async with rig_at(tmp_path, node_s=life_s(9)) as rig:
        folder = await rig.let_in("pi")
        rig.joins.lose = 1
        await rig.start(folder)
        await rig.online("pi")
        first = own_certificate(folder / "keys" / "node.pem")
        await rig.until(lambda: own_certificate(folder / "keys" / "node.pem") != first)
        # of the start, lost, and held
        assert len(rig.of(c.CertificateIssued, "pi")) >= 3
        assert rig.joins.lose == 0
        assert {str(one.liveness) for one in rig.of(c.LivenessChanged, "pi")} == {"online"}


async def test_the_orchestrator_renews_its_own_certificate_and_goes_on(tmp_path):
    def short_lived(authority: Authority) -> None:
        key, request = new_tls_key(ME)
        uri = f"imlmesh://{MESH}/control/{ME}"
        issued = authority.issuer(CONTROL).issue_client(request, ME, uri, 9)
        write_pair(authority.folder / "control.pem", key, issued.pem)

    async with rig_at(tmp_path, node_s=600, prepare=short_lived) as rig:
        pem = rig.home.ca / "control.pem"
        first = own_certificate(pem)
        folder = await rig.let_in("pi")
        await rig.start(folder)
        await rig.online("pi")
        await rig.until(lambda: own_certificate(pem) != first and rig.shell.link.connected)
        assert validity_of(own_certificate(pem)).ends_ms > time.time() * 1_000 + 86_400_000
        # a session of the new certificate, and the node is still led
        await rig.until(lambda: rig.of(c.NodeReturned, "pi"))
        assert {str(one.liveness) for one in rig.of(c.LivenessChanged, "pi")} == {"online"}


YEARS_MS = 20 * 365 * 86_400_000


def of_the_future(authority: Authority) -> None:
    """A broker whose certificate begins 20 years after what the clock of this machine says."""
    key, request = new_tls_key("broker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CERTIFICATE_BACKDATE_MS", -YEARS_MS)
        patch.setattr(limits, "SERVER_S", 2 * YEARS_MS // 1_000)
        issued = authority.issuer(CONTROL).issue_server(request, broker_name(MESH))
    write_all(authority.folder.parent / "broker", {"broker.key": key, "broker.pem": issued.pem})


async def test_a_node_whose_clock_is_years_behind_works(tmp_path, monkeypatch):
    """What holds for a certificate of the year 2046 in 2026 holds for one of today in 2006."""
    timeless = ControlKeys.load
    monkeypatch.setattr(ControlKeys, "load", lambda *a, **k: _timeless(timeless(*a, **k)))
    monkeypatch.setattr(
        "imlmesh_orchestrator.main.MeshClock",
        lambda not_before_ms: MeshClock(time.time_ns() // 1_000_000 + YEARS_MS + 60_000),
    )
    async with rig_at(tmp_path, node_s=600, prepare=of_the_future) as rig:
        folder = await rig.let_in("pi")
        await rig.start(folder)
        await rig.online("pi")
        assert await ran(rig, "years-later")


async def test_a_broker_whose_certificate_does_not_hold_in_mesh_time_is_left(tmp_path, monkeypatch):
    timeless = ControlKeys.load
    monkeypatch.setattr(ControlKeys, "load", lambda *a, **k: _timeless(timeless(*a, **k)))
    async with rig_at(tmp_path, node_s=600, prepare=of_the_future) as rig:
        folder = await rig.let_in("pi")
        await rig.start(folder)
        log = rig.home.logs / "pi.log"
        await rig.until(lambda: "not valid in mesh time" in log.read_text())
        # it asked for the time, heard it, and said nothing more
        assert rig.of(c.NodeDescribed, "pi") == []
        assert "pi" not in rig.shell.state.nodes


def _timeless(keys: ControlKeys) -> ControlKeys:
    """For an orchestrator and a broker's keeper that live in the broker's future."""
    make = keys.context
    keys.context = lambda: without_clock(make())
    return keys


async def ran(rig: Rig, marker: str) -> bool:
    """Whether a plan completes that leaves a marker on the node."""
    text = plan(action("work", "act", params={"marker": marker}))
    with Client.connect(rig.home.root) as client:
        run = (await asyncio.to_thread(client.post, "runs", {"text": text, "file": "p"}))["run"]
    ended = await rig.until(
        lambda: (found := rig.shell.state.runs.get(run)) and found.state in ENDED and found
    )
    lines = (rig.home.node("pi") / "files" / marker).read_text().splitlines()
    return ended.state == "completed" and lines == [f"{run}/work/pi/1"]


def request_of(rig: Rig, node: str, signer: Signer, nonce: bytes, mesh: str = MESH) -> dict:
    _, request = new_tls_key(node)
    proof = signer.sign(renewal_input(mesh, node, request, nonce))
    return {"node": node, "request": request, "nonce": nonce, "proof": proof}


async def test_one_node_cannot_fill_the_revocation_list(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "JOIN_WRITES", 3)
    async with rig_at(tmp_path, node_s=600) as rig:
        signer = Signer.of_key(SigningKey.generate())
        newcomer = Newcomer("pi", "pi", signer.raw_public, "readonly")
        authority = Authority.open(rig.home)
        request = NewKeys.make().request
        await rig.shell.enrol(newcomer, authority.certify(request, "pi"), "anna")
        nonces = Nonces()
        renewing = Renewing(authority, rig.shell, nonces.take, 600)
        stranger = Signer.of_key(SigningKey.generate())
        for _ in range(9):
            with pytest.raises(MeshError, match="did not sign"):
                await renewing.renew(request_of(rig, "pi", stranger, nonces.give()))
        for _ in range(3):
            await renewing.renew(request_of(rig, "pi", signer, nonces.give()))
        with pytest.raises(MeshError) as caught:
            await renewing.renew(request_of(rig, "pi", signer, nonces.give()))
        assert caught.value.code == "join.busy"
        assert len(rig.shell.state.enrolled["pi"].certificates) == 4


async def test_a_removed_node_says_so_whatever_sits_at_the_other_addresses(tmp_path):
    other = Home(tmp_path / "other")
    Authority.create(other, MESH, ME)
    async with rig_at(tmp_path, node_s=600) as rig:
        folder = await rig.let_in("pi")
        told = {"admission": "revoked", "reason": "stolen"}
        with Client.connect(rig.home.root) as client:
            await asyncio.to_thread(client.post, "nodes/pi/admission", told)
        nonces = Nonces()
        foreign = JoinServer(other.ca, nonces, rig.joins._renew)
        async with foreign.serving() as port:
            places = [("127.0.0.1", each) for each in (rig.join_port, port, 1)]
            with pytest.raises(MeshError) as caught:
                await bring_up_to_date(folder, places, certificate=True, at_ms=None)
        assert (caught.value.code, foreign.asked) == ("node.revoked", ["/v1/trust"])


async def test_who_is_not_entitled_gets_no_certificate(tmp_path):
    async with rig_at(tmp_path, node_s=600) as rig:
        keys = NewKeys.make()
        signer = Signer.of_key(SigningKey.generate())
        newcomer = Newcomer("pi", "pi", signer.raw_public, "readonly")
        authority = Authority.open(rig.home)
        await rig.shell.enrol(newcomer, authority.certify(keys.request, "pi"), "anna")
        nonces = Nonces()
        renewing = Renewing(authority, rig.shell, nonces.take, 600)

        async def why_not(body: dict[str, Any]) -> str:
            with pytest.raises(MeshError) as caught:
                await renewing.renew(body)
            return caught.value.code

        stranger = Signer.of_key(SigningKey.generate())
        good = request_of(rig, "pi", signer, nonces.give())
        told = await renewing.renew(good)
        assert b"BEGIN CERTIFICATE" in told["certificate"]
        assert await why_not(good) == "join.nonce"
        fresh = request_of(rig, "pi", signer, bytes(16))
        assert await why_not(fresh) == "join.nonce"
        unknown = request_of(rig, "pi-2", signer, nonces.give())
        assert await why_not(unknown) == "signature.unknown_key"
        forged = request_of(rig, "pi", stranger, nonces.give())
        assert await why_not(forged) == "signature.invalid"
        elsewhere = request_of(rig, "pi", signer, nonces.give(), mesh="other")
        assert await why_not(elsewhere) == "signature.invalid"
        _, other = new_tls_key("pi")
        swapped = request_of(rig, "pi", signer, nonces.give()) | {"request": other}
        assert await why_not(swapped) == "signature.invalid"
        no_key = renewal_input(MESH, "pi", b"no", nonce := nonces.give())
        junk = {"node": "pi", "request": b"no", "nonce": nonce, "proof": signer.sign(no_key)}
        assert await why_not(junk) == "signature.invalid"
        assert await why_not({**good, "more": 1}) == "message.invalid"
        assert await why_not({**good, "nonce": b"short"}) == "message.invalid"
        await rig.shell.set_admission("pi", Admission.REVOKED, "lost", "anna", 0)
        removed = request_of(rig, "pi", signer, nonces.give())
        assert await why_not(removed) == "node.revoked"
        issued = rig.of(c.CertificateIssued, "pi")
        assert len(issued) == 2


KILLED_AT = """
import os, signal, sys
from pathlib import Path
left = int(sys.argv.pop(1))
def counted(call):
    def deed(*given, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*given, **named)
    return deed
Path.replace, Path.unlink, os.fsync = (
    counted(one) for one in (Path.replace, Path.unlink, os.fsync)
)
from imlmesh_node.renewing import main
sys.exit(main(sys.argv[1:]))
"""


async def test_a_renewal_that_is_killed_anywhere_leaves_a_pair_that_works(tmp_path):
    async with rig_at(tmp_path, node_s=600) as rig:
        folder = await rig.let_in("pi")
        serials = {own_certificate(folder / "keys" / "node.pem")}
        for deed in range(1, 20):
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", KILLED_AT, str(deed), "--certificate", str(folder)),
                f"127.0.0.1:{rig.join_port}",
                stderr=asyncio.subprocess.DEVNULL,
            )
            code = await child.wait()
            # key and certificate belong together, or this raises
            NodeKeys.load(folder, MESH, strict=True).context()
            serials.add(own_certificate(folder / "keys" / "node.pem"))
            if code == 0:
                break
            assert code == -signal.SIGKILL
        assert deed >= 4, "it was killed at each write"
        assert len(serials) >= 3
        await rig.start(folder)
        await rig.online("pi")


async def changed(folder: Path, before: bytes) -> None:
    """The node of `folder` has another certificate."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            if own_certificate(folder / "keys" / "node.pem") != before:
                return
            await asyncio.sleep(0.05)


async def test_orchestrator_node_and_broker_may_be_killed_while_certificates_renew(tmp_path):
    """At the endpoint of the orchestrator itself; each is killed once and comes back."""
    async with opened_mesh(tmp_path) as mesh:
        (mesh.home.root / "orchestrator.toml").write_text("[certificates]\nnode_s = 6\n")
        await mesh.orchestrator()
        folder = await mesh.let_in("pi")
        port = json.loads(mesh.home.join_json.read_bytes())["port"]
        text = (folder / "mesh.toml").read_text()
        if "join" not in text:
            (folder / "mesh.toml").write_text(f'{text}join = ["127.0.0.1:{port}"]\n')
        await mesh.node("pi")
        await mesh.online("pi")
        for victim in (ME, "pi", "broker"):
            before = own_certificate(folder / "keys" / "node.pem")
            if victim == "broker":
                mesh.kill_broker()
            else:
                await mesh.kill(victim)
                await (mesh.orchestrator() if victim == ME else mesh.node("pi"))
            await changed(folder, before)
            await mesh.online("pi")
            sent = plan(action("work", "act", params={"marker": f"after-{victim}"}))
            run = (await mesh.submit(sent))["run"]
            assert (await mesh.ended(run))["state"] == "completed"
            assert (folder / "files" / f"after-{victim}").read_text() == f"{run}/work/pi/1\n"
