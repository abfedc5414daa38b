"""A node process on a real broker, led by a scripted orchestrator."""

import asyncio
import hashlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imlmesh_broker import Broker
from imlmesh_protocol.limits import LAN
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import Signer, load_signer, new_signing_key
from scripted_control import (
    MESH,
    NODE,
    WITHIN_S,
    Control,
    NodeProcess,
    dispatch,
    is_birth,
    now_ms,
    opened_control,
    opened_home,
    opened_node,
    packed,
    results,
    wait_for,
)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[tuple[Home, Broker]]:
    async with opened_home(tmp_path) as made:
        yield made


@pytest.fixture
async def control(home: tuple[Home, Broker]) -> AsyncIterator[Control]:
    async with opened_control(*home) as made:
        yield made


@pytest.fixture
async def node(home: tuple[Home, Broker]) -> AsyncIterator[NodeProcess]:
    async with opened_node(*home) as made:
        yield made


async def test_a_birth_says_what_the_node_can_do(control: Control, node: NodeProcess) -> None:
    birth = await control.wait(is_birth)
    assert control.heard[0].kind is Kind.REQUEST  # nothing is said before the time is known
    assert set(birth.fields["manifest"]["modules"]) == {"fake", "filesystem"}
    assert birth.fields["profile"] == "local_worker"
    assert birth.fields["facts"]["cpu"] >= 1
    assert (birth.fields["heartbeat_ms"], birth.fields["lost_ms"]) == (2_000, 6_000)
    beat = await control.wait(lambda m: m.kind is Kind.HEARTBEAT)
    assert {"cpu_percent", "memory_percent", "disk_percent", "load"} <= set(beat.fields["health"])


async def test_actions_of_every_kind_are_done_and_answered(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    noop, echo = dispatch(1, "noop", "pure"), dispatch(2, "echo", "once", value=[1, {"a": None}])
    act = dispatch(3, value="x", log_lines=2, delay_ms=50)
    refused = dispatch(4, "no_such")
    control.delegate(noop, echo, act, refused)
    assert (await control.result(noop))["result"] == {}
    assert (await control.result(echo))["result"] == {"value": [1, {"a": None}]}
    done = await control.result(act)
    assert done["result"] == {"value": "x"}
    assert done["hash"] == hashlib.sha256(packed(act)).digest()
    accept = await control.wait(lambda m: m.kind is Kind.ACCEPT)
    assert accept.fields["dispatches"] == [[act.id, done["hash"]]]
    assert accept.fields["started"] == [act.id]
    reject = await control.wait(lambda m: m.kind is Kind.REJECT)
    assert [item["code"] for item in reject.fields["refusals"]] == ["action.unknown"]
    line = await control.wait(lambda m: m.kind is Kind.EVENT and m.channel == "log")
    assert line.fields == {"dispatch": act.id, "line": "line 0", "stream": "log"}
    await control.wait(lambda m: m.kind is Kind.EVENT and m.channel == "progress")


async def test_a_result_comes_again_until_it_is_settled(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    control.settles = False
    one = dispatch(1, "noop")
    control.delegate(one)
    await control.result(one)
    control.heard.clear()
    control.settles = True
    await control.result(one)
    control.heard.clear()
    other = dispatch(2, "noop")
    control.delegate(other)
    await control.result(other)
    assert not any(results(message, one) for message in control.heard)


async def test_killed_in_the_middle_of_a_once_action_it_says_unknown(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    one = dispatch(1, marker="ran", hang=True)
    envelope = control.delegate(one)
    marker = node.folder / "files" / "ran"
    await wait_for(marker.exists)
    await node.end(signal.SIGKILL)
    gone = await control.wait(lambda m: m.kind is Kind.STATUS and m.fields["state"] == "gone")
    control.heard.clear()
    await node.start()
    birth = await control.wait(is_birth)
    assert birth.term > gone.term
    result = await control.result(one)
    assert (result["outcome"], result["error"]["code"]) == ("unknown", "node.interrupted")
    control.heard.clear()
    control.link.publish(topics.to_node(MESH, NODE, Kind.DELEGATE), envelope)
    control.delegate(other := dispatch(2, "noop"))
    await control.result(other)
    assert marker.read_text() == f"{one.id}\n"
    assert not any(results(message, one) for message in control.heard)


async def test_a_lost_connection_loses_no_result(
    control: Control, node: NodeProcess, home: tuple[Home, Broker]
) -> None:
    await control.wait(is_birth)
    one = dispatch(1, value="kept", delay_ms=1_500)
    control.delegate(one)
    await control.wait(lambda m: m.kind is Kind.ACCEPT)
    pid = home[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert (await control.result(one))["result"] == {"value": "kept"}


async def test_a_wrong_signature_is_refused_and_counted(
    control: Control, node: NodeProcess, tmp_path: Path
) -> None:
    await control.wait(is_birth)
    (tmp_path / "other.key").write_bytes(new_signing_key()[0])
    (tmp_path / "other.key").chmod(0o600)
    stranger, own = load_signer(tmp_path / "other.key"), control.signer
    sealer = control.sealer
    control.begin_epoch(1, stranger)
    control.delegate(dispatch(1, marker="never"))
    control.begin_epoch(1, Signer(own.key_id, own.raw_public, stranger.sign))
    control.delegate(dispatch(2, marker="never"))
    control.sealer = sealer
    forged = bytearray(control.delegate(dispatch(3, "noop")))
    forged[-1] ^= 1
    for payload in (b"", b"nonsense", bytes(forged), b"\x95" * 100_000):
        control.link.publish(topics.to_node(MESH, NODE, Kind.DELEGATE), payload)
    control.delegate(good := dispatch(4, "noop"))
    await control.result(good)
    assert not any(results(m, dispatch(n)) for m in control.heard for n in (1, 2))
    assert not (node.folder / "files" / "never").exists()
    log = node.log.read_text()
    for code in ("signature.unknown_key", "signature.invalid", "message.invalid"):
        assert f'"code": "{code}"' in log


@pytest.mark.alone
async def test_heartbeats_are_on_time_whatever_drivers_do(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    came_ms: list[int] = []
    control.heard.clear()
    control.delegate(
        # first: what hangs blocks the child, and might do so before the flood begins
        dispatch(1, log_lines=200_000),
        dispatch(2, hang=True),
        dispatch(3, crash=True),
        dispatch(4, hang=True),
    )
    await control.wait(lambda m: m.kind is Kind.EVENT and m.channel == "log")
    for _ in range(4):
        control.heard.clear()
        await control.wait(lambda m: m.kind is Kind.HEARTBEAT, LAN.heartbeat_ms / 1_000 + 0.5)
        came_ms.append(now_ms())
    gaps = [later - earlier for earlier, later in itertools.pairwise(came_ms)]
    assert max(gaps) <= LAN.heartbeat_ms + 500


async def test_cancel_ends_what_hangs(control: Control, node: NodeProcess) -> None:
    await control.wait(is_birth)
    one = dispatch(1, hang=True, marker="ran")
    control.delegate(one)
    await wait_for((node.folder / "files" / "ran").exists)
    control.say(Kind.COMMAND, {"do": "cancel", "dispatches": [one.id]})
    result = await control.result(one)
    assert (result["outcome"], result["error"]["code"]) == ("cancelled", "action.cancelled")


async def test_a_newer_orchestrator_hears_everything_again(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    control.settles = False
    control.delegate(one := dispatch(1, "noop"))
    await control.result(one)
    control.heard.clear()
    old = control.sealer
    control.begin_epoch(2, control.signer)
    control.say(Kind.REQUEST, {"what": "inventory", "nonce": "n-1"})
    await control.wait(is_birth, LAN.heartbeat_ms / 1_000)
    await control.result(one)
    told = await control.wait(lambda m: m.kind is Kind.RESPONSE)
    assert told.fields["nonce"] == "n-1"
    assert told.fields["unsettled"] == [one.id]
    new, control.sealer = control.sealer, old
    control.delegate(dispatch(2, marker="never"))
    control.sealer = new
    control.delegate(other := dispatch(3, "noop"))
    await control.result(other)
    assert not (node.folder / "files" / "never").exists()
    told = await control.wait(lambda m: m.channel == "telemetry/refusals")
    assert told.fields["values"] == {"message.epoch": 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_well_when_asked(
    control: Control, node: NodeProcess, number: signal.Signals
) -> None:
    await control.wait(is_birth)
    one = dispatch(1, hang=True, marker="ran")
    control.delegate(one)
    await wait_for((node.folder / "files" / "ran").exists)
    assert await node.end(number) == 0
    assert (await control.result(one))["outcome"] == "unknown"
    assert control.heard[-1].fields == {"state": "offline"}


async def test_it_ends_with_the_parent_that_started_it(control: Control, node: NodeProcess) -> None:
    await node.end()
    reading, writing = os.pipe()
    environ = {**os.environ, "IMLMESH_PARENT_FD": str(reading)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "imlmesh_node", str(node.folder)), env=environ, pass_fds=(reading,)
    )
    os.close(reading)
    control.heard.clear()
    await control.wait(is_birth)
    os.close(writing)
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 0


async def test_a_folder_has_one_agent(control: Control, node: NodeProcess) -> None:
    await control.wait(is_birth)
    second = NodeProcess(node.folder)
    second.log = node.folder / "second.log"
    process = await second.start()
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 3
    assert '"code": "node.running"' in second.log.read_text()
