"""filesystem on real files: what it reads and writes, and every way out of a root that is closed."""

import hashlib
import os
import stat
from typing import Any

import pytest

from imlmesh_drivers.call import Call
from imlmesh_drivers.invoke import perform_now
from imlmesh_protocol.errors import DriverError, DriverNotFound
from imlmesh_protocol.limits import RESULT_BYTES
from rooted import Rooted, names_in


def test_what_is_written_is_read(fs: Rooted) -> None:
    written = fs("write_file", path="a/b.txt", content="grün\n", create_dirs=True)
    assert written == {"path": str(fs.files / "a/b.txt"), "bytes_written": 6}
    assert fs("read_file", path=written["path"]) == {
        "path": written["path"],
        "content": "grün\n",
        "size_bytes": 6,
    }
    assert [entry.name for entry in (fs.files / "a").iterdir()] == ["b.txt"]


def test_a_write_replaces_the_file_whole_and_keeps_its_mode(fs: Rooted) -> None:
    target = fs.files / "a.txt"
    target.write_text("old and longer")
    target.chmod(0o640)
    with target.open() as held:
        fs("write_file", path="a.txt", content="new")
        assert held.read() == "old and longer"
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_overwrite_false_keeps_what_is_there(fs: Rooted) -> None:
    fs("write_file", path="a.txt", content="first", overwrite=False)
    assert fs.refusal("write_file", path="a.txt", content="x", overwrite=False) == "driver.failed"
    assert (fs.files / "a.txt").read_text() == "first"
    assert names_in(fs.files) == ["a.txt"]


def test_appending_adds_lines(fs: Rooted) -> None:
    assert fs("append_file", path="log.txt", content="one")["bytes_appended"] == 4
    fs("append_file", path="log.txt", content="two\n")
    fs("append_file", path="log.txt", content="end", newline=False)
    assert (fs.files / "log.txt").read_text() == "one\ntwo\nend"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-16-le"])
def test_the_mark_of_an_encoding_stands_where_a_file_begins(fs: Rooted, encoding: str) -> None:
    (fs.files / "empty").touch()
    for path in ("new", "empty"):
        lines = [f"{word}\n".encode(encoding) for word in ("grün", "blau")]
        lines[1] = lines[1].removeprefix("".encode(encoding))
        for line, content in zip(lines, ("grün", "blau"), strict=True):
            appended = fs("append_file", path=path, content=content, encoding=encoding)
            assert appended["bytes_appended"] == len(line)
        assert (fs.files / path).read_bytes() == b"".join(lines)
    assert fs("read_file", path="new", encoding=encoding)["content"] == "grün\nblau\n"


def test_lines_and_bytes_of_a_file(fs: Rooted) -> None:
    (fs.shared / "a.txt").write_text("one\ntwo\nthree\nfour")
    path = str(fs.shared / "a.txt")
    assert fs("read_file", path=path, start_line=2, end_line=3)["content"] == "two\nthree\n"
    assert fs("read_file", path=path, start_line=4)["content"] == "four"
    assert fs("read_file", path=path, end_line=1)["content"] == "one\n"
    assert fs("read_file", path=path, start_line=9)["content"] == ""
    first = fs("read_file", path=path, max_bytes=5)
    assert (first["content"], first["size_bytes"]) == ("one\nt", 18)


def test_a_cut_never_splits_a_character(fs: Rooted) -> None:
    (fs.shared / "a.txt").write_text("aä")
    assert fs("read_file", path=str(fs.shared / "a.txt"), max_bytes=2)["content"] == "a"


def test_a_large_file_needs_a_limit(fs: Rooted) -> None:
    (fs.files / "big").write_text("x" * (RESULT_BYTES + 1))
    assert fs.refusal("read_file", path="big") == "result.too_large"
    assert fs.refusal("read_file", path="big", start_line=1) == "result.too_large"
    assert len(fs("read_file", path="big", max_bytes=100)["content"]) == 100


def test_encodings(fs: Rooted) -> None:
    fs("write_file", path="a", content="grün", encoding="latin-1")
    assert (fs.files / "a").read_bytes() == b"gr\xfcn"
    assert fs("read_file", path="a", encoding="latin-1")["content"] == "grün"
    fs("write_file", path="wide", content="one\ntwo\n", encoding="utf-16")
    assert fs("read_file", path="wide", encoding="utf-16", start_line=2)["content"] == "two\n"
    assert fs("read_file", path="wide", encoding="utf-16", end_line=2)["content"] == "one\ntwo\n"
    assert fs.refusal("read_file", path="a") == "driver.failed"
    assert fs.refusal("read_file", path="a", start_line=1) == "driver.failed"
    assert fs.refusal("read_file", path="a", encoding="no-such") == "driver.params"
    assert fs.refusal("read_file", path="a", encoding="hex") == "driver.params"
    for name in ("punycode", "PunyCode", "idna"):
        # an encoder of these may take minutes, and a thread cannot be ended meanwhile
        write = {"path": "b", "content": "ü", "encoding": name}
        assert fs.blame("write_file", **write) == ("driver.params", "encoding")
        assert fs.blame("append_file", **write) == ("driver.params", "encoding")
        assert fs.blame("read_file", path="a", encoding=name) == ("driver.params", "encoding")
    assert not (fs.files / "b").exists()
    assert fs.refusal("write_file", path="a", content="ü", encoding="ascii") == "driver.params"


def test_the_description_of_files(fs: Rooted) -> None:
    (fs.files / "a.txt").write_text("abc")
    (fs.files / "a.txt").chmod(0o604)
    (fs.files / "link").symlink_to("a.txt")
    info = fs("get_file_info", path="a.txt")
    assert {k: info[k] for k in ("name", "type", "size_bytes", "permissions", "suffix")} == {
        "name": "a.txt",
        "type": "file",
        "size_bytes": 3,
        "permissions": "0604",
        "suffix": ".txt",
    }
    assert info["modified"].endswith("+00:00")
    assert not info["is_symlink"]
    link = fs("get_file_info", path="link")
    assert (link["type"], link["is_symlink"]) == ("symlink", True)
    assert fs("get_file_info", path=".")["type"] == "directory"


def test_the_list_of_a_folder(fs: Rooted) -> None:
    for name in ("b.txt", "a.txt", ".hidden", "sub/c.txt", ".git/d.txt"):
        (fs.files / name).parent.mkdir(exist_ok=True)
        (fs.files / name).write_text("x")
    (fs.files / "way-out").symlink_to(fs.outside)

    def names(**params: Any) -> list[str]:
        listing = fs("list_directory", path=".", **params)
        assert listing["count"] == len(listing["entries"])
        return [os.path.relpath(entry["path"], fs.files) for entry in listing["entries"]]

    assert names() == ["a.txt", "b.txt", "sub", "way-out"]
    assert names(recursive=True) == ["a.txt", "b.txt", "sub", "way-out", "sub/c.txt"]
    assert names(recursive=True, pattern="*.txt") == ["a.txt", "b.txt", "sub/c.txt"]
    assert names(include_hidden=True) == [".git", ".hidden", "a.txt", "b.txt", "sub", "way-out"]
    assert names(max_results=2) == ["a.txt", "b.txt"]


@pytest.mark.parametrize(("most", "is_cut"), [(1, True), (2, True), (3, False), (4, False)])
def test_a_list_that_was_cut_off_says_so(fs: Rooted, most: int, is_cut: bool) -> None:
    for name in ("a.txt", "b.txt", "c.txt", "z.other"):
        (fs.files / name).write_text("x")
    listing = fs("list_directory", path=".", pattern="*.txt", max_results=most)
    assert listing["count"] == len(listing["entries"]) == min(most, 3)
    assert listing.get("truncated", False) == is_cut


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
def test_checksums(fs: Rooted, algorithm: str) -> None:
    (fs.files / "a").write_bytes(b"abc" * 1_000_000)
    expected = hashlib.new(algorithm, b"abc" * 1_000_000).hexdigest()
    assert fs("compute_checksum", path="a", algorithm=algorithm)["checksum"] == expected


def test_a_given_up_checksum_ends(fs: Rooted) -> None:
    (fs.files / "a").write_bytes(b"abc")
    call = Call("d")
    call.stop()
    with pytest.raises(DriverError) as caught:
        perform_now(fs.driver, "compute_checksum", {"path": "a"}, call)
    assert caught.value.code == "action.cancelled"


READERS = ["read_file", "compute_checksum", "get_file_info", "list_directory"]


@pytest.mark.parametrize("name", READERS)
def test_readers_stay_beneath_the_roots(fs: Rooted, name: str) -> None:
    (fs.files / "out").symlink_to(fs.outside)
    for path in (
        "../outside/secret.txt",
        str(fs.outside / "secret.txt"),
        str(fs.shared / ".." / "outside" / "secret.txt"),
        "out/secret.txt",
        "/etc/passwd",
        str(fs.files) + "x",
    ):
        assert fs.refusal(name, path=path) == "policy.path", path


@pytest.mark.parametrize("name", ["read_file", "compute_checksum"])
def test_a_link_as_the_file_is_not_followed(fs: Rooted, name: str) -> None:
    (fs.files / "link").symlink_to(fs.outside / "secret.txt")
    assert fs.refusal(name, path="link") == "policy.path"


@pytest.mark.parametrize("name", ["write_file", "append_file"])
def test_writers_stay_beneath_the_write_roots(fs: Rooted, name: str) -> None:
    secret = fs.outside / "secret.txt"
    (fs.files / "out").symlink_to(fs.outside)
    (fs.files / "link").symlink_to(secret)
    (fs.files / "nowhere").symlink_to(fs.outside / "new")
    for path in ("../outside/secret.txt", str(secret), "out/secret.txt", "link", "nowhere"):
        assert fs.refusal(name, path=path, content="x") == "policy.path", path
    assert fs.refusal(name, path=str(fs.shared / "a"), content="x") == "policy.path"
    assert secret.read_text() == "secret"
    assert names_in(fs.outside) == ["secret.txt"]
    assert names_in(fs.shared) == []


def test_a_second_name_of_a_file_is_not_appended_to(fs: Rooted) -> None:
    os.link(fs.outside / "secret.txt", fs.files / "twin")
    assert fs.refusal("append_file", path="twin", content="x") == "policy.path"
    fs("write_file", path="twin", content="own")
    assert (fs.outside / "secret.txt").read_text() == "secret"


def test_only_regular_files_are_opened(fs: Rooted) -> None:
    os.mkfifo(fs.files / "fifo")
    (fs.files / "sub").mkdir()
    for path in ("fifo", "sub"):
        assert fs.refusal("read_file", path=path) == "driver.failed"
        assert fs.refusal("compute_checksum", path=path) == "driver.failed"
        assert fs.refusal("write_file", path=path, content="x") == "driver.failed"
        assert fs.refusal("append_file", path=path, content="x") == "driver.failed"
    assert fs.refusal("write_file", path=".", content="x") == "driver.failed"


def test_what_is_missing_is_not_found(fs: Rooted) -> None:
    for name in READERS:
        with pytest.raises(DriverNotFound) as caught:
            fs(name, path="no/such.txt")
        assert caught.value.code == "driver.not_found"
    assert fs.refusal("write_file", path="no/such.txt", content="x") == "driver.not_found"
    assert names_in(fs.files) == []


def test_a_file_is_no_folder(fs: Rooted) -> None:
    (fs.files / "a").write_text("x")
    assert fs.refusal("read_file", path="a/b") == "driver.failed"
    assert fs.refusal("list_directory", path="a") == "driver.failed"
    assert fs.refusal("write_file", path="a/b", content="x", create_dirs=True) == "driver.failed"


def test_a_copy_has_content_and_permissions_of_its_source(fs: Rooted) -> None:
    (fs.shared / "tool").write_bytes(b"\x00\xff" * 900_000)
    (fs.shared / "tool").chmod(0o750)
    copied = fs("copy_file", source=str(fs.shared / "tool"), destination="mine")
    assert copied == {"source": str(fs.shared / "tool"), "destination": str(fs.files / "mine")}
    assert (fs.files / "mine").read_bytes() == (fs.shared / "tool").read_bytes()
    assert stat.S_IMODE((fs.files / "mine").stat().st_mode) == 0o750
    assert [entry.name for entry in fs.files.iterdir()] == ["mine"]


def test_a_copy_replaces_only_when_told_to(fs: Rooted) -> None:
    fs("write_file", path="a", content="new")
    fs("write_file", path="b", content="old")
    assert fs.refusal("copy_file", source="a", destination="b") == "driver.failed"
    assert (fs.files / "b").read_text() == "old"
    fs("copy_file", source="a", destination="b", overwrite=True)
    assert (fs.files / "b").read_text() == "new"


def test_a_copy_stays_beneath_the_roots(fs: Rooted) -> None:
    fs("write_file", path="a", content="x")
    (fs.files / "link").symlink_to(fs.files / "a")
    os.mkfifo(fs.files / "fifo")
    assert fs.refusal("copy_file", source="link", destination="c") == "policy.path"
    assert fs.refusal("copy_file", source="fifo", destination="c") == "driver.failed"
    assert fs.refusal("copy_file", source="a", destination="link", overwrite=True) == "policy.path"
    assert fs.refusal("copy_file", source="a", destination=str(fs.shared / "c")) == "policy.path"
    assert fs.refusal("copy_file", source="../a", destination="c") == "policy.path"
    assert fs.refusal("copy_file", source="none", destination="c") == "driver.not_found"
    assert not (fs.files / "c").exists()
