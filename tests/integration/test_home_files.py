"""The home on disk: where things are, how they are written, what the logs and systemd are told."""

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, LinkError, TrustError
from imlmesh_runtime.files import read_file, write_private
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.notify import READY, notify, watchdog_s
from imlmesh_runtime.paths import ApiAddress, Home, find_api, find_home, write_api


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    set_up_logs(tmp_path / "node.log")
    yield tmp_path / "node.log"
    logging.captureWarnings(False)
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = before, level


def test_the_home_is_found_by_flag_variable_and_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/users/x")
    assert find_home("/a", {"IMLMESH_HOME": "/b"}).root == Path("/a")
    assert find_home(None, {"IMLMESH_HOME": "/b", "XDG_DATA_HOME": "/c"}).root == Path("/b")
    assert find_home(None, {"XDG_DATA_HOME": "/c"}).root == Path("/c/imlmesh")
    assert find_home(None, {"XDG_DATA_HOME": "c"}).root == Path("/users/x/.local/share/imlmesh")
    assert find_home(None, {}).root == Path("/users/x/.local/share/imlmesh")
    with pytest.raises(InputError):
        Home(tmp_path).node("../ca")


def test_a_long_home_has_no_room_for_a_socket(tmp_path):
    assert Home(Path("/h")).socket_fits()
    assert not Home(Path("/" + "h" * 90)).socket_fits()


def test_the_address_of_the_api_is_found_where_it_was_written(home, tmp_path):
    service = tmp_path / "service.json"
    with pytest.raises(ConnectionError):
        find_api(home, service=service)
    service.write_text('{"url": "http://127.0.0.1:1", "socket": null, "token_file": "/t"}')
    assert find_api(home, service=service) == ApiAddress("http://127.0.0.1:1", None, "/t")
    home.make()
    address = ApiAddress("http://imlmesh", str(home.api_socket))
    write_api(home, address)
    assert find_api(home, service=service) == address
    assert home.api_json.stat().st_mode & 0o777 == 0o600
    home.api_json.write_text("[]")
    with pytest.raises(InputError) as caught:
        find_api(home)
    assert caught.value.code == "config.invalid"


def test_a_home_is_for_its_owner_alone(home):
    home.make()
    home.make()
    for folder in (home.root, home.orchestrator, home.nodes, home.run, home.logs):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not home.ca.exists()


def test_a_private_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    place = tmp_path / "key"
    write_private(place, b"first")
    write_private(place, b"second")
    assert place.read_bytes() == b"second"
    assert place.stat().st_mode & 0o777 == 0o600

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(place, b"third")
    assert place.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [place]


def test_a_file_that_is_no_key_file_is_not_read_into_memory(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(limits.KEY_FILE_BYTES * 1_000)
    with pytest.raises(TrustError) as caught:
        read_file(tmp_path / "huge")
    assert caught.value.code == "trust.file"


def test_a_log_line_is_one_object_with_fields_and_code(log_file):
    logger = logging.getLogger("imlmesh.test")
    logger.warning("two\nlines of %s", "text", extra={"node": "pi-1"})
    try:
        raise LinkError("link.down", "no way")
    except LinkError:
        logger.exception("failed")
    logger.debug("not at this level")
    first, second = (json.loads(line) for line in log_file.read_text().splitlines())
    assert first["at"].endswith("+00:00")
    del first["at"]
    assert first == {
        "level": "warning",
        "logger": "imlmesh.test",
        "message": "two\nlines of text",
        "node": "pi-1",
    }
    assert (second["level"], second["code"]) == ("error", "link.down")
    assert "LinkError" in second["traceback"]


def test_systemd_hears_that_we_are_ready(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(5)
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify(READY)
        assert systemd.recv(100) == b"READY=1"


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_systemd_may_use_an_abstract_name(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(5)
        systemd.bind(f"\0imlmesh-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@imlmesh-test-{os.getpid()}")
        assert notify(READY)
        assert systemd.recv(100) == b"READY=1"


def test_without_systemd_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify(READY)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify(READY)


@pytest.mark.parametrize(("wait_us", "every_s"), [("30000000", 15.0), ("", None), ("x", None)])
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(monkeypatch, wait_us, every_s):
    monkeypatch.setenv("WATCHDOG_USEC", wait_us)
    assert watchdog_s() == every_s
