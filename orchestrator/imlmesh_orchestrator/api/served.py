"""What the routes answer from.

The one rule: routes reach shell, stores and settings through this and nothing else.
"""

from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from imlmesh_orchestrator.config import Config
from imlmesh_orchestrator.entry.enrolling import Enrolling
from imlmesh_orchestrator.entry.joining import Joining
from imlmesh_orchestrator.fingerprint import Previewed
from imlmesh_orchestrator.shell import Shell
from imlmesh_orchestrator.store.reading import Question, Reader, T
from imlmesh_orchestrator.trust.access import Access
from imlmesh_orchestrator.trust.trusting import Trusting
from imlmesh_orchestrator.views.nodes import Beats, Times, beat_counts, decided, since
from imlmesh_orchestrator.views.runs import find_run


@dataclass(frozen=True, slots=True)
class Served:
    """A shell and what people ask beside it. `broker` is its address, as text."""

    shell: Shell
    enrolling: Enrolling
    trusting: Trusting
    joining: Joining
    #: None where no broker is between the nodes and us
    access: Access | None
    config: Config
    output: Reader
    history: Reader
    output_path: Path
    ledger: Reader
    mesh: str
    orchestrator: str
    broker: str
    version: str
    started_at_ms: int
    previewed: Previewed = field(default_factory=Previewed)

    async def ask(self, question: Question[T]) -> T:
        """A question to lifecycle."""
        return await self.shell.reader.ask(question)

    async def run_id(self, name: str) -> str:
        """The run that `name` is, or uniquely begins; `run.not_found`, `run.ambiguous`."""
        return await self.ask(lambda database: find_run(database, name))

    def effects(self) -> dict[tuple[str, str], str]:
        """The drivers' own effects, by module and action."""
        return {
            (spec.module, spec.action): str(spec.effect)
            for record in self.shell.state.nodes.values()
            for module in record.manifest.modules.values()
            for spec in module.actions.values()
        }

    async def beats(self) -> Beats:
        """Heartbeats of the last half hour; none before the first was kept."""
        if not self.output_path.exists():
            return Beats({}, set())
        now_ms, started_ms = self.shell.clock.now_ms(), self.started_at_ms
        return await self.output.ask(lambda database: beat_counts(database, now_ms, started_ms))

    async def times(self) -> Times:
        """Since when each node is what it is, and why."""
        return await self.ask(lambda database: Times(since(database), decided(database)))


def served_of(request: Request) -> Served:
    """What this request is answered from."""
    served: Served = request.app.state.served
    return served
