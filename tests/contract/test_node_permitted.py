"""Permits at the door of a node: only what a trusted plan key signed for it is held, also after a restart."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from imlmesh_node.journal import MIGRATIONS
from imlmesh_node.presence import Clocks
from imlmesh_protocol.permits import CUT_OFF, Permit, PermitAction, Rule
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.permits import pack_permit, sign_permit
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.sqlite import MemoryStore
from imlmesh_runtime.trust import Signer
from test_node_presence import MESH, NODE, START_MS, Rig

HOUR_MS = 3_600_000


class Disk(MemoryStore):
    """The next agent opens it again."""

    async def close(self) -> None: ...


def permit(**more: Any) -> Permit:
    action = PermitAction("look", "fake", "noop", {}, Effect.PURE, 1_000)
    told = {"id": "p-1-kq7x", "node": NODE, "mesh": MESH, "plan": "p", "digest": "d", "budget": 2}
    told |= {"from_ms": START_MS, "to_ms": START_MS + HOUR_MS, "rule": Rule(CUT_OFF, 0)}
    return Permit(**{**told, "actions": (action,), **more})


def signed(rig: Rig, what: Permit, signer: Signer | None = None) -> bytes:
    by = signer or rig._plan
    return sign_permit(pack_permit(what), by.sign, by.key_id)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.pump.close()


async def opened(rig: Rig) -> dict[str, int]:
    """What the birth of a new session tells."""
    rig.control.answer(await rig.control.next(Kind.REQUEST))
    birth = await rig.control.next(Kind.STATUS)
    found: dict[str, int] = birth.fields["permits"]
    return found


async def told(rig: Rig) -> dict[str, int]:
    birth = await rig.control.next(Kind.STATUS)
    found: dict[str, int] = birth.fields["permits"]
    return found


async def test_what_is_signed_for_this_node_is_held_and_told_also_after_a_restart(rig: Rig) -> None:
    store = Disk(MIGRATIONS)
    node = await rig.start(store)
    assert await opened(rig) == {}
    rig.control.say(Kind.COMMAND, {"do": "permit", "doc": signed(rig, permit())})
    assert await told(rig) == {"p-1-kq7x": 0}
    other = permit(id="p-2-kq7x")
    rig.control.say(Kind.COMMAND, {"do": "permit", "doc": signed(rig, other), "drop": ["p-1-kq7x"]})
    assert await told(rig) == {"p-2-kq7x": 0}
    await node.stop()
    again = await rig.start(store)
    while await opened(rig) != {"p-2-kq7x": 0}:  # the goodbye comes before
        pass
    await again.stop()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("stranger", "signature.unknown_key"),
        ("changed", "signature.invalid"),
        ("other node", "message.audience"),
        ("other mesh", "message.audience"),
        ("over", "permit.expired"),
        ("nonsense", "message.invalid"),
    ],
)
async def test_what_is_not_is_refused_and_counted(rig: Rig, wrong: str, code: str) -> None:
    node = await rig.start(MemoryStore(MIGRATIONS))
    await opened(rig)
    document = {
        "stranger": lambda: signed(rig, permit(), Signer.of_key(SigningKey.generate())),
        "changed": lambda: signed(rig, permit()).replace(b"noop", b"echo"),
        "other node": lambda: signed(rig, permit(node="pi-2")),
        "other mesh": lambda: signed(rig, permit(mesh="away")),
        "over": lambda: signed(rig, permit(from_ms=1, to_ms=2)),
        "nonsense": lambda: b"\xc1",
    }[wrong]()
    rig.control.say(Kind.COMMAND, {"do": "permit", "doc": document})
    rig.control.say(Kind.COMMAND, {"do": "rebirth"})
    assert await told(rig) == {}
    assert node.refusals.counts[code] == 1
    await node.stop()


async def test_a_permit_whose_key_is_trusted_no_more_is_not_held_after_a_restart(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Disk(MIGRATIONS)
    node = await rig.start(store)
    await opened(rig)
    rig.control.say(Kind.COMMAND, {"do": "permit", "doc": signed(rig, permit())})
    assert await told(rig) == {"p-1-kq7x": 0}
    await node.stop()
    real = rig._held.plan_key
    monkeypatch.setattr(type(rig._held), "plan_key", lambda self, key_id: None)
    again = await rig.start(store)
    monkeypatch.setattr(type(rig._held), "plan_key", lambda self, key_id: real(key_id))
    record = again.agent.state.permits["p-1-kq7x"]
    assert record.refusal is not None
    assert record.refusal.code == "permit.untrusted"
    assert again.agent.permits.held() == {}
    await again.stop()


@pytest.mark.parametrize("document", ["newer", "\0"])
async def test_a_permit_that_cannot_be_read_any_more_keeps_no_node_from_its_start(
    rig: Rig, document: str
) -> None:
    store = Disk(MIGRATIONS)
    node = await rig.start(store)
    await opened(rig)
    rig.control.say(Kind.COMMAND, {"do": "permit", "doc": signed(rig, permit())})
    assert await told(rig) == {"p-1-kq7x": 0}
    await node.stop()
    newer = pack({**unpack(pack_permit(permit())), "season": "summer"})
    stored = sign_permit(newer, rig._plan.sign, rig._plan.key_id)
    store.database.execute(
        "UPDATE permits SET used = 1, document = ?",
        (stored if document == "newer" else document.encode(),),
    )
    again = await rig.start(store)
    record = again.agent.state.permits["p-1-kq7x"]
    assert record.refusal is not None
    assert (record.refusal.code, record.used) == ("permit.untrusted", 1)
    if document == "newer":
        assert record.permit.to_ms == START_MS + HOUR_MS, "then it is discarded"
    assert again.agent.permits.held() == {}
    await again.stop()


async def test_what_a_source_tells_comes_to_the_core_only_where_a_permit_wants_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await rig.start(MemoryStore(MIGRATIONS))
    await opened(rig)
    told_of: list[tuple[str, Any]] = []
    permits = node.agent.permits
    monkeypatch.setattr(
        type(permits),
        "source_told",
        lambda self, event, closed: told_of.append((event.source, event.values["value"])),
    )
    node.edge.streams.source("gpio-17", {"value": 1})
    on_edge = permit(rule=Rule("on", source="gpio-17"))
    rig.control.say(Kind.COMMAND, {"do": "permit", "doc": signed(rig, on_edge)})
    assert await told(rig) == {"p-1-kq7x": 0}
    node.edge.streams.source("gpio-18", {"value": 1})
    node.edge.streams.source("gpio-17", {"value": 0})
    await node.engine.turned()
    assert told_of == [("gpio-17", 0)]
    await node.stop()


def test_no_clock_of_running_work_jumps_when_the_orchestrator_first_tells_the_time() -> None:
    """Before that only work by permit can run."""
    clocks = Clocks()
    before_ms = clocks.steady.now_ms()
    clocks.busy = lambda: True
    clocks.sync(START_MS)
    assert abs(clocks.mesh.now_ms() - START_MS) < 1_000
    assert abs(clocks.steady.now_ms() - before_ms) < 1_000
    clocks.busy = lambda: False
    clocks.sync(START_MS + HOUR_MS)
    assert abs(clocks.steady.now_ms() - before_ms) < 1_000, "nor later in this start"
    idle = Clocks()
    idle.sync(START_MS)
    assert abs(idle.steady.now_ms() - START_MS) < 1_000
