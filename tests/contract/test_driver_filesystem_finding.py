"""filesystem: searching, bounded in every direction, and waiting for what happens to files."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from imlmesh_drivers.call import Call
from imlmesh_drivers.child import Child
from imlmesh_drivers.filesystem import tree
from imlmesh_node.sizes import check_result
from imlmesh_protocol.errors import DriverError
from rooted import Rooted
from waiting import eventually


@pytest.fixture
def garden(fs: Rooted) -> Rooted:
    for name, content in (
        ("notes.TXT", "one\nThe Valve is open\nvalve again\n"),
        ("deep/log.txt", "nothing\n"),
        ("deep/valve.md", "# valve\n"),
        (".hidden/log.txt", "VALVE\n"),
    ):
        fs("write_file", path=name, content=content, create_dirs=True)
    (fs.files / "binary.txt").write_bytes(b"valve\0valve")
    (fs.files / "out").symlink_to(fs.outside)
    (fs.files / "link.txt").symlink_to(fs.outside / "secret.txt")
    return fs


def names(found: Any) -> list[str]:
    assert found["count"] == len(found["matches"])
    return [match["name"] for match in found["matches"]]


def test_files_are_found_by_name(garden: Rooted) -> None:
    found = garden("search_files", directory=".", pattern="*.txt")
    assert names(found) == ["binary.txt", "notes.TXT", "log.txt", "log.txt"]
    assert "truncated" not in found
    exact = garden("search_files", directory=".", pattern="*.txt", case_sensitive=True)
    assert names(exact) == ["binary.txt", "log.txt", "log.txt"]
    assert exact["matches"][1]["path"] == str(garden.files / ".hidden/log.txt")
    assert names(garden("search_files", directory="deep", pattern="?alve.*")) == ["valve.md"]


def test_files_are_found_by_a_line_of_them(garden: Rooted) -> None:
    found = garden("search_files", directory=".", pattern="*", content_pattern=r"^the\s+valve")
    assert names(found) == ["notes.TXT"]
    assert (found["matches"][0]["line"], found["matches"][0]["text"]) == (2, "The Valve is open")
    asked = {"directory": ".", "pattern": "*", "content_pattern": "valve"}
    assert names(garden("search_files", **asked)) == ["notes.TXT", "log.txt", "valve.md"]
    asked["case_sensitive"] = True
    assert garden("search_files", **asked)["matches"][0]["line"] == 3


def test_a_search_looks_at_nothing_outside(garden: Rooted) -> None:
    os.link(garden.outside / "secret.txt", garden.files / "twin")
    asked = {"directory": ".", "pattern": "*", "content_pattern": "secret"}
    assert names(garden("search_files", **asked)) == []
    for path in ("..", "/etc", "out", str(garden.outside)):
        refusal = garden.blame("search_files", directory=path, pattern="*")
        assert refusal == ("policy.path", "directory"), path
    assert garden.refusal("search_files", directory="none", pattern="*") == "driver.not_found"
    assert garden.refusal("search_files", directory="notes.TXT", pattern="*") == "driver.failed"


async def test_a_name_that_is_no_text_is_shown_all_the_same(fs: Rooted) -> None:
    watch = await watching(fs, path=".")
    with open(os.fsencode(fs.files) + b"/gr\xfcn", "w") as file:  # noqa: ASYNC230, PTH123
        file.write("needle")
    assert (await asyncio.wait_for(watch, 5))["name"] == "gr\ufffdn"
    (listed,) = fs("list_directory", path=".")["entries"]
    (found,) = fs("search_files", directory=".", pattern="*", content_pattern="needle")["matches"]
    assert listed["path"] == found["path"] == str(fs.files / "gr\ufffdn")
    check_result([listed, found])


def test_a_search_is_bounded(garden: Rooted, monkeypatch: pytest.MonkeyPatch) -> None:
    first = garden("search_files", directory=".", pattern="*.txt", max_results=2)
    assert (len(names(first)), first["truncated"]) == (2, True)
    (garden.files / "wide").write_text("x" * 100_000 + "needle\nneedle\n")
    found = garden("search_files", directory=".", pattern="wide", content_pattern="needle")
    assert found["matches"][0]["line"] == 2
    assert garden.blame("search_files", directory=".", pattern="*", content_pattern="(") == (
        "driver.params",
        "content_pattern",
    )
    too_long = garden.blame("search_files", directory=".", pattern="*" * 300)
    assert too_long == ("driver.params", "pattern")
    monkeypatch.setattr(tree, "TREE_ENTRIES", 3)
    assert garden.refusal("search_files", directory=".", pattern="*") == "result.too_large"
    everything = {"path": ".", "recursive": True}
    assert garden.refusal("list_directory", **everything) == "result.too_large"


def test_a_large_search_result_fits_into_a_message(fs: Rooted) -> None:
    for number in range(1_000):
        (fs.files / f"{number:03}{'ä' * 100}").write_text("y" * 300)
    asked = {"directory": ".", "pattern": "*", "content_pattern": "y", "max_results": 1_000}
    found = fs("search_files", **asked)
    assert found["truncated"]
    assert len(repr(found).encode()) < 192 * 1024


async def test_an_expression_without_end_costs_the_child_alone(fs: Rooted) -> None:
    (fs.files / "a").write_text("a" * 40 + "\n")
    child = Child("filesystem", fs.site.to_wire())
    slow = {"directory": ".", "pattern": "*", "content_pattern": "(a+)+b"}
    try:
        with pytest.raises(DriverError) as caught:
            await child.call("search_files", slow, Call("d"), 1)
        quick = {"directory": ".", "pattern": "*", "content_pattern": "a"}
        found = await child.call("search_files", quick, Call("d"), 10)
    finally:
        await child.close()
    assert caught.value.code == "driver.timeout"
    assert found["count"] == 1


def watches() -> int:
    """How many folders this process watches."""
    count = 0
    for info in Path("/proc/self/fdinfo").iterdir():
        try:
            count += info.read_text().count("inotify wd:")
        except FileNotFoundError:
            continue
    return count


async def watching(fs: Rooted, **params: Any) -> "asyncio.Task[Any]":
    """A watch that is under way."""
    before = watches()
    watch = asyncio.create_task(fs.wait("watch_path", **params))
    await eventually(lambda: watches() > before or watch.done())
    return watch


async def happened(fs: Rooted, **params: Any) -> Any:
    return await asyncio.wait_for(await watching(fs, **params), 5)


async def test_a_new_file_in_a_folder_is_seen(fs: Rooted) -> None:
    watch = await watching(fs, path=".")
    (fs.files / "a").write_text("x")
    seen = await asyncio.wait_for(watch, 5)
    assert {key: seen[key] for key in ("path", "event", "timeout", "name")} == {
        "path": str(fs.files),
        "event": "created",
        "timeout": False,
        "name": "a",
    }
    assert seen["detected_at"].endswith("+00:00")


async def test_a_file_that_is_missing_yet_is_waited_for(fs: Rooted) -> None:
    watch = await watching(fs, path="wanted")
    (fs.files / "other").write_text("x")
    fs("write_file", path="wanted", content="x")
    seen = await asyncio.wait_for(watch, 5)
    assert (seen["event"], seen["name"]) == ("created", "wanted")


async def test_a_file_that_is_replaced_is_modified(fs: Rooted) -> None:
    (fs.files / "a").write_text("x")
    watch = await watching(fs, path="a")
    fs("write_file", path="a", content="y")
    assert (await asyncio.wait_for(watch, 5))["event"] == "modified"
    watch = await watching(fs, path="a")
    fs("append_file", path="a", content="z")
    assert (await asyncio.wait_for(watch, 5))["event"] == "modified"


async def test_only_the_asked_for_events_count(fs: Rooted) -> None:
    watch = await watching(fs, path=".", events=["deleted", "moved"])
    (fs.files / "a").write_text("x")
    (fs.files / "a").rename(fs.outside / "a")
    assert (await asyncio.wait_for(watch, 5))["event"] == "moved"
    (fs.files / "b").write_text("x")
    watch = await watching(fs, path="b", events=["deleted"])
    (fs.files / "b").write_text("y")
    (fs.files / "b").unlink()
    assert (await asyncio.wait_for(watch, 5))["event"] == "deleted"


async def test_a_folder_that_goes_is_deleted(fs: Rooted) -> None:
    fs("create_directory", path="a")
    watch = await watching(fs, path="a")
    fs("delete_file", path="a")
    seen = await asyncio.wait_for(watch, 5)
    assert (seen["event"], seen["name"]) == ("deleted", None)


async def test_nothing_happens_in_time(fs: Rooted) -> None:
    seen = await fs.wait("watch_path", path=".", timeout=1)
    assert (seen["event"], seen["timeout"], seen["detected_at"]) == (None, True, None)


async def test_a_given_up_watch_lets_go(fs: Rooted) -> None:
    before = watches()
    watch = await watching(fs, path=".")
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    assert watches() == before


async def test_a_watch_stays_beneath_the_roots(fs: Rooted) -> None:
    (fs.files / "out").symlink_to(fs.outside)
    for path, code in (
        ("..", "policy.path"),
        ("/etc", "policy.path"),
        ("out", "policy.path"),
        ("out/new", "policy.path"),
        ("none/new", "driver.not_found"),
    ):
        with pytest.raises(DriverError) as caught:
            await fs.wait("watch_path", path=path)
        assert (caught.value.code, caught.value.message.partition(":")[0]) == (code, "path")
    with pytest.raises(DriverError) as caught:
        await fs.wait("watch_path", path=".", events=[])
    assert caught.value.code == "driver.params"
