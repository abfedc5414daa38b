"""filesystem: archives that come out as they went in, and every way in which a stranger's can lie."""

import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from imlmesh_drivers import syscalls
from imlmesh_drivers.call import Call
from imlmesh_drivers.child import Child
from imlmesh_drivers.filesystem import packing, unpacking
from imlmesh_drivers.invoke import perform_now
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import DRIVER_MEMORY_BYTES
from rooted import Rooted, names_in

FORMATS = ["zip", "tar", "tar.gz", "tar.bz2"]


@pytest.fixture
def full(fs: Rooted) -> Rooted:
    """A folder with files, an executable, an empty folder, a link, and a file of two names."""
    fs("write_file", path="src/a.txt", content="grün\n" * 1_000, create_dirs=True)
    fs("write_file", path="src/deep/run.sh", content="#!/bin/sh\n", create_dirs=True)
    (fs.files / "src/deep/run.sh").chmod(0o755)
    fs("create_directory", path="src/empty")
    (fs.files / "src/out").symlink_to(fs.outside)
    fs("write_file", path="src/twin", content="x")
    (fs.files / "src/twin2").hardlink_to(fs.files / "src/twin")
    return fs


@pytest.mark.parametrize("form", FORMATS)
def test_an_archive_gives_back_what_was_packed(full: Rooted, form: str) -> None:
    packed = full("create_archive", source="src", destination="a", format=form)
    assert packed == {
        "archive": str(full.files / "a"),
        "source": str(full.files / "src"),
        "entries": 5,
        "skipped": 3,
    }
    unpacked = full("extract_archive", source="a", destination="new/place")
    assert (unpacked["destination"], unpacked["files"]) == (str(full.files / "new/place"), 2)
    found = full.files / "new/place/src"
    assert names_in(found) == ["a.txt", "deep", "empty"]
    assert (found / "a.txt").read_text() == "grün\n" * 1_000
    assert (found / "deep/run.sh").stat().st_mode & stat.S_IXUSR
    assert not (found / "a.txt").stat().st_mode & stat.S_IXUSR
    assert names_in(full.files) == ["a", "new", "src"]


def test_one_file_and_a_whole_root_are_packed(full: Rooted) -> None:
    assert full("create_archive", source="src/a.txt", destination="one.zip")["entries"] == 1
    with zipfile.ZipFile(full.files / "one.zip") as archive:
        assert archive.namelist() == ["a.txt"]
    first = full("create_archive", source=".", destination="all.zip")
    # the second time the archive lies in what is packed, but not in itself
    assert full("create_archive", source=".", destination="all.zip") == first


def test_what_zip_cannot_hold_is_told_or_comes_near(fs: Rooted) -> None:
    fs("write_file", path="src/later", content="x", create_dirs=True)
    os.utime(fs.files / "src/later", (7e9, 7e9))
    with zipfile.ZipFile(
        fs("create_archive", source="src", destination="a.zip")["archive"]
    ) as made:
        assert made.getinfo("src/later").date_time[0] == 2107
    (fs.files / os.fsdecode(b"src/\xff")).write_text("y")
    pack = {"source": "src", "destination": "b"}
    assert fs.blame("create_archive", **pack) == ("driver.params", "source")
    assert names_in(fs.files) == ["a.zip", "src"]
    assert fs("create_archive", format="tar", **pack)["entries"] == 3


def test_an_archive_is_made_whole_or_not_at_all(
    full: Rooted, monkeypatch: pytest.MonkeyPatch
) -> None:
    full("write_file", path="a.zip", content="old")
    own = {"source": "a.zip", "destination": "a.zip"}
    assert full.refusal("create_archive", **own) == "driver.params"
    monkeypatch.setattr(packing, "ARCHIVE_ENTRIES", 3)
    pack = {"source": "src", "destination": "a.zip"}
    for form in FORMATS:
        assert full.refusal("create_archive", format=form, **pack) == "result.too_large"
    monkeypatch.undo()
    monkeypatch.setattr(packing, "ARCHIVE_BYTES", 3)
    assert full.refusal("create_archive", **pack) == "result.too_large"
    call = Call("d")
    call.stop()
    with pytest.raises(DriverError) as caught:
        perform_now(full.driver, "create_archive", pack, call)
    assert caught.value.code == "action.cancelled"
    assert full.blame("create_archive", source="src", destination="../x") == (
        "policy.path",
        "destination",
    )
    for source in ("src/out", "src/twin"):
        refusal = full.blame("create_archive", source=source, destination="x")
        assert refusal == ("policy.path", "source")
    assert full.blame("create_archive", source="none", destination="x") == (
        "driver.not_found",
        "source",
    )
    assert (full.files / "a.zip").read_text() == "old"
    assert names_in(full.files) == ["a.zip", "src"]


def make_zip(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def make_tar(path: Path, *members: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))


def link_in_zip() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def tar_member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


EVIL_NAMES = ["../out", "a/../../out", "/etc/out", "a/b/../../../out"]


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_members_that_lead_elsewhere_spoil_the_whole(fs: Rooted, name: str) -> None:
    make_zip(fs.files / "evil", ("good.txt", b"x"), (name, b"x"))
    refusal = fs.blame("extract_archive", source="evil", destination="new")
    assert refusal == ("policy.path", "source")
    make_tar(fs.files / "evil", tar_member("good.txt", size=1), tar_member(name, size=1))
    assert fs.refusal("extract_archive", source="evil", destination="new/deep") == "policy.path"
    assert names_in(fs.files) == ["evil"]
    assert names_in(fs.files.parent) == ["files", "outside", "shared"]


@pytest.mark.parametrize(
    "member",
    [
        tar_member("link", type=tarfile.SYMTYPE, linkname="/etc"),
        tar_member("link", type=tarfile.LNKTYPE, linkname="../outside/secret.txt"),
        tar_member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        tar_member("fifo", type=tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_spoil_the_whole(fs: Rooted, member: tarfile.TarInfo) -> None:
    make_tar(fs.files / "evil", tar_member("good.txt", size=1), member)
    assert fs.refusal("extract_archive", source="evil", destination="new") == "policy.path"
    make_zip(fs.files / "evil", ("good.txt", b"x"), (link_in_zip(), b"/etc"))
    assert fs.refusal("extract_archive", source="evil", destination="new") == "policy.path"
    assert names_in(fs.files) == ["evil"]


def locked_zip() -> bytes:
    """A zip whose member says that it needs a password."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"x")
    packed = bytearray(buffer.getvalue())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        packed[packed.index(mark) + place] |= 1
    return bytes(packed)


def damaged(form: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=form) as archive:  # type: ignore[call-overload]
        archive.addfile(tar_member("a", size=200_000), io.BytesIO(bytes(range(250)) * 800))
    return buffer.getvalue()[:300]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive at all",
        b"PK\5\6" + b"\xff" * 18,
        locked_zip(),
        damaged("w:gz"),
        damaged("w:bz2"),
        b"\x1f\x8b" + bytes(40),
    ],
)
def test_what_cannot_be_read_leaves_nothing(fs: Rooted, content: bytes) -> None:
    (fs.files / "bad").write_bytes(content)
    assert fs.refusal("extract_archive", source="bad", destination="new") == "driver.failed"
    assert names_in(fs.files) == ["bad"]


def test_a_member_that_stands_twice_or_is_file_and_folder_is_refused(fs: Rooted) -> None:
    make_tar(fs.files / "a", tar_member("x", size=1), tar_member("x", size=1))
    assert fs.refusal("extract_archive", source="a", destination="new") == "driver.failed"
    make_tar(fs.files / "a", tar_member("x", size=1), tar_member("x/y", size=1))
    assert fs.refusal("extract_archive", source="a", destination="new") == "driver.failed"
    assert names_in(fs.files) == ["a"]


def test_depth_is_bounded(fs: Rooted) -> None:
    make_zip(fs.files / "deep", ("a/" * 500 + "b", b"x"))
    refusal = fs.blame("extract_archive", source="deep", destination="new")
    assert refusal == ("driver.failed", "source")
    assert names_in(fs.files) == ["deep"]


def test_a_bomb_is_bounded(fs: Rooted, monkeypatch: pytest.MonkeyPatch) -> None:
    make_zip(fs.files / "bomb", ("zeros", bytes(5_000_000)))
    monkeypatch.setattr(unpacking, "ARCHIVE_BYTES", 1_000_000)
    assert fs.refusal("extract_archive", source="bomb", destination="new") == "result.too_large"
    monkeypatch.setattr(unpacking, "ARCHIVE_ENTRIES", 2)
    make_zip(fs.files / "bomb", *((str(number), b"") for number in range(3)))
    assert fs.refusal("extract_archive", source="bomb", destination="new") == "result.too_large"
    assert names_in(fs.files) == ["bomb"]


@pytest.fixture
def filled(fs: Rooted) -> Rooted:
    """An archive of x, sub/y and z, and a folder that has a sub/y of its own."""
    make_zip(fs.files / "a.zip", ("x", b"new"), ("sub/y", b"new"), ("z", b"new"))
    fs("write_file", path="there/sub/y", content="old", create_dirs=True)
    fs("write_file", path="there/sub/mine", content="mine")
    return fs


def test_an_archive_joins_what_is_there(filled: Rooted) -> None:
    before = names_in(filled.files / "there")
    asked = {"source": "a.zip", "destination": "there"}
    assert filled.blame("extract_archive", **asked) == ("driver.failed", "destination")
    assert names_in(filled.files / "there") == before
    assert filled("extract_archive", overwrite=True, **asked)["files"] == 3
    (filled.files / "a.zip").unlink()
    assert filled.everything() == {
        "there": None,
        "there/sub": None,
        "there/sub/mine": "mine",
        "there/sub/y": "new",
        "there/x": "new",
        "there/z": "new",
    }


def test_a_file_in_the_place_of_a_folder_stays(filled: Rooted) -> None:
    filled("write_file", path="other/sub", content="mine", create_dirs=True)
    asked = {"source": "a.zip", "destination": "other", "overwrite": True}
    assert filled.refusal("extract_archive", **asked) == "driver.failed"
    assert (filled.files / "other/sub").read_text() == "mine"
    assert names_in(filled.files / "other") == ["sub"]
    (filled.files / "link").symlink_to(filled.outside)
    asked = {"source": "a.zip", "destination": "link", "overwrite": True}
    assert filled.blame("extract_archive", **asked)[0] == "policy.path"
    (filled.files / "there/x").symlink_to(filled.outside / "secret.txt")
    asked = {"source": "a.zip", "destination": "there", "overwrite": True}
    assert filled.refusal("extract_archive", **asked) == "driver.failed"
    assert (filled.outside / "secret.txt").read_text() == "secret"


def test_what_has_moved_goes_back_when_the_rest_cannot(
    filled: Rooted, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = filled.files / "there"
    rename = syscalls.rename

    def failing(folder: int, old: str, target: int, new: str, *, replace: bool) -> None:
        if old == "z":
            raise OSError(5, "Input/output error")
        rename(folder, old, target, new, replace=replace)

    monkeypatch.setattr(syscalls, "rename", failing)
    asked = {"source": "a.zip", "destination": "there", "overwrite": True}
    assert filled.refusal("extract_archive", **asked) == "driver.unavailable"
    assert names_in(before) == ["sub"]
    assert (before / "sub/y").read_text() == "old"
    assert (before / "sub/mine").read_text() == "mine"


WORKING = """
import os, sys
from imlmesh_drivers.filesystem.drafts import stage
opened = os.open(sys.argv[1], os.O_RDONLY)
with stage(opened) as (inner, name):
    os.mkdir("half", dir_fd=inner)
    print(name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_unpacking_left_goes_with_the_next_one(fs: Rooted) -> None:
    make_zip(fs.files / "a.zip", ("x", b"new"))
    command = [sys.executable, "-c", WORKING, str(fs.files)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        name = other.stdout.readline().decode().strip()
        fs("extract_archive", source="a.zip", destination="one")
        # somebody still works in it
        assert name in names_in(fs.files)
        other.send_signal(signal.SIGKILL)
    fs("extract_archive", source="a.zip", destination="two")
    assert names_in(fs.files) == ["a.zip", "one", "two"]


def most_memory(pid: int | None) -> str:
    """The line of a process's limits that bounds its data."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max data size"))


async def test_archives_are_made_and_read_in_the_child(full: Rooted) -> None:
    child = Child("filesystem", full.site.to_wire())
    try:
        pack = {"source": "src", "destination": "a.tar.gz", "format": "tar.gz"}
        packed = await child.call("create_archive", pack, Call("d"), 20)
        unpack = {"source": "a.tar.gz", "destination": "new"}
        unpacked = await child.call("extract_archive", unpack, Call("d"), 20)
        most = most_memory(child.pid)
    finally:
        await child.close()
    assert (packed["entries"], unpacked["files"]) == (5, 2)
    assert (full.files / "new/src/a.txt").exists()
    assert str(DRIVER_MEMORY_BYTES) in most
