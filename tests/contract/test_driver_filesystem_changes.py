"""filesystem: what moves, goes and comes does so whole, or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imlmesh_drivers import files, syscalls
from imlmesh_drivers.base import Site
from imlmesh_drivers.call import Call
from imlmesh_drivers.filesystem import Filesystem
from imlmesh_drivers.invoke import perform_now
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.iml.template import render_undo
from rooted import Rooted, names_in

LEFT_BEHIND = ".imlmesh-0123456789abcdef"


def test_a_file_and_a_folder_move(fs: Rooted) -> None:
    fs("write_file", path="a/b.txt", content="x", create_dirs=True)
    moved = fs("move_file", source="a/b.txt", destination="c.txt")
    assert moved == {"source": str(fs.files / "a/b.txt"), "destination": str(fs.files / "c.txt")}
    fs("move_file", source="a", destination="d")
    assert fs.everything() == {"c.txt": "x", "d": None}


def test_the_undo_of_a_move_moves_back(fs: Rooted) -> None:
    fs("write_file", path="a", content="x")
    moved = fs("move_file", source="a", destination="b")
    undo = fs.driver.actions["move_file"].undo
    assert undo
    fs(undo.action, **render_undo(undo.params, {"source": "a", "destination": "b"}, moved))
    assert fs.everything() == {"a": "x"}


def test_a_move_replaces_only_a_file_and_only_when_told_to(fs: Rooted) -> None:
    for name in ("a", "b"):
        fs("write_file", path=name, content=name)
    fs("create_directory", path="folder")
    before = fs.everything()
    for source, target, overwrite in (
        ("a", "b", False),
        ("a", "folder", True),
        ("folder", "a", True),
        ("folder", "folder/inner", False),
    ):
        asked = {"source": source, "destination": target, "overwrite": overwrite}
        assert fs.blame("move_file", **asked) == ("driver.failed", "destination"), asked
    assert fs.everything() == before
    fs("move_file", source="a", destination="b", overwrite=True)
    assert fs.everything() == {"b": "a", "folder": None}


def test_a_move_stays_beneath_the_write_roots(fs: Rooted) -> None:
    fs("write_file", path="a", content="x")
    (fs.shared / "theirs").write_text("x")
    (fs.files / "link").symlink_to(fs.outside / "secret.txt")
    (fs.files / "out").symlink_to(fs.outside)
    moves = [
        ("source", str(fs.shared / "theirs"), "b"),
        ("source", "../outside/secret.txt", "b"),
        ("source", "out/secret.txt", "b"),
        ("destination", "a", str(fs.shared / "b")),
        ("destination", "a", "out/b"),
    ]
    for field, source, target in moves:
        asked = fs.blame("move_file", source=source, destination=target)
        assert asked == ("policy.path", field), source
    assert fs.blame("move_file", source="link", destination="b") == ("policy.path", "source")
    assert fs.refusal("move_file", source="none", destination="b") == "driver.not_found"
    assert names_in(fs.outside) == ["secret.txt"]
    assert (fs.files / "a").read_text() == "x"


def test_a_move_to_another_disk_is_a_whole_copy(fs: Rooted, other_disk: Path) -> None:
    fs.driver = Filesystem(Site(str(fs.files), write_roots=(str(fs.files), str(other_disk))))
    fs("write_file", path="a", content="x")
    (fs.files / "a").chmod(0o640)
    fs("move_file", source="a", destination=str(other_disk / "b"))
    assert (other_disk / "b").read_text() == "x"
    assert (other_disk / "b").stat().st_mode & 0o777 == 0o640
    assert fs.everything() == {}
    fs("create_directory", path="folder")
    elsewhere = str(other_disk / "f")
    assert fs.refusal("move_file", source="folder", destination=elsewhere) == "driver.failed"
    assert names_in(other_disk) == ["b"]


def test_files_links_and_folders_are_deleted(fs: Rooted) -> None:
    fs("write_file", path="a/b/c", content="x", create_dirs=True)
    (fs.files / "a/out").symlink_to(fs.outside)
    (fs.files / "link").symlink_to(fs.outside / "secret.txt")
    assert fs.refusal("delete_file", path="a") == "driver.failed"
    assert fs("delete_file", path="link") == {"deleted": str(fs.files / "link")}
    assert fs("delete_file", path="a/b/c") == {"deleted": str(fs.files / "a/b/c")}
    fs("delete_file", path="a/b")
    fs("write_file", path="a/b/c", content="x", create_dirs=True)
    assert fs("delete_file", path="a", recursive=True) == {"deleted": str(fs.files / "a")}
    assert fs.everything() == {}
    assert (fs.outside / "secret.txt").read_text() == "secret"


def test_what_may_not_be_deleted_stays(fs: Rooted) -> None:
    inner = fs.files / "inner"
    inner.mkdir()
    (inner / "kept").write_text("x")
    fs.driver = Filesystem(Site(str(fs.files), write_roots=(str(fs.files), str(inner))))
    (fs.files / "out").symlink_to(fs.outside)
    assert fs.refusal("delete_file", path=".", recursive=True) == "policy.path"
    assert fs.refusal("delete_file", path="inner", recursive=True) == "policy.path"
    assert fs.refusal("move_file", source="inner", destination="b") == "policy.path"
    fs("create_directory", path="above")
    deeper = fs.files / "above" / "root"
    deeper.mkdir()
    fs.driver = Filesystem(Site(str(fs.files), write_roots=(str(fs.files), str(deeper))))
    assert fs.blame("delete_file", path="above", recursive=True) == ("policy.path", "path")
    assert fs.blame("move_file", source="above", destination="b") == ("policy.path", "source")
    assert fs.refusal("delete_file", path="out/secret.txt") == "policy.path"
    assert fs.refusal("delete_file", path=str(fs.shared)) == "policy.path"
    assert fs.refusal("delete_file", path="none") == "driver.not_found"
    assert (inner / "kept").exists()
    assert (fs.outside / "secret.txt").exists()


def test_a_given_up_delete_has_deleted_nothing(fs: Rooted) -> None:
    fs("write_file", path="a/b", content="x", create_dirs=True)
    before = fs.everything()
    call = Call("d")
    call.stop()
    with pytest.raises(DriverError) as caught:
        perform_now(fs.driver, "delete_file", {"path": "a", "recursive": True}, call)
    assert caught.value.code == "action.cancelled"
    assert fs.everything() == before


def test_what_somebody_who_was_killed_left_behind_goes(fs: Rooted) -> None:
    (fs.files / LEFT_BEHIND / "deep").mkdir(parents=True)
    (fs.files / ".imlmesh-notes").mkdir()
    fs("create_directory", path="a")
    fs("write_file", path="a/b", content="x")
    fs("delete_file", path="a", recursive=True)
    assert names_in(fs.files) == [".imlmesh-notes"]


def test_rights_to_act_as_the_owner_are_not_handed_on(fs: Rooted, other_disk: Path) -> None:
    fs.driver = Filesystem(Site(str(fs.files), write_roots=(str(fs.files), str(other_disk))))
    for name in ("a", "b", "c"):
        fs("write_file", path=name, content=name)
        (fs.files / name).chmod(0o6755)
    fs("copy_file", source="a", destination="copy")
    fs("write_file", path="b", content="new")
    fs("move_file", source="c", destination=str(other_disk / "moved"))
    for place in (fs.files / "copy", fs.files / "b", other_disk / "moved"):
        assert place.stat().st_mode & 0o7777 == 0o755, place


def test_folders_are_made(fs: Rooted) -> None:
    made = fs("create_directory", path="a/b/c")
    assert made == {"path": str(fs.files / "a/b/c"), "created": True}
    assert fs("create_directory", path="a/b/c")["created"] is False
    assert fs("create_directory", path=".")["created"] is False
    assert fs("create_directory", path="a/d", parents=False)["created"] is True
    assert set(fs.everything()) == {"a", "a/b", "a/b/c", "a/d"}


def test_folders_that_cannot_be_made_leave_none_above(fs: Rooted) -> None:
    (fs.files / "file").write_text("x")
    (fs.files / "out").symlink_to(fs.outside)
    before = fs.everything()
    assert fs.blame("create_directory", path="x/y", parents=False) == ("driver.not_found", "path")
    assert fs.refusal("create_directory", path="file") == "driver.failed"
    assert fs.refusal("create_directory", path="file/x") == "driver.failed"
    assert fs.refusal("create_directory", path=".", exist_ok=False) == "driver.failed"
    assert fs.refusal("create_directory", path="out/x") == "policy.path"
    assert fs.refusal("create_directory", path=str(fs.shared / "x")) == "policy.path"
    assert fs.everything() == before
    assert names_in(fs.outside) == ["secret.txt"]


def test_a_full_disk_leaves_everything_as_it_was(
    fs: Rooted, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs("write_file", path="old", content="old")
    before = fs.everything()
    monkeypatch.setattr(files, "FREE_SPACE_BYTES", 1 << 60)
    monkeypatch.setattr(files, "FREE_SPACE_PART", 1)
    for asked in (
        {"name": "write_file", "path": "a/b/c", "content": "x", "create_dirs": True},
        {"name": "write_file", "path": "old", "content": "x"},
        {"name": "append_file", "path": "old", "content": "x"},
        {"name": "copy_file", "source": "old", "destination": "new"},
        {"name": "create_archive", "source": "old", "destination": "a.zip"},
    ):
        assert fs.refusal(**asked) == "store.full", asked
    assert fs.everything() == before


def test_an_append_that_fails_is_taken_back(fs: Rooted, monkeypatch: pytest.MonkeyPatch) -> None:
    fs("append_file", path="log", content="one")
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 8:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    assert fs.refusal("append_file", path="log", content="much longer") == "store.full"
    monkeypatch.undo()
    assert (fs.files / "log").read_text() == "one\n"


KILLED = """
import os, sys
from imlmesh_drivers.filesystem.drafts import write_whole
opened = os.open(sys.argv[1], os.O_RDONLY)
def fill(descriptor):
    os.write(descriptor, b"half")
    print("half", flush=True)
    sys.stdin.read()
write_whole(("path", opened, "a"), fill, overwrite=True)
"""


def test_a_writer_that_is_killed_leaves_the_old_file_and_no_draft(fs: Rooted) -> None:
    fs("write_file", path="a", content="old")
    command = [sys.executable, "-c", KILLED, str(fs.files)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"half\n"
        writer.send_signal(signal.SIGKILL)
    assert fs.everything() == {"a": "old"}


def test_a_disk_without_nameless_files_gives_the_same(
    fs: Rooted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_WRONLY)  # EISDIR, as vfat says
    fs("write_file", path="a", content="one", overwrite=False)
    assert fs.refusal("write_file", path="a", content="x", overwrite=False) == "driver.failed"
    fs("write_file", path="a", content="two")
    assert fs.everything() == {"a": "two"}


def test_a_name_that_is_taken_meanwhile_is_not_replaced(
    fs: Rooted, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = syscalls.rename

    def late(folder: int, old: str, target: int, new: str, *, replace: bool) -> None:
        (fs.files / "a").write_text("theirs")
        rename(folder, old, target, new, replace=replace)

    monkeypatch.setattr(syscalls, "rename", late)
    assert fs.refusal("write_file", path="a", content="x", overwrite=False) == "driver.failed"
    assert fs.everything() == {"a": "theirs"}
