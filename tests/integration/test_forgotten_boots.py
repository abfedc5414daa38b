"""A node that lost its journal and whose clock stands in 2000 works again, with everybody else still running."""

import asyncio
import os
import sys
from pathlib import Path

from orchestrator_mesh import WITHIN_S, Mesh, action, opened_mesh, plan

# what the node would do on a machine whose clock has no battery
_IN_2000 = """
import sys, time
from imlmesh_node.main import main
from imlmesh_runtime.process import logged
start_ns = time.time_ns()
time.time_ns = lambda now=time.time_ns: now() - start_ns + 946_684_800_000_000_000
sys.exit(logged(lambda: main(sys.argv[1:])))
"""


async def start_in_2000(mesh: Mesh, name: str) -> None:
    with (mesh.home.logs / f"{name}.log").open("ab") as log:
        mesh.processes[name] = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _IN_2000, str(mesh.home.node(name))),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def test_without_a_journal_and_without_a_clock_it_works_again(tmp_path: Path) -> None:
    async with opened_mesh(tmp_path, os.environ) as mesh:
        orchestrator = await mesh.orchestrator()
        await mesh.node("pi-1")
        await mesh.online("pi-1")
        await mesh.kill("pi-1")
        for path in mesh.home.node("pi-1").glob("journal.db*"):
            path.unlink()
        await start_in_2000(mesh, "pi-1")
        one = action("a", "act", target_node="pi-1", params={"marker": "after"})
        run = (await mesh.submit(plan(one)))["run"]
        async with asyncio.timeout(WITHIN_S):
            assert (await mesh.ended(run))["state"] == "completed"
        assert (mesh.home.node("pi-1") / "files" / "after").exists()
        shown = await mesh.get("nodes/pi-1")
        assert (shown["admission"], shown["evidence"]) == ("open", [])
        assert "is not higher than those of before" in (mesh.home.logs / "pi-1.log").read_text()
        assert orchestrator.returncode is None
