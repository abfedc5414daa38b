"""The event stream over a store: every change of a run arrives before the word that it ended."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from imlmesh_orchestrator.api.events import event_stream
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.lifecycle import Lifecycle, Marks
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.reading import MemoryReader, Question
from imlmesh_orchestrator.stream import Stream
from imlmesh_protocol import limits
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.states import RunState
from imlmesh_runtime.sqlite import MemoryStore

RUN = "r-1-bcdf"
ACTIONS = [{"id": "a", "module": "toy", "action": "look"}]
CREATED = c.RunCreated(
    1, "q", RUN, 1, Plan.model_validate({"plan_id": "p", "actions": ACTIONS}), "d", "me", 99, 0, 0
)
LINE = {"at_ms": 1, "run": RUN, "action": "a", "node": "pi", "dispatch": "d", "stream": "log"}
ENDED = c.RunEnded(2, "m", RUN, RunState.COMPLETED, None, False, False)


class Reader(MemoryReader):
    """Lets something happen behind each question but the first ones."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.questions = 0
        self.happens: dict[int, Callable[[], None]] = {}

    async def ask(self, question: Question[Any]) -> Any:
        answer = await super().ask(question)
        self.questions += 1
        self.happens.pop(self.questions, lambda: None)()
        return answer


class Served:
    def __init__(self) -> None:
        store = MemoryStore(migrations("lifecycle"))
        self.lifecycle = Lifecycle(store, Marks(0, 0, 0, 0, 0, 0, 0))
        self.stream, self.reader = Stream(), Reader(store)
        self.shell: Any = SimpleNamespace(
            lifecycle=self.lifecycle, stream=self.stream, reader=self.reader, name_of=str
        )
        self.lifecycle.watch(self.stream.committed)
        self.commit(CREATED)

    def commit(self, change: c.Change) -> None:
        self.lifecycle.commit([change], lambda error: None)

    async def kinds(self, after: int = 0) -> list[str]:
        frames = event_stream(self.shell, self.stream.subscribe(RUN), after)
        told = b"".join([some async for some in frames]).decode().split("\n\n")[:-1]
        return [
            text.split('"kind":"')[-1].split('"')[0] if "id:" in text else "end" for text in told
        ]


async def test_the_last_change_comes_before_the_end_whenever_it_is_committed() -> None:
    for question in (1, 2):
        served = Served()
        served.reader.happens[question] = lambda served=served: served.commit(ENDED)
        assert await served.kinds() == ["run-created", "run-ended", "end"], question


async def test_who_comes_back_to_an_ended_run_is_told_its_end() -> None:
    served = Served()
    served.commit(ENDED)
    assert await served.kinds(after=2) == ["end"]


async def test_what_is_there_at_once_is_written_together() -> None:
    served = Served()

    def happens() -> None:
        for number in range(2_000):
            served.stream.log_line(RUN, {**LINE, "line": f"line {number}"})
        served.commit(ENDED)

    served.reader.happens[2] = happens
    written = [some async for some in event_stream(served.shell, served.stream.subscribe(RUN), 1)]
    told = b"".join(written)
    assert told.count(b"event: log") == 2_000
    assert told.index(b"line 1999") < told.index(b"run-ended") < told.index(b"event: end")
    assert len(written) < 10
    assert max(map(len, written)) < 2 * limits.EVENT_WRITE_BYTES
