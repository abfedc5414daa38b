"""What the orchestrator tells whoever runs the broker, and what it takes for proved.

Here the test plays the broker's side: it reads access.json, and writes applied.json when it will.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.apply import apply
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.trust.access import Access
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.states import Admission
from waiting import eventually

WITHIN_S = 20


class FakeDoor:
    """Notes what is asked; `takes_back` says how often each node comes back at once."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any]] = []
        self.alarms: list[str] = []
        self.takes_back: dict[str, int] = {}
        self.down = False

    def revoke(self, serials: Iterable[int]) -> None:
        self.done.append(("revoke", sorted(serials)))

    async def end_session(self, node: str) -> bool:
        if self.down:
            raise LinkError("link.down", "as the test says")
        self.done.append(("end", node))
        left = self.takes_back.get(node, 0)
        self.takes_back[node] = left - 1
        return left <= 0

    def forget(self, node: str) -> None:
        self.done.append(("forget", node))

    def tell_nodes(self) -> None:
        self.done.append(("roster", None))

    def ask_rebirth(self, node: str) -> None:
        self.done.append(("rebirth", node))

    def alarm(self, node: str, text: str) -> None:
        self.alarms.append(text)

    def of(self, what: str) -> list[Any]:
        return [value for kind, value in self.done if kind == what]


class Side:
    """Both sides of a broker's folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.state = State()
        self.door = FakeDoor()
        self.applies = True
        monkeypatch.setattr(limits, "ACCESS_APPLIED_MS", 100)
        monkeypatch.setattr(limits, "ACCESS_AGAIN_MS", 20)
        monkeypatch.setattr(limits, "ACCESS_KICKS_MS", (0, 2, 4, 6))
        self._seq = 0

    @property
    def told(self) -> dict[str, Any]:
        path = self.folder / "access.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def apply_now(self) -> None:
        told = {"version": self.told.get("version", 0)}
        (self.folder / "applied.json").write_text(json.dumps(told))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Access]:
        access = Access(self.folder, self.state, self.door)
        watcher = asyncio.create_task(self._watch())
        access.start()
        try:
            async with asyncio.timeout(WITHIN_S):
                yield access
        finally:
            watcher.cancel()
            await access.close()

    async def _watch(self) -> None:
        while True:
            if self.applies and self.told:
                self.apply_now()
            await asyncio.sleep(0.005)

    def decide(self, node: str, admission: Admission, access: Access | None = None) -> None:
        self._seq += 1
        change = a.AdmissionChanged(self._seq, "q", node, admission, "why", "eve", 0)
        apply(self.state, change)
        if access is not None:
            access.committed([(self._seq, change)])

    def enrol(self, node: str, *serials: int) -> None:
        apply(self.state, c.NodeEnrolled(1, "q", node, node, b"1" * 32, "readonly", "eve"))
        for serial in serials:
            apply(self.state, c.CertificateIssued(1, "q", node, str(serial), 1 << 60))


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Side:
    return Side(tmp_path, monkeypatch)


async def test_the_file_says_who_may_not_with_a_version_that_rises(side: Side) -> None:
    async with side.running() as access:
        await eventually(lambda: bool(side.told))
        first = side.told
        assert (first["revoked"], first["quarantined"]) == ([], [])
        side.decide("pi-1", Admission.QUARANTINED, access)
        side.decide("pi-2", Admission.CORDONED, access)
        assert (await access.enforced("pi-1")).holds
        second = side.told
        assert (second["revoked"], second["quarantined"]) == ([], ["pi-1"])
        assert second["version"] > first["version"]
        assert not side.door.of("rebirth")
        side.decide("pi-1", Admission.OPEN, access)
        assert (await access.enforced("pi-1")).holds
        assert side.door.of("rebirth") == ["pi-1"]
        assert side.told["quarantined"] == []
        assert side.told["version"] > second["version"]
    assert (side.folder / "access.json").stat().st_mode & 0o777 == 0o600


async def test_a_removed_node_is_shut_out_in_this_order(side: Side) -> None:
    side.enrol("pi-1", 11, 12)
    side.enrol("pi-2", 21)
    async with side.running() as access:
        await access.enforced("pi-1")
        side.door.done.clear()
        side.decide("pi-1", Admission.REVOKED, access)
        found = await access.enforced("pi-1")
        assert found.as_record() == {"enforced": True, "applied": True, "session_ended": True}
        await eventually(lambda: len(side.door.of("end")) == len(limits.ACCESS_KICKS_MS))
    kinds = [kind for kind, _ in side.door.done]
    assert kinds == ["revoke", "roster", "end", "end", "end", "forget", "end"]
    assert side.door.of("revoke") == [[11, 12]]
    assert side.told["revoked"] == ["pi-1"]
    assert not side.door.alarms


async def test_no_session_is_ended_before_the_broker_applied_it(side: Side) -> None:
    """It would come back through a door that is still open."""
    side.applies = False
    side.enrol("pi-1", 11)
    async with side.running() as access:
        side.decide("pi-1", Admission.REVOKED, access)
        found = await access.enforced("pi-1")
        assert found.as_record() == {"enforced": False, "applied": False, "session_ended": False}
        assert not side.door.of("end")
        assert access.problem
        assert len(side.door.alarms) == 1
        side.applies = True
        await eventually(lambda: not access.problem)
        assert (await access.enforced("pi-1")).holds


async def test_who_comes_back_is_ended_again_and_it_is_an_alarm_until_it_holds(side: Side) -> None:
    side.door.takes_back["pi-1"] = 4
    async with side.running() as access:
        side.decide("pi-1", Admission.REVOKED, access)
        assert (await access.enforced("pi-1")).session_ended is False
        assert side.door.alarms == ["the session of pi-1 has not ended"]
        await eventually(lambda: not access.problem)
        assert (await access.enforced("pi-1")).session_ended is True


async def test_who_comes_back_late_is_noticed(side: Side) -> None:
    async with side.running() as access:
        await access.enforced("pi-1")
        original = side.door.end_session

        async def end_session(node: str) -> bool:
            ended = await original(node)
            return ended and len(side.door.of("end")) != len(limits.ACCESS_KICKS_MS)

        side.door.end_session = end_session  # type: ignore[method-assign]
        side.decide("pi-1", Admission.REVOKED, access)
        assert (await access.enforced("pi-1")).session_ended is True
        await eventually(lambda: bool(side.door.alarms))
        assert side.door.alarms == ["pi-1 came back after it was removed"]
        await eventually(lambda: not access.problem)


async def test_who_was_removed_may_be_removed_again_with_all_that_it_means(side: Side) -> None:
    side.enrol("pi-1", 11)
    async with side.running() as access:
        side.decide("pi-1", Admission.REVOKED, access)
        await access.enforced("pi-1")
        await eventually(lambda: len(side.door.of("end")) == len(limits.ACCESS_KICKS_MS))
        side.door.done.clear()
        access.renew("pi-1")
        assert (await access.enforced("pi-1")).holds
        kinds = [kind for kind, _ in side.door.done]
        assert kinds[:6] == ["revoke", "roster", "end", "end", "end", "forget"]


async def test_who_is_removed_twice_in_a_moment_does_not_seem_to_come_back(side: Side) -> None:
    """What ends a session ends also an earlier try of ours to end it, which then looks like the node."""
    taken, go_on = 0, asyncio.Event()
    original = side.door.end_session

    async def end_session(node: str) -> bool:
        nonlocal taken
        taken += 1
        mine = taken
        if mine == len(limits.ACCESS_KICKS_MS):
            await go_on.wait()
        return await original(node) and taken == mine

    side.door.end_session = end_session  # type: ignore[method-assign]
    async with side.running() as access:
        side.decide("pi-1", Admission.REVOKED, access)
        await access.enforced("pi-1")
        await eventually(lambda: taken == len(limits.ACCESS_KICKS_MS))
        access.renew("pi-1")
        assert (await access.enforced("pi-1")).holds
        go_on.set()
        await eventually(lambda: taken == 2 * len(limits.ACCESS_KICKS_MS))
    assert side.door.alarms == []


async def test_a_broker_that_is_away_is_an_alarm_and_tried_again(side: Side) -> None:
    side.door.down = True
    async with side.running() as access:
        side.decide("pi-1", Admission.REVOKED, access)
        assert not (await access.enforced("pi-1")).holds
        side.door.down = False
        await eventually(lambda: not access.problem)
        assert (await access.enforced("pi-1")).holds


async def test_a_list_that_cannot_be_written_is_an_alarm_and_tried_again(side: Side) -> None:
    side.enrol("pi-1", 11)
    original = side.door.revoke

    def refuse(serials: Iterable[int]) -> None:
        raise OSError(28, "no space left")

    async with side.running() as access:
        await access.enforced("pi-1")
        side.door.revoke = refuse  # type: ignore[method-assign]
        side.decide("pi-1", Admission.REVOKED, access)
        found = await access.enforced("pi-1")
        assert (found.holds, "no space left" in access.problem) == (False, True)
        assert side.told["revoked"] == []
        side.door.revoke = original  # type: ignore[method-assign]
        await eventually(lambda: not access.problem)
        assert (await access.enforced("pi-1")).holds


async def test_a_start_tells_everything_again_whatever_came_of_it_before(side: Side) -> None:
    side.enrol("pi-1", 11)
    side.decide("pi-1", Admission.REVOKED)
    side.decide("pi-2", Admission.QUARANTINED)
    for version in (1, 2):
        side.door.done.clear()
        async with side.running() as access:
            assert (await access.enforced("pi-1")).holds
        assert side.told == {"version": version, "revoked": ["pi-1"], "quarantined": ["pi-2"]}
        assert side.door.of("revoke") == [[11]]
        assert side.door.of("roster")
        assert side.door.of("end")


async def test_a_version_never_falls_when_a_file_is_lost(side: Side) -> None:
    (side.folder / "applied.json").write_text('{"version": 41}')
    async with side.running() as access:
        await access.enforced("pi-1")
    assert side.told["version"] == 42


@pytest.mark.parametrize("text", ["", "[]", '{"version": "9"}', '{"version": -4}', "{", "\x00"])
async def test_a_damaged_answer_applies_nothing(side: Side, text: str) -> None:
    side.applies = False
    (side.folder / "applied.json").write_text(text)
    async with side.running() as access:
        side.decide("pi-1", Admission.QUARANTINED, access)
        assert not (await access.enforced("pi-1")).applied


async def test_the_revocation_list_is_made_anew_before_it_runs_out(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CRL_AGAIN_S", 0.02)
    async with side.running() as access:
        await access.enforced("pi-1")
        await eventually(lambda: side.told.get("version", 0) >= 3)
        assert len(side.door.of("revoke")) >= 3


async def test_a_broker_that_nobody_watches_is_no_alarm_while_nobody_is_shut_out(
    side: Side,
) -> None:
    side.applies = False
    async with side.running() as access:
        await access.enforced("pi-1")
        assert not access.problem
        side.decide("pi-1", Admission.QUARANTINED, access)
        await eventually(lambda: bool(access.problem))
