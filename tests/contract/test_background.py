"""What goes on beside everything else: a bug in it is told, and does not end it."""

import asyncio
import ssl
from typing import Any

import pytest

from imlmesh_protocol import limits
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.background import Background
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.link.mqtt import MqttLink
from waiting import eventually


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BEGIN_ANEW_MS", 1)


class Work:
    """Raises what it is given, one after the other, then goes on until it is cancelled."""

    def __init__(self, *raised: Exception) -> None:
        self._raised = [*raised]
        self.begun = 0
        self.goes_on = asyncio.Event()
        self.cancelled = False

    async def run(self, *_: Any) -> Any:
        self.begun += 1
        if self._raised:
            raise self._raised.pop(0)
        self.goes_on.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_it_begins_anew_whatever_it_raises_and_says_so(caplog) -> None:
    work = Work(KeyError("a bug"), RuntimeError("another"))
    background = Background("the work", work.run)
    background.start()
    await asyncio.wait_for(work.goes_on.wait(), 10)
    await background.close()
    assert (work.begun, work.cancelled) == (3, True)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [("ERROR", "the work: begins anew in 0.001 s")] * 2
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [
        KeyError,
        RuntimeError,
    ]


async def test_it_ends_when_its_work_has_ended_and_closes_when_it_never_began() -> None:
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1

    background = Background("the work", work)
    await background.close()
    background.start()
    await eventually(lambda: bool(begun))
    await background.close()
    assert begun == 1


class Deaf:
    """Somebody who hears of a link."""

    def will(self) -> Will | None:
        return None


async def test_a_link_whose_papers_cannot_be_read_asks_again() -> None:
    work = Work(TrustError("trust.file", "node.pem is cut off"))

    class Papers:
        next = work.run

        def reached(self) -> None: ...

        def failed(self, error: Exception) -> None: ...

    link = MqttLink(Papers(), "pi", ssl.create_default_context(), ())  # type: ignore[arg-type]
    link.start(Deaf())  # type: ignore[arg-type]
    await asyncio.wait_for(work.goes_on.wait(), 10)
    await link.close()
    assert (work.begun, work.cancelled) == (2, True)
