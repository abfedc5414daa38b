"""Logs of what `up` started stay short while it runs, whoever fills them."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from imlmesh.running import RunningMesh
from imlmesh_protocol import limits
from imlmesh_runtime.paths import Home
from waiting import eventually

LINE = b"a stranger was refused\n"
#: prints too much, and more when it is told to
WRITER = f"""head -c {limits.LOG_FILE_BYTES + 1} /dev/zero; read told; echo more; read told"""


async def test_a_log_that_is_too_long_begins_anew(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.logs.mkdir(parents=True)
    log, short = home.logs / "broker.log", home.logs / "node-pi.log"
    log.write_bytes(LINE)
    short.write_bytes(LINE)
    mesh: Any = SimpleNamespace(home=home)
    ended = asyncio.Event()
    with log.open("ab") as file:
        writer = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", WRITER, stdin=asyncio.subprocess.PIPE, stdout=file
        )
    waiting = asyncio.create_task(RunningMesh(mesh, print).wait(ended))
    try:
        kept = home.logs / "broker.log.1"
        await eventually(lambda: kept.exists() and log.stat().st_size == 0)
        assert kept.read_bytes()[: len(LINE)] == LINE
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        await writer.stdin.drain()
        await eventually(lambda: log.read_bytes() == b"more\n")
        assert short.read_bytes() == LINE
    finally:
        ended.set()
        await waiting
        await writer.communicate(b"\n")
    assert sorted(path.name for path in home.logs.iterdir()) == [
        "broker.log",
        "broker.log.1",
        "node-pi.log",
    ]
