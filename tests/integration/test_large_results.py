"""Results of megabytes through real processes and a real broker, also when something dies half-way."""

import contextlib
import hashlib
import sqlite3

import msgpack
import pytest

from imlmesh_protocol.limits import RESULT_BYTES
from orchestrator_mesh import ME, Mesh, action, plan

SIZE = RESULT_BYTES - 200


NODES = ("pi-1",)


def stored(mesh: Mesh, run: str) -> list[str]:
    """The fillers of the run's results as the orchestrator's store holds them."""
    path = mesh.home.orchestrator / "lifecycle.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT body FROM changes WHERE run = ? AND kind = 'result-taken'", (run,)
        ).fetchall()
    values = [value for (body,) in rows for value in msgpack.unpackb(body)]
    return [v["filler"] for v in values if isinstance(v, dict) and "filler" in v]


async def test_results_of_megabytes_come_whole_beside_small_ones(mesh: Mesh) -> None:
    large = [action(f"l{n}", "act", params={"result_bytes": SIZE}) for n in range(3)]
    small = [action(f"s{n}", "echo", params={"value": n}) for n in range(3)]
    run = (await mesh.submit(plan(*large, *small)))["run"]
    ended = await mesh.ended(run)
    assert ended["state"] == "completed"
    digests = [hashlib.sha256(filler.encode()).digest() for filler in stored(mesh, run)]
    assert digests == [hashlib.sha256(b"x" * SIZE).digest()] * 3


async def test_what_is_larger_still_fails_with_its_code(mesh: Mesh) -> None:
    run = (await mesh.submit(plan(action("a", "act", params={"result_bytes": RESULT_BYTES}))))[
        "run"
    ]
    ended = await mesh.ended(run)
    assert (ended["state"], ended["actions"][0]["error"]["code"]) == ("failed", "result.too_large")


def journalled(mesh: Mesh) -> bool:
    """Whether the node's journal holds a large result that is not settled."""
    path = mesh.home.node("pi-1") / "journal.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return bool(database.execute("SELECT count(*) FROM chunks").fetchone()[0])


@pytest.mark.parametrize("who", ["pi-1", ME])
async def test_a_kill_on_the_way_costs_nothing(mesh: Mesh, who: str) -> None:
    params = {"result_bytes": SIZE, "marker": "ran"}
    run = (await mesh.submit(plan(action("a", "act", params=params))))["run"]
    await mesh.until("health", lambda _: journalled(mesh))
    await mesh.kill(who)
    await (mesh.orchestrator() if who == ME else mesh.node("pi-1"))
    assert (await mesh.ended(run))["state"] == "completed"
    assert len(stored(mesh, run)) == 1
    marker = mesh.home.node("pi-1") / "files" / "ran"
    assert len(marker.read_text().splitlines()) == 1
