"""Plug-ins that change while their node runs: read anew when asked, taken over when nothing runs in them."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imlmesh_drivers.base import Site
from imlmesh_node.config import Policy
from imlmesh_node.core.events import DriverFinished
from imlmesh_node.executor import Executor
from imlmesh_node.guard import Guard
from imlmesh_node.offering import Offering
from imlmesh_node.reloading import Reloading
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.dispatches import Dispatch
from imlmesh_runtime.clock import ManualClock
from waiting import eventually

WITHIN_S = 20

#: a driver whose first version ends a call when the file "enough" is there, and notes when it is safe
FIRST = """
import time
from pathlib import Path
from imlmesh_drivers import Driver, action

class Kettle(Driver):
    module = "kettle"
    version = "1.0"

    @action(effect="physical", impact=0.6, permission="local_worker", claims="kettle")
    def boil(self) -> dict:
        \"\"\"Boil.\"\"\"
        self.note("boils")
        while not (Path(self.site.files) / "enough").exists():
            time.sleep(0.01)
        return {"by": self.version}

    @action(effect="pure", impact=0.0, permission="readonly")
    def who(self) -> dict:
        \"\"\"Tell the version.\"\"\"
        return {"by": self.version}

    def note(self, what):
        with (Path(self.site.files) / "notes").open("a") as file:
            file.write(f"{self.version} {what}\\n")

    def safe(self):
        self.note("safe")
"""
SECOND = FIRST.replace('"1.0"', '"2.0.0"').replace("def who(", "def who_else(")
BROKEN = "import no_such_library\n"
ENDING = "import os\nos._exit(0)\n"


class Rig:
    """What a node has around its drivers, with plug-ins in `folder`."""

    def __init__(self, folder: Path, *modules: str) -> None:
        self.notes, self.enough = folder / "notes", folder / "enough"
        site = Site(files=str(folder), env={"PYTHONPATH": str(folder)})
        policy = Policy("local_worker", modules, site)
        self.offering = Offering(policy.modules)
        self.guard = Guard(policy, self.offering.manifest)
        self.ended: asyncio.Queue[DriverFinished] = asyncio.Queue()
        streams: Any = SimpleNamespace(source=None)  # which these drivers tell nothing
        self.executor = Executor(
            site, streams, self.ended.put_nowait, ManualClock(), self.offering.apart
        )
        self.births = 0
        self.reloading = Reloading(self.offering, self.executor, self.guard, self._tell)
        self._number = 0

    def _tell(self) -> None:
        self.births += 1

    def run(self, action: str, module: str = "kettle") -> Dispatch:
        self._number += 1
        id = f"r-1-abcd/a{self._number}/pi/1"
        one = Dispatch(id, module, action, {}, Effect.PHYSICAL, 60_000, 60_000, "finish")
        self.executor.run(one)
        return one

    async def end(self) -> DriverFinished:
        return await asyncio.wait_for(self.ended.get(), WITHIN_S)

    async def end_of(self, action: str, module: str = "kettle") -> DriverFinished:
        self.run(action, module)
        return await self.end()

    async def read(self) -> None:
        """Until what was asked for is read."""
        reading = self.reloading._reading
        assert reading is not None
        await asyncio.wait_for(asyncio.shield(reading), WITHIN_S)

    def refusal(self, action: str) -> str | None:
        one = Dispatch("r/a/pi/1", "kettle", action, {}, Effect.PHYSICAL, 1, 1, "finish")
        fault = self.guard.check(one)[1]
        return fault.code if fault else None

    async def close(self) -> None:
        self.enough.touch()
        await self.reloading.close()
        await self.executor.close()


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose plug-ins are installed."""
    info = tmp_path / "kettle_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kettle-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[imlmesh.drivers]\nkettle = kettle_plugin:Kettle\npot = pot_plugin:Kettle\n"
    )
    write(tmp_path, FIRST)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("imlmesh_drivers.apart.known_apart", read_anew)
    return tmp_path


def read_anew(module: str) -> Any:
    """Tests of one process have plug-ins of one name."""
    from imlmesh_drivers.apart import read_apart

    return read_apart(module)


def write(folder: Path, source: str, module: str = "kettle") -> None:
    """As installers do: another file with another time, so that no cache of it is taken for its own."""
    path = folder / f"{module}_plugin.py"
    before_ns = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(source.replace("kettle", module))
    if before_ns:
        os.utime(path, ns=(before_ns + 2_000_000_000,) * 2)


def importers(folder: Path) -> set[int]:
    """The processes that left a mark of their import."""
    return {int(path.name.removeprefix("seen-")) for path in folder.glob("seen-*")}


@pytest.fixture
async def rig(plugins: Path) -> AsyncIterator[Rig]:
    made = Rig(plugins, "kettle")
    yield made
    await made.close()


async def test_what_is_not_asked_for_changes_nothing(rig: Rig, plugins: Path) -> None:
    assert (await rig.end_of("who")).result == {"by": "1.0"}
    write(plugins, SECOND)
    assert (await rig.end_of("who")).result == {"by": "1.0"}
    assert (rig.refusal("who"), rig.refusal("who_else")) == (None, "action.unknown")
    assert rig.births == 0


async def test_a_new_version_is_offered_and_serves(
    rig: Rig, plugins: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await rig.end_of("who")).result == {"by": "1.0"}
    write(plugins, SECOND)
    rig.reloading.ask()
    await rig.read()
    assert (rig.refusal("who"), rig.refusal("who_else")) == ("action.unknown", None)
    assert rig.births == 1
    assert (await rig.end_of("who_else")).result == {"by": "2.0.0"}
    # it was safe before the new one came
    assert rig.notes.read_text() == "1.0 safe\n1.0 safe\n2.0.0 safe\n"
    assert "unasked" not in caplog.text


async def test_a_call_under_way_ends_in_the_old_one_and_others_wait(
    rig: Rig, plugins: Path
) -> None:
    boiling = rig.run("boil")
    await eventually(lambda: "boils" in (rig.notes.read_text() if rig.notes.exists() else ""))
    write(plugins, SECOND)
    rig.reloading.ask()
    await rig.read()
    waiting = rig.run("who_else")
    # told at once, and nothing took the old one's place
    assert rig.births == 1
    assert "2.0.0" not in rig.notes.read_text()
    assert rig.executor.busy == 2
    rig.enough.touch()
    first, second = await rig.end(), await rig.end()
    assert (first.dispatch, first.outcome, first.result) == (boiling.id, "completed", {"by": "1.0"})
    assert (second.dispatch, second.result) == (waiting.id, {"by": "2.0.0"})
    assert rig.notes.read_text().split("\n") == [
        "1.0 safe",
        "1.0 boils",
        "1.0 safe",
        "2.0.0 safe",
        "",
    ]


@pytest.mark.parametrize("source", [BROKEN, ENDING])
async def test_a_version_that_does_not_load_leaves_the_old_one(
    rig: Rig, plugins: Path, caplog: pytest.LogCaptureFixture, source: str
) -> None:
    assert (await rig.end_of("who")).result == {"by": "1.0"}
    write(plugins, source)
    rig.reloading.ask()
    await rig.read()
    assert (await rig.end_of("who")).result == {"by": "1.0"}
    assert (rig.refusal("who"), rig.births) == (None, 0)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("the module kettle stays as it was")
    assert record.code == "driver.missing"  # type: ignore[attr-defined]


async def test_asked_again_while_it_reads_it_reads_once_more(rig: Rig, plugins: Path) -> None:
    assert (await rig.end_of("who")).result == {"by": "1.0"}
    # one that takes its time to load, until the next version is there
    slow = f"""
import pathlib, time
place = pathlib.Path(__file__)
place.with_name("reads").touch()
while place.with_name("enough").exists() is False:
    time.sleep(0.01)
{FIRST}"""
    write(plugins, slow)
    rig.reloading.ask()
    await eventually((plugins / "reads").exists)
    write(plugins, SECOND)
    rig.reloading.ask()
    rig.reloading.ask()
    rig.enough.touch()
    await rig.read()
    assert rig.refusal("who_else") is None
    assert (await rig.end_of("who_else")).result == {"by": "2.0.0"}


async def test_a_newer_version_during_a_call_is_the_one_that_serves(
    rig: Rig, plugins: Path
) -> None:
    rig.run("boil")
    await eventually(lambda: "boils" in (rig.notes.read_text() if rig.notes.exists() else ""))
    write(plugins, FIRST.replace('"1.0"', '"1.10.0"'))
    rig.reloading.ask()
    await rig.read()
    write(plugins, SECOND)
    rig.reloading.ask()
    await rig.read()
    rig.enough.touch()
    assert (await rig.end()).result == {"by": "1.0"}
    assert (await rig.end_of("who_else")).result == {"by": "2.0.0"}
    assert rig.births == 2


async def test_a_newer_version_while_one_starts_takes_its_place(rig: Rig, plugins: Path) -> None:
    assert (await rig.end_of("who")).result == {"by": "1.0"}
    waits = 'self.note("starts")\n        while not (Path(self.site.files) / "enough").exists(): time.sleep(0.01)'
    write(plugins, FIRST.replace('self.note("safe")', waits).replace('"1.0"', '"1.10.0"'))
    rig.reloading.ask()
    await eventually(lambda: "1.10.0 starts" in rig.notes.read_text())
    write(plugins, SECOND)
    rig.reloading.ask()
    await rig.read()
    rig.enough.touch()
    await eventually(lambda: "2.0.0 safe" in rig.notes.read_text())
    assert (await rig.end_of("who_else")).result == {"by": "2.0.0"}


async def test_what_the_old_version_kept_is_for_the_new_one_unless_that_fails(
    rig: Rig, plugins: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeps = FIRST.replace('return {"by"', 'self.keep("a door")\n        return {"by"')
    taken = """
    def restore(self, kept):
        self.note(f"restores {kept}")
"""
    write(plugins, keeps)
    assert (await rig.end_of("who")).result == {"by": "1.0"}
    write(plugins, SECOND + taken)
    rig.reloading.ask()
    await eventually(lambda: "2.0.0 restores a door" in rig.notes.read_text())
    assert (await rig.end_of("who_else")).outcome == "completed"
    write(plugins, SECOND.replace("2.0.0", "3.0.00") + taken + "        raise KeyError(kept)\n")
    rig.reloading.ask()
    await eventually(lambda: "does not start" in caplog.text)
    assert (await rig.end_of("who_else")).result == {"by": "3.0.00"}


async def test_what_runs_in_the_node_stays_and_says_so(
    plugins: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(plugins)
    here = 'version = "1.0"\n    runs = "thread"'
    write(plugins, FIRST.replace('version = "1.0"', here), "pot")
    rig = Rig(plugins, "pot")
    assert (await rig.end_of("who", "pot")).result == {"by": "1.0"}
    write(plugins, SECOND, "pot")
    rig.reloading.ask()
    await rig.read()
    assert "restart the node" in caplog.text
    assert (await rig.end_of("who", "pot")).result == {"by": "1.0"}
    assert rig.births == 0
    await rig.close()


async def test_a_plug_in_that_did_not_load_is_offered_once_it_does(plugins: Path) -> None:
    write(plugins, BROKEN)
    rig = Rig(plugins, "filesystem", "kettle")
    assert set(rig.offering.manifest.modules) == {"filesystem"}
    write(plugins, FIRST)
    rig.reloading.ask()
    await rig.read()
    assert (set(rig.offering.manifest.modules), rig.births) == ({"filesystem", "kettle"}, 1)
    assert (await rig.end_of("who")).result == {"by": "1.0"}
    await rig.close()


async def test_a_new_version_that_does_not_start_is_told_to_who_calls_it(
    rig: Rig, plugins: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await rig.end_of("who")).result == {"by": "1.0"}
    write(plugins, FIRST.replace('self.note("safe")', "raise OSError('no kettle')"))
    rig.reloading.ask()
    await rig.read()
    ended = await rig.end_of("who")
    assert ended.error is not None
    assert "no kettle" in ended.error.message
    assert "the new version of the module kettle does not start" in caplog.text
    write(plugins, SECOND)
    rig.reloading.ask()
    await rig.read()
    assert (await rig.end_of("who_else")).result == {"by": "2.0.0"}


async def test_the_end_of_the_node_waits_for_no_reading(rig: Rig, plugins: Path) -> None:
    write(plugins, "import time\ntime.sleep(600)\n")
    rig.reloading.ask()
    await asyncio.wait_for(rig.reloading.close(), 2)
    rig.reloading.ask()
    assert rig.births == 0


async def test_no_plug_in_is_imported_by_the_node_itself(plugins: Path) -> None:
    mark = "import os, pathlib\npathlib.Path(__file__).with_name(f'seen-{os.getpid()}').touch()\n"
    write(plugins, mark + FIRST)
    rig = Rig(plugins, "kettle")
    rig.executor.stand_guard(rig.offering.manifest.modules)
    rig.executor.warm_up(rig.offering.manifest.modules)
    assert not rig.executor.ends_at_once("kettle", "who")
    assert (await rig.end_of("who")).outcome == "completed"
    await rig.close()
    imported = importers(plugins)
    assert imported
    assert os.getpid() not in imported
