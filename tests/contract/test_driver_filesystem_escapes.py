"""filesystem: somebody who swaps links while we look, second names, devices, and paths of no file."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from imlmesh_drivers import syscalls
from imlmesh_drivers.base import Site
from imlmesh_drivers.filesystem import Filesystem
from imlmesh_protocol.errors import DriverError
from rooted import Rooted, names_in

RACE_S = 1.0
WITHIN_S = 30


@pytest.fixture
def swapping(fs: Rooted) -> Iterator[Callable[[str, Path], None]]:
    """swapping(name, goal): from now on `name` is now itself, now a link to `goal`."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def start(name: str, goal: Path) -> None:
        (fs.files / "link").symlink_to(goal)
        opened = os.open(fs.files, os.O_RDONLY)

        def swap() -> None:
            # one of the two may be deleted
            with contextlib.suppress(FileNotFoundError):
                while not over.is_set():
                    syscalls.exchange(opened, name, opened, "link")
            os.close(opened)

        threads.append(threading.Thread(target=swap))
        threads[-1].start()

    yield start
    over.set()
    for thread in threads:
        thread.join()


def outcomes(act: Callable[[], object], expected: Collection[str] = ()) -> set[str]:
    """What an action that is called again and again gives, as text or code.

    For RACE_S, and longer while something expected was not seen.
    """
    found: set[str] = set()
    began_s = time.monotonic()
    while (took_s := time.monotonic() - began_s) < RACE_S or (
        took_s < WITHIN_S and not found.issuperset(expected)
    ):
        try:
            found.add(str(act()))
        except DriverError as exc:
            found.add(exc.code)
    return found


def test_a_swapped_file_is_never_read_outside(
    fs: Rooted, swapping: Callable[[str, Path], None]
) -> None:
    (fs.files / "a").write_text("mine")
    swapping("a", fs.outside / "secret.txt")
    expected = {"mine", "policy.path"}
    assert outcomes(lambda: fs("read_file", path="a")["content"], expected) == expected


def test_a_swapped_folder_never_leads_outside(
    fs: Rooted, swapping: Callable[[str, Path], None]
) -> None:
    (fs.files / "a").mkdir()
    (fs.files / "a" / "secret.txt").write_text("mine")
    swapping("a", fs.outside)

    def act() -> str:
        content: str = fs("read_file", path="a/secret.txt")["content"]
        fs("write_file", path="a/new", content="x")
        fs("append_file", path="a/secret.txt", content="", newline=False)
        fs("move_file", source="a/new", destination="a/moved", overwrite=True)
        fs("delete_file", path="a/moved")
        return content

    # what was made before the swap is not found behind it
    assert outcomes(act) <= {"mine", "policy.path", "driver.not_found"}
    assert names_in(fs.outside) == ["secret.txt"]
    assert (fs.outside / "secret.txt").read_text() == "secret"


def test_a_swapped_folder_is_never_listed_or_deleted_outside(
    fs: Rooted, swapping: Callable[[str, Path], None]
) -> None:
    (fs.files / "a").mkdir()
    (fs.files / "a" / "mine").write_text("x")
    swapping("a", fs.outside)
    expected = {"['mine']", "policy.path"}

    def listed() -> list[str]:
        return [entry["name"] for entry in fs("list_directory", path="a")["entries"]]

    assert outcomes(listed, expected) == expected
    deleted = outcomes(lambda: fs("delete_file", path="a", recursive=True)["deleted"])
    # either of the two, then there is nothing of that name
    assert deleted <= {str(fs.files / "a"), "driver.not_found", "driver.failed", "policy.path"}
    assert (fs.outside / "secret.txt").read_text() == "secret"


def test_a_second_name_of_a_file_is_not_opened(fs: Rooted) -> None:
    os.link(fs.outside / "secret.txt", fs.files / "twin")
    fs("create_directory", path="new")
    for name in ("read_file", "compute_checksum"):
        assert fs.blame(name, path="twin") == ("policy.path", "path")
    assert fs.blame("copy_file", source="twin", destination="new/a") == ("policy.path", "source")
    assert fs.refusal("append_file", path="twin", content="x") == "policy.path"
    assert fs.refusal("extract_archive", source="twin", destination="new") == "policy.path"
    assert (fs.outside / "secret.txt").read_text() == "secret"
    assert names_in(fs.files / "new") == []


def test_a_device_is_looked_at_and_never_opened(
    fs: Rooted, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(str(fs.files), read_roots=("/dev",), write_roots=(str(fs.files), "/dev/shm"))
    fs.driver = Filesystem(site)
    opened: list[object] = []
    real = os.open

    def spy(path: str, flags: int, *rest: int, **options: int) -> int:
        if not flags & os.O_PATH and "zero" in str(path):
            opened.append(path)
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", spy)
    assert fs.refusal("read_file", path="/dev/zero") == "driver.failed"
    assert fs.refusal("copy_file", source="/dev/zero", destination="a") == "driver.failed"
    assert fs("get_file_info", path="/dev/zero")["type"] == "other"
    assert opened == []


PATHS = {
    "x" * 256: "driver.params",
    "/".join(["deep"] * 1_000): "driver.params",
    "a\0b": "policy.path",
    "": "policy.path",
    "\udcff": "driver.not_found",
}
WITH_A_PATH = {
    "read_file": "path",
    "write_file": "path",
    "append_file": "path",
    "copy_file": "source",
    "move_file": "source",
    "delete_file": "path",
    "list_directory": "path",
    "search_files": "directory",
    "get_file_info": "path",
    "create_archive": "source",
    "extract_archive": "source",
    "compute_checksum": "path",
}
REST = {
    "write_file": {"content": "x", "create_dirs": True},
    "append_file": {"content": "x"},
    "search_files": {"pattern": "*"},
    "copy_file": {"destination": "new"},
    "move_file": {"destination": "new"},
    "create_archive": {"destination": "new"},
    "extract_archive": {"destination": "new"},
}


@pytest.mark.parametrize("name", sorted(WITH_A_PATH))
def test_paths_of_no_file_are_blamed_on_their_param(fs: Rooted, name: str) -> None:
    field = WITH_A_PATH[name]
    for path, code in PATHS.items():
        makes = name in ("write_file", "append_file") and code == "driver.not_found"
        if not makes:
            asked = {field: path, **REST.get(name, {})}
            assert fs.blame(name, **asked) == (code, field), path[:10]
    assert fs.everything() == {}
