"""Deeds on a machine: what root does to folders of others, and what fails with which code."""

import os
from pathlib import Path
from typing import Any

import pytest

from imlmesh import service
from imlmesh.machine import Deed, Machine, copy_private, give, write_file
from imlmesh_protocol.errors import MeshError

pytestmark = [pytest.mark.usefixtures("systemd_tools", "as_root")]


def test_a_link_that_appears_while_root_walks_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of a tree swaps a folder for a link between two calls of root."""
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    (outside / "below").mkdir(parents=True)
    (tree / "swapped").mkdir(parents=True)
    chown = os.chown

    def chown_and_swap(path: Any, *words: Any, **more: Any) -> None:
        chown(path, *words, **more)
        if path == "swapped":
            (tree / "swapped").rmdir()
            (tree / "swapped").symlink_to(outside)

    monkeypatch.setattr(os, "chown", chown_and_swap)
    give(tree, (1_000, 1_000))
    assert (tree / "swapped").is_symlink()
    assert tree.stat().st_uid == 1_000
    assert outside.stat().st_uid == (outside / "below").stat().st_uid == 0


def test_an_interpreter_that_services_cannot_reach(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    program = closed / "python"
    program.symlink_to("/bin/sh")
    for path in (program, Path("/root") / "python", Path("/usr/bin/absent"), Path("/etc/passwd/x")):
        with pytest.raises(MeshError) as caught:
            service.check_reach(path)
        assert caught.value.code == "service.interpreter"
    service.check_reach(Path("/bin/sh"))


def test_a_program_of_systemd_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(MeshError) as caught:
        Machine(tmp_path).run("systemctl", "enable", "no-such-unit.service")
    assert caught.value.code == "service.failed"
    assert "no-such-unit" in caught.value.message


def test_a_read_only_place_is_a_coded_error() -> None:
    deed = Deed("write x", lambda: write_file(Path("/proc/x/y"), ""))
    with pytest.raises(MeshError) as caught:
        deed.carry_out()
    assert caught.value.code in ("service.failed", "access.denied")


def test_a_private_copy_is_whole_and_closed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below" / "file").write_text("content")
    (source / "below" / "file").chmod(0o664)
    (source / "file").symlink_to("below/file")
    (source / "folder").symlink_to("/etc")
    copy_private(source, tmp_path / "copy")
    copied = tmp_path / "copy"
    assert (copied / "below" / "file").read_text() == "content"
    assert (copied / "below" / "file").stat().st_mode & 0o777 == 0o600
    assert copied.stat().st_mode & 0o777 == 0o700
    assert (copied / "file").readlink() == Path("below/file")
    assert (copied / "folder").readlink() == Path("/etc")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "pipe")
    with pytest.raises(OSError, match="pipe is no file"):
        copy_private(tmp_path / "source", tmp_path / "copy")
