"""Scenarios of machines: suspended, busy, with a wrong clock, with a full disk.

The one rule: what this machine does not allow or lacks is left out, and it is said why.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from imlmesh.chaos.field import NODES, ORCHESTRATOR, Field, from_here
from imlmesh.chaos.plans import held, marked
from imlmesh.chaos.trial import Trial
from imlmesh_orchestrator.core.changes import ResultTaken
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.limits import FREE_SPACE_BYTES, LAN
from imlmesh_protocol.states import Liveness

_LONG_S = LAN.lost_ms / 1_000 + 2
#: ends with us, whatever becomes of us
_BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"
#: effects one behind the other, and how many more would fill the time
_BUSY_ROWS, _BUSY_REST = 40, 10
_JUMPS = ("+1h", "-1h", "+20y", "+0")
_JUMP_EVERY_S = 2.4  # for both of them; libfaketime looks once a second
_BEFORE_1971 = "@1970-01-01 00:00:30"
#: libfaketime 0.9.10 refuses the call that Python's own sleep makes
_SLEEP = """\
import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds)
"""
_NO_FAKETIME = "libfaketime is not installed (apt-get install faketime)"
_DISK_MB = 16
_MB = 1024 * 1024


async def suspend(trial: Trial) -> None:
    """A node is stopped (SIGSTOP) for longer than its window, then goes on (SIGCONT)."""
    victim = NODES[3]
    node = trial.field.running[victim]
    await trial.submit(marked(8, 6, 200, movable=from_here(victim)))
    await trial.submit(held(victim, 3.0))
    await trial.holds(victim, "move-")
    at_s = node.stop()
    try:
        await trial.lost(victim, at_s)
        await trial.moved(at_s)
    finally:
        woken_s = node.go_on()
    await trial.back(woken_s, victim)
    trial.nobody_lost(at_s, victim)


async def orchestrator_suspend(trial: Trial) -> None:
    """The orchestrator is stopped for longer than every window: the silence was its own."""
    orchestrator = trial.field.running[ORCHESTRATOR]
    await trial.submit(marked(8, 6, 200))
    await trial.holds(NODES[0])
    at_s = orchestrator.stop()
    try:
        await asyncio.sleep(_LONG_S)
    finally:
        woken_s = orchestrator.go_on()
    await trial.goes_on(woken_s, ResultTaken)
    trial.nobody_lost(at_s)


async def busy_cpu(trial: Trial) -> None:
    """Every core is busy, twice over, while the mesh works."""
    delay_ms = trial.busy_s * 1_000 / (_BUSY_ROWS + _BUSY_REST)
    await trial.submit(marked(len(NODES), _BUSY_ROWS, round(delay_ms)))
    await trial.holds(NODES[0])
    at_s = time.monotonic()
    with _saturated():
        await asyncio.sleep(trial.busy_s)
    suspected = trial.verdicts(at_s, Liveness.SUSPECT)
    trial.result.notes.append(f"busy for {trial.busy_s:g} s, {len(suspected)} suspected")
    trial.nobody_lost(at_s)


async def clock_jumps(trial: Trial) -> None:
    """The wall clocks of orchestrator and a node jump by hours and years; then a node boots in 1970."""
    library = _faketime()
    if library is None:
        trial.result.left_out = _NO_FAKETIME
        return
    place, victim = trial.field, NODES[2]
    with contextlib.ExitStack() as stack:
        files = {name: place.mesh.home.root / f"clock-{name}" for name in (ORCHESTRATOR, victim)}
        for name, file in files.items():
            file.write_text("+0")
            stack.callback(file.unlink)
            await place.restart(name, _variables(library, file))
        await place.online()
        at_s = time.monotonic()
        await trial.submit(marked(8, 50, 150))
        await trial.holds(victim)
        for jump in _JUMPS:
            for name in (victim, ORCHESTRATOR):
                files[name].write_text(jump)
                await asyncio.sleep(_JUMP_EVERY_S / 2)
        trial.nobody_lost(at_s)
        files[victim].write_text(_BEFORE_1971)
        await place.kill(victim)
        started_s = time.monotonic()
        await place.start(victim, _variables(library, files[victim]))
        await trial.back(started_s, victim)
        await trial.ended()
        for name in files:
            await place.restart(name)
    await place.online()


async def full_disk_node(trial: Trial) -> None:
    """The disk of a node is full: it finishes and reports, takes nothing that counts, and goes on later."""
    place, victim = trial.field, NODES[0]
    folder = place.mesh.home.node(victim)
    async with _small_disk(trial, victim, folder, _DISK_MB) as disk:
        if disk is None:
            return
        begun = await trial.submit(held(victim, 3.0))
        await trial.marked(begun)
        filler = _fill(disk)
        refused = await trial.submit(held(victim, 0.0))
        await trial.ended()
        state = await _state(place, begun)
        trial.must(state == "completed", f"what had begun is {state}")
        trial.must(await _state(place, refused) == "failed", "something that counts was taken")
        filler.unlink()
        freed_s = time.monotonic()
        await _takes_again(trial, victim, freed_s)


async def full_disk_orchestrator(trial: Trial) -> None:
    """The disk of the orchestrator is full for longer than every window: new plans are refused, what runs
    is recorded, later it goes on."""
    place = trial.field
    used_mb = sum(file.stat().st_size for file in place.mesh.home.orchestrator.iterdir()) // _MB
    # the floor that it keeps free, and room above it until the disk is filled
    size_mb = used_mb + FREE_SPACE_BYTES // _MB + 2 * _DISK_MB
    async with _small_disk(trial, ORCHESTRATOR, place.mesh.home.orchestrator, size_mb) as disk:
        if disk is None:
            return
        epoch = place.running[ORCHESTRATOR].process
        # it has something to record all the time
        await trial.submit(marked(4, 50, 200))
        await trial.holds(victim := NODES[0])
        at_s = time.monotonic()
        filler = _fill(disk)
        code = ""
        try:
            await place.ask("runs", {"text": held(victim, 0.0).plan.to_json()})
        except MeshError as exc:
            code = exc.code
        trial.must(code == "store.full", f"a new plan was not refused: {code or 'taken'}")
        await asyncio.sleep(_LONG_S)
        filler.unlink()
        freed_s = time.monotonic()
        await _takes_again(trial, victim, freed_s)
        await trial.ended()
        trial.nobody_lost(at_s)
        is_same = (
            place.running[ORCHESTRATOR].process is epoch and epoch and epoch.returncode is None
        )
        trial.must(bool(is_same), "it did not live through it")


async def _takes_again(trial: Trial, node: str, since_s: float) -> None:
    """Measure until a new effect on the node is done."""
    run = await trial.submit(held(node, 0.0))
    await trial.goes_on(since_s, ResultTaken, of=run)


async def _state(place: Field, run: str) -> str:
    found = await place.until(f"runs/{run}", lambda _: True)
    return str(found["state"])


def _faketime() -> Path | None:
    for folder in (Path("/usr/lib"), Path("/usr/local/lib"), Path("/usr/lib64")):
        for found in sorted(folder.glob("**/faketime/libfaketimeMT.so.1")):
            return found
    return None


def _variables(library: Path, file: Path) -> dict[str, str]:
    """Only the wall clock is faked: no jump of it moves the clock that counts durations."""
    folder = file.with_name("faked")
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SLEEP)
    inherited = os.environ.get("PYTHONPATH")
    return {
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join([str(folder), *([inherited] if inherited else [])]),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # it reads the file at most so often: at each call it would take all the time there is
        "FAKETIME_CACHE_DURATION": "1",
        # else waits of threads with a timeout last for seconds
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


@contextlib.contextmanager
def _saturated() -> Iterator[None]:
    command = [sys.executable, "-c", _BUSY]
    busy = [subprocess.Popen(command) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@contextlib.asynccontextmanager
async def _small_disk(
    trial: Trial, name: str, folder: Path, size_mb: int
) -> AsyncIterator[Path | None]:
    """The folder of a process on a disk of its own; None, with the reason told, where none can be made."""
    place = trial.field
    disk = place.mesh.home.root / "disk"
    if why := _mounted(disk, size_mb):
        trial.result.left_out = f"no disk of {size_mb} MB can be mounted: {why}"
        yield None
        return
    try:
        await place.kill(name)
        with _moved(folder, disk):
            await place.start(name)
            try:
                await place.online()
                yield disk
            finally:
                await place.kill(name)
    finally:
        # whoever still has a file open there is ending
        _command("umount", "--lazy", str(disk))
    await place.start(name)


def _mounted(disk: Path, size_mb: int) -> str:
    """Mount an empty disk; why not, or nothing."""
    disk.mkdir(exist_ok=True)
    options = ("-t", "tmpfs", "-o", f"size={size_mb}m,mode=700")
    return _command("mount", *options, "tmpfs", str(disk))


def _command(*words: str) -> str:
    """What went wrong, or nothing."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as exc:
        return str(exc)
    return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""


@contextlib.contextmanager
def _moved(folder: Path, disk: Path) -> Iterator[None]:
    """What is in `folder` lies on `disk`, and afterwards where it was."""
    kept = folder.with_name(f"{folder.name}-kept")
    shutil.copytree(folder, disk, dirs_exist_ok=True)
    folder.rename(kept)
    folder.symlink_to(disk)
    try:
        yield
    finally:
        folder.unlink()
        shutil.copytree(disk, folder)
        shutil.rmtree(kept)


def _fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        size = _MB
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size >>= 1
    return filler
