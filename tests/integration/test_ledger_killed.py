"""Real processes and a real broker: the orchestrator is killed again and again, and the ledger stays whole."""

import asyncio
import random
import signal
from pathlib import Path

import msgpack

from imlmesh_orchestrator.audit.book import book_of_home
from imlmesh_orchestrator.audit.verify import verify
from imlmesh_orchestrator.store.ledgered import told_of
from orchestrator_mesh import ME, action, opened_mesh, plan

KILLS = 4


async def test_every_change_is_told_once_though_the_orchestrator_is_killed(tmp_path: Path) -> None:
    dice = random.Random(5)
    async with opened_mesh(tmp_path) as mesh:
        await mesh.orchestrator()
        await mesh.node("pi-1")
        await mesh.online("pi-1")
        runs = []
        for number in range(KILLS):
            chain = [action("a0")]
            chain += [action(f"a{n}", after=(f"a{n - 1}",)) for n in range(1, 30)]
            runs.append((await mesh.submit(plan(*chain)))["run"])
            # about where the mover copies: before, while, or after it
            await asyncio.sleep(dice.uniform(0.05, 0.6))
            await mesh.kill(ME)
            await mesh.orchestrator(ME)
            assert (await mesh.ended(runs[-1]))["state"] == "completed", number
        # it ends well: what is there is told and sealed
        await mesh.kill(ME, signal.SIGTERM)
        book = book_of_home(mesh.home)
    verdict = verify(book)
    assert (verdict.findings, verdict.sealed) == ([], verdict.entries)
    assert verdict.witnesses == {"pi-1": verdict.entries}
    told: dict[str, list[str]] = {}
    for row in book.rows():
        assert row.payload is not None
        kind = msgpack.unpackb(row.entry)["kind"]
        told.setdefault(kind, []).extend(
            str(each.get("dispatch", each.get("epoch", each.get("run"))))
            for each in told_of(row.payload)
        )
    epochs = [int(epoch) for epoch in told["epoch-raised"]]
    assert len(epochs) == len(set(epochs)) == KILLS + 1
    assert epochs == sorted(epochs)
    assert len(told["run-created"]) == len(told["run-ended"]) == KILLS
    # each intent and each result once, in the same order
    planned = told["dispatch-planned"]
    assert len(planned) == len(set(planned)) >= KILLS * 30
    assert len(told["result-taken"]) == len(set(told["result-taken"])) == KILLS * 30
