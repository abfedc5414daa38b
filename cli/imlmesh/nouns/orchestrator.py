"""`imlmesh orchestrator`: the orchestrator alone, for who looks after broker and nodes."""

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun("Run the orchestrator alone.", "imlmesh orchestrator run --home /var/lib/imlmesh")


@verb(app, "imlmesh orchestrator run\nimlmesh orchestrator run --home /var/lib/imlmesh")
def run() -> int | None:
    """Run the orchestrator of a home in this process, until Ctrl-C; its broker must run."""
    import os

    from imlmesh_orchestrator.main import main

    from imlmesh_runtime.paths import find_home

    return main(["--home", str(find_home(settings.home, os.environ).root)])
