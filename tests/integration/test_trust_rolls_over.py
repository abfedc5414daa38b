"""Trust rolls over on a mesh that runs: a real broker, an orchestrator, nodes that are processes."""

import asyncio
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imlmesh import trust
from imlmesh.client import Client
from imlmesh_orchestrator.core import changes as c
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.codec import unpack
from imlmesh_protocol.wire.dispatches import encode_dispatch
from imlmesh_protocol.wire.envelope import Sealer
from imlmesh_protocol.wire.seals import read_seal
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.pairs import is_issued_by, own_certificate
from imlmesh_runtime.trust import HeldTrust, Signer, load_signer
from orchestrator_mesh import ENDED, ME, MESH, action, opened_mesh, plan
from test_renewing import Rig, rig_at


async def rotate(rig: Rig, what: str) -> dict[str, Any]:
    return await asyncio.to_thread(trust.rotate, str(rig.home.root), what, None)


async def finish(rig: Rig, what: str, *, anyway: bool = False) -> dict[str, Any]:
    return await asyncio.to_thread(trust.finish, str(rig.home.root), what, None, anyway=anyway)


async def show(rig: Rig) -> dict[str, Any]:
    return await asyncio.to_thread(trust.standing, str(rig.home.root))


async def held_by_all(rig: Rig, version: int) -> None:
    while True:
        found = await show(rig)
        if found["nodes"] and all(node["version"] == version for node in found["nodes"]):
            assert not any(node["behind"] for node in found["nodes"])
            return
        await asyncio.sleep(0.05)


async def completed(rig: Rig, marker: str) -> list[str]:
    """The lines of the marker that a plan leaves, once it has completed."""
    text = plan(action("work", "act", params={"marker": marker}))
    with Client.connect(rig.home.root) as client:
        run = (await asyncio.to_thread(client.post, "runs", {"text": text, "file": "p"}))["run"]
    ended = await rig.until(
        lambda: (found := rig.shell.state.runs.get(run)) and found.state in ENDED and found
    )
    assert ended.state == "completed"
    return (rig.home.node("pi") / "files" / marker).read_text().splitlines()


def version_of(keys: Path) -> int:
    return HeldTrust(keys, MESH).trust.version


class OldVoice:
    """Speaks to a node with a key that was the orchestrator's, as a thief of it would."""

    def __init__(self, rig: Rig, signer: Signer) -> None:
        self._rig = rig
        self._sealer = Sealer(signer.sign, signer.key_id, MESH, ME, Way.TO)
        self._sealer.new_session(rig.shell.epoch + 1, 0)

    def say(self, kind: Kind, fields: dict[str, Any]) -> bytes:
        said = self._sealer.seal(kind, "pi", fields, self._rig.shell.clock.now_ms(), 60_000)
        self._rig.shell.link.publish(topics.to_node(MESH, "pi", kind), said)
        return said


def dispatch_with_marker(name: str) -> bytes:
    return encode_dispatch(
        "r-9-zzzz/work/pi/1", "fake", "act", {"marker": name}, "once", 60_000, 6_000, "finish"
    )


async def test_a_plan_key_rolls_over_and_the_old_one_moves_nothing_any_more(tmp_path):
    async with rig_at(tmp_path, node_s=600) as rig:
        old = load_signer(rig.home.ca / "plan.key")
        folder = await rig.let_in("pi")
        await rig.start(folder)
        await rig.online("pi")
        assert await completed(rig, "first")
        found = await rotate(rig, "plan")
        assert (found["version"], found["under_way"], found["orchestrator"]) == (2, ["plan"], True)
        await held_by_all(rig, 2)
        assert version_of(folder / "keys") == 2
        assert await completed(rig, "between")
        found = await finish(rig, "plan")
        assert (found["version"], found["missed"]) == (3, [])
        await held_by_all(rig, 3)
        assert await completed(rig, "after")
        # in a session of a higher epoch, so that nothing but the key is against it
        OldVoice(rig, old).say(Kind.DELEGATE, {"dispatches": [dispatch_with_marker("stolen")]})
        await rig.until(lambda: rig.shell.stream.refused["signature.unknown_key"])
        assert await completed(rig, "last")
        assert not (folder / "files" / "stolen").exists()


async def test_nodes_hold_the_roster_by_the_new_key_when_the_old_one_is_gone(tmp_path):
    """Else what they may at most would be forgotten with their next start."""
    async with rig_at(tmp_path, node_s=600) as rig:
        folder = await rig.let_in("pi")
        process = await rig.start(folder)
        await rig.online("pi")

        def standing() -> Any:
            held = HeldTrust(folder / "keys", MESH).roster
            return held and held.nodes.get("pi")

        await rig.until(lambda: standing() == ("active", "local_worker"))
        with Client.connect(rig.home.root) as client:
            await asyncio.to_thread(client.post, "nodes/pi/profile", {"profile": "readonly"})
        await rig.until(lambda: standing() == ("active", "readonly"))
        await rotate(rig, "roster")
        await held_by_all(rig, 2)
        await finish(rig, "roster")
        await held_by_all(rig, 3)
        await rig.until(lambda: standing() == ("active", "readonly"))
        assert dict(rig.shell.stream.refused) == {}
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await rig.start(folder)
        await rig.online("pi")
        assert rig.shell.state.nodes["pi"].profile == "readonly"
        assert standing() == ("active", "readonly")


async def test_trust_that_is_older_changes_nothing_and_is_counted(tmp_path):
    async with rig_at(tmp_path, node_s=600) as rig:
        first = (rig.home.ca / "trust").read_bytes()
        folder = await rig.let_in("pi")
        await rig.start(folder)
        await rig.online("pi")
        await rotate(rig, "ledger")
        await held_by_all(rig, 2)
        kept = (folder / "keys" / "trust").read_bytes()
        # as a broker could that kept it, in an envelope of the one who may speak
        rig.shell.answer("pi", Kind.COMMAND, {"do": "trust", "doc": first})
        await rig.until(lambda: rig.shell.stream.refused["trust.rollback"])
        assert (folder / "keys" / "trust").read_bytes() == kept
        damaged = bytearray(kept)
        damaged[-1] ^= 1
        rig.shell.answer("pi", Kind.COMMAND, {"do": "trust", "doc": bytes(damaged)})
        await rig.until(lambda: rig.shell.stream.refused["signature.invalid"])
        assert (folder / "keys" / "trust").read_bytes() == kept
        assert await completed(rig, "after")


async def test_seals_are_signed_by_the_key_of_the_time_and_old_ones_are_still_believed(tmp_path):
    async with rig_at(tmp_path, node_s=600) as rig:
        folder = await rig.let_in("pi")
        await rig.start(folder)
        await rig.online("pi")

        async def witnessed_key() -> bytes:
            """That of the seal of now, which the node has checked and names."""
            ledger = rig.shell.ledger
            # what was decided last is told a moment later
            await rig.until(lambda: ledger.file.tip.seq >= rig.shell.lifecycle.last_seq)
            await ledger.seal()
            size = ledger.last.size

            def names_it() -> bytes | None:
                seal = rig.shell.ledger.witnessed.get("pi")
                find_key = HeldTrust(folder / "keys", MESH).ledger_key
                known = seal is not None and read_seal(seal, find_key).size >= size
                return unpack(seal)[2] if known and seal else None

            return await rig.until(names_it)

        old = load_signer(rig.home.ca / "ledger.key").key_id
        assert await completed(rig, "first")
        assert await witnessed_key() == old
        await rotate(rig, "ledger")
        await held_by_all(rig, 2)
        await finish(rig, "ledger")
        assert await completed(rig, "second")
        assert await witnessed_key() == load_signer(rig.home.ca / "ledger.key").key_id != old


async def test_who_missed_it_all_learns_trust_where_nodes_join(tmp_path):
    async with rig_at(tmp_path, node_s=600) as rig:
        folder = await rig.let_in("pi")
        node = await rig.start(folder)
        await rig.online("pi")
        os.killpg(node.pid, signal.SIGKILL)
        await node.wait()
        await rig.until(lambda: rig.shell.state.nodes["pi"].liveness != "online")
        for _ in range(2):
            await rotate(rig, "plan")
            found = await finish(rig, "plan")
            assert found["missed"] == ["pi"]
        assert version_of(folder / "keys") == 1
        await rig.start(folder)
        await rig.online("pi")
        await held_by_all(rig, 5)
        assert await completed(rig, "back")
        assert rig.joins.asked.count("/v1/trust") >= 1


async def test_nothing_is_finished_over_the_head_of_a_node_that_is_online(tmp_path):
    async with rig_at(tmp_path, node_s=600) as rig:
        folder = await rig.let_in("pi")
        node = await rig.start(folder)
        await rig.online("pi")
        os.killpg(node.pid, signal.SIGSTOP)
        await rotate(rig, "plan")
        with pytest.raises(InputError) as caught:
            await finish(rig, "plan")
        assert caught.value.code == "trust.rotating"
        assert "pi" in caught.value.message
        assert (await show(rig))["under_way"] == ["plan"]
        os.killpg(node.pid, signal.SIGCONT)
        await held_by_all(rig, 2)
        assert (await finish(rig, "plan"))["under_way"] == []


async def test_the_cas_roll_over_and_nodes_follow(tmp_path):
    async with rig_at(tmp_path, node_s=600) as rig:
        folder = await rig.let_in("pi")
        await rig.start(folder)
        await rig.online("pi")
        pem = folder / "keys" / "node.pem"
        await rotate(rig, "node-ca")
        await held_by_all(rig, 2)
        new = HeldTrust(rig.home.ca, MESH).trust.node_cas[0]
        await rig.until(lambda: is_issued_by(own_certificate(pem), new))
        await rig.online("pi")
        await finish(rig, "node-ca")
        await held_by_all(rig, 3)
        assert await completed(rig, "node-ca")
        await rotate(rig, "control-ca")
        await held_by_all(rig, 4)
        await finish(rig, "control-ca")
        await held_by_all(rig, 5)
        assert await completed(rig, "control-ca")
        # whoever comes anew sees and shows what is new
        rig.signal_broker(signal.SIGKILL)
        await rig.until(lambda: not rig.shell.link.connected)
        await rig.until(lambda: rig.shell.link.connected)
        await rig.online("pi")
        assert await completed(rig, "anew")
        trusted = HeldTrust(folder / "keys", MESH).trust
        assert len(trusted.node_cas) == len(trusted.control_cas) == 1
        assert is_issued_by(own_certificate(rig.home.broker / "broker.pem"), trusted.control_cas[0])
        assert is_issued_by(own_certificate(rig.home.ca / "control.pem"), trusted.control_cas[0])
        lost = [one for one in rig.of(c.LivenessChanged, "pi") if str(one.liveness) == "lost"]
        assert lost == []


@pytest.mark.parametrize("what", ["node-ca", "control-ca"])
async def test_nobody_is_told_of_what_the_broker_does_not_do(tmp_path, monkeypatch, what):
    monkeypatch.setattr(limits, "BROKER_FOLLOWS_S", 0.5)
    monkeypatch.setattr(limits, "LINK_CONNECT_MS", 500)
    async with rig_at(tmp_path, node_s=600) as rig:
        folder = await rig.let_in("pi")
        await rig.start(folder)
        await rig.online("pi")
        deeds = [partial(rotate, rig, what)]
        if what == "control-ca":
            deeds.append(partial(finish, rig, what, anyway=True))
        for version, deed in enumerate(deeds, 2):
            rig.signal_broker(signal.SIGSTOP)
            with pytest.raises(InputError) as caught:
                await deed()
            rig.signal_broker(signal.SIGCONT)
            assert caught.value.code == "trust.rotating"
            assert "the broker does not" in caught.value.message
            assert version_of(rig.home.ca) == version - 1
            await deed()
            await held_by_all(rig, version)
            assert await completed(rig, f"after-{version}")


async def test_orchestrator_node_and_broker_may_be_killed_while_a_key_rolls_over(tmp_path):
    async with opened_mesh(tmp_path) as mesh:
        home = str(mesh.home.root)
        folder = mesh.home.node("pi")
        await mesh.orchestrator()
        await mesh.node("pi")
        await mesh.online("pi")

        async def held(version: int) -> None:
            await mesh.until(
                "trust",
                lambda found: found["nodes"][0]["version"] == version == found["version"],
            )

        async def works(name: str) -> None:
            text = plan(action("work", "act", params={"marker": name}))
            run = (await mesh.submit(text))["run"]
            assert (await mesh.ended(run))["state"] == "completed"
            assert (folder / "files" / name).read_text() == f"{run}/work/pi/1\n"

        await mesh.kill(ME)
        found = await asyncio.to_thread(trust.rotate, home, "plan", None)
        assert (found["version"], found["orchestrator"]) == (2, False)
        await mesh.orchestrator()
        await held(2)
        await mesh.kill("pi")
        await mesh.node("pi")
        await held(2)
        mesh.kill_broker()
        await works("after-broker")
        await mesh.kill(ME)
        found = await asyncio.to_thread(trust.finish, home, "plan", None, anyway=False)
        assert (found["version"], found["under_way"]) == (3, [])
        await mesh.kill("pi")
        await mesh.node("pi")
        await mesh.orchestrator()
        await held(3)
        await works("after-all")
