"""`imlmesh service` on the files of a machine of its own: users, folders, units, and their end."""

import fcntl
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imlmesh import machine as machines
from imlmesh import service
from imlmesh.exits import ExitCode
from imlmesh.main import run
from imlmesh_orchestrator.ca import Authority
from imlmesh_runtime.paths import Home
from node_folders import make_node

pytestmark = [pytest.mark.usefixtures("systemd_tools", "as_root")]
UNITS = "etc/systemd/system"
NODE_UNIT = f"{UNITS}/imlmesh-node@.service"
Call = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A machine without imlmesh: its files."""
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\ngpio:x:997:\n")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `node join --name pi-bed` makes."""
    authority = Authority.create(Home(tmp_path / "mesh"), "home", "orchestrator")
    made = tmp_path / "pi-bed"
    make_node(authority, "pi-bed", made, brokers=("127.0.0.1:8883",))
    (made / "files").mkdir(exist_ok=True)
    (made / "files" / "out").symlink_to("/etc/hostname")
    return made


@pytest.fixture
def imlmesh(image: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """`imlmesh service …` for the image: exit code and what it printed as JSON."""

    def call(*words: str, root: bool = True) -> tuple[int, dict[str, Any]]:
        code = run(["service", *words, *(["--root", str(image)] if root else []), "--json"])
        printed = capsys.readouterr()
        return code, json.loads(printed.out or printed.err)

    return call


def failed_with(answer: tuple[int, dict[str, Any]]) -> str:
    code, record = answer
    assert code != 0
    return str(record["errors"][0]["code"])


def files_of(root: Path) -> dict[str, str]:
    """Every path, with its owner, mode and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(root))] = f"{status.st_uid} {status.st_mode:o} {content!r}"
    return found


def test_a_node_moves_in_and_is_enabled(image: Path, folder: Path, imlmesh: Call) -> None:
    code, record = imlmesh("install", "node", str(folder), "--hardware")
    assert (code, record["done"], record["service"]) == (0, True, "node")
    rows = (line.split(":") for line in (image / "etc/passwd").read_text().splitlines())
    users = {row[0]: int(row[2]) for row in rows}
    home = image / "var/lib/imlmesh"
    there = home / "nodes/pi-bed"
    assert not folder.exists()
    # services pass these two folders and can put nothing there
    for path in (home, home / "nodes"):
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o711)
    for path in (there, *there.rglob("*")):
        assert path.lstat().st_uid == users["imlmesh-node"], path
        if not path.is_symlink():
            assert path.stat().st_mode & 0o077 == 0, path
    assert (there / "files" / "out").readlink() == Path("/etc/hostname")
    assert Path("/etc/hostname").stat().st_uid == 0
    unit = (image / NODE_UNIT).read_text()
    assert f"ExecStart={sys.executable} -P -m imlmesh_node " in unit
    assert "SupplementaryGroups=gpio\n" in (image / f"{UNITS}/{service.HARDWARE}").read_text()
    wanted = image / UNITS / "multi-user.target.wants/imlmesh-node@pi-bed.service"
    assert str(wanted.readlink()).endswith("/imlmesh-node@.service")


def test_again_it_changes_nothing(image: Path, folder: Path, imlmesh: Call) -> None:
    assert imlmesh("install", "node", str(folder))[0] == 0
    before = files_of(image)
    assert imlmesh("install", "node")[0] == 0
    assert imlmesh("install", "node", str(image / "var/lib/imlmesh/nodes/pi-bed"))[0] == 0
    assert files_of(image) == before


def test_what_root_edited_is_the_nodes_again(image: Path, folder: Path, imlmesh: Call) -> None:
    assert imlmesh("install", "node", str(folder))[0] == 0
    before = files_of(image)
    os.chown(image / "var/lib/imlmesh/nodes/pi-bed/mesh.toml", 0, 0)
    assert imlmesh("install", "node")[0] == 0
    assert files_of(image) == before


def test_an_update_writes_the_unit_anew(image: Path, folder: Path, imlmesh: Call) -> None:
    assert imlmesh("install", "node", str(folder), "--python", "/opt/old/bin/python")[0] == 0
    assert imlmesh("install", "node", "--python", "/opt/new/bin/python")[0] == 0
    assert "/opt/new/bin/python -P" in (image / NODE_UNIT).read_text()


def test_an_orchestrator_gets_a_mesh_of_its_own_user(image: Path, imlmesh: Call) -> None:
    assert imlmesh("install", "orchestrator", "--broker", "10.0.0.2:8883")[0] == 0
    home = image / "var/lib/imlmesh"
    first = (home / "ca/node-ca.pem").read_bytes()
    owners = {p.stat().st_uid for p in home.rglob("*") if p != home / "nodes"}
    assert len(owners) == 1
    assert 0 not in owners
    unit = (image / UNITS / "imlmesh-orchestrator.service").read_text()
    assert unit.count("--broker 10.0.0.2:8883\n") == 1
    # a file that root made there meanwhile is put right, the mesh stays
    (home / "ca/x.json").write_text("{}")
    assert imlmesh("install", "orchestrator")[0] == 0
    assert (home / "ca/x.json").stat().st_uid in owners
    assert (home / "ca/node-ca.pem").read_bytes() == first


def test_a_mosquitto_of_the_machine_is_told_who_may_come_in(image: Path, imlmesh: Call) -> None:
    unit, place = image / UNITS / "imlmesh-access.service", image / "etc/mosquitto/imlmesh"
    assert imlmesh("install", "orchestrator")[0] == 0
    assert not unit.exists()
    package = image / "lib/systemd/system/mosquitto.service"
    package.parent.mkdir(parents=True)
    package.write_text("[Service]\nExecStart=/usr/sbin/mosquitto\n")
    for file, line in (
        ("passwd", "mosquitto:x:901:902::/:/bin/false"),
        ("group", "mosquitto:x:902:"),
    ):
        with (image / "etc" / file).open("a") as rows:
            rows.write(f"{line}\n")
    assert imlmesh("install", "orchestrator", "--python", "/opt/imlmesh/bin/python3")[0] == 0
    assert "ExecStart=/opt/imlmesh/bin/python3 -P -m imlmesh_broker.access " in unit.read_text()
    wanted = image / UNITS / "multi-user.target.wants" / unit.name
    assert wanted.is_symlink()
    # readable for Mosquitto, and for nobody else
    found = place.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, 902, 0o750)
    before = files_of(image)
    assert imlmesh("install", "orchestrator", "--python", "/opt/imlmesh/bin/python3")[0] == 0
    assert files_of(image) == before
    assert imlmesh("uninstall", "orchestrator")[0] == 0
    assert not unit.exists()
    assert not wanted.is_symlink()


def test_an_orchestrator_tells_the_network_where_it_is(image: Path, imlmesh: Call) -> None:
    unit = image / UNITS / "imlmesh-orchestrator.service"
    assert imlmesh("install", "orchestrator", "--lan")[0] == 0
    words = unit.read_text().partition("ExecStart=")[2].partition("\n")[0].split()
    assert words[words.index("--join") + 1] == "0.0.0.0:8766"
    assert words[-1] == "--lan"
    assert imlmesh("install", "orchestrator")[0] == 0
    assert "--lan" not in unit.read_text()
    # the addresses of this machine would lead nobody to that broker
    before = files_of(image)
    elsewhere = ("--lan", "--broker", "192.168.1.20:8884")
    assert failed_with(imlmesh("install", "orchestrator", *elsewhere)) == "config.invalid"
    assert failed_with(imlmesh("install", "node", "--lan")) == "usage"
    assert files_of(image) == before


def test_a_dry_run_does_nothing(image: Path, folder: Path, imlmesh: Call) -> None:
    before = files_of(image), files_of(folder)
    for words in (("node", str(folder), "--hardware"), ("orchestrator",)):
        code, record = imlmesh("install", *words, "--dry-run")
        assert (code, record["done"]) == (0, False)
        assert len(record["deeds"]) > 4
    assert (files_of(image), files_of(folder)) == before


def test_uninstall_takes_units_and_leaves_data(image: Path, folder: Path, imlmesh: Call) -> None:
    assert imlmesh("install", "node", str(folder), "--hardware")[0] == 0
    assert imlmesh("install", "orchestrator")[0] == 0
    data = files_of(image / "var")
    own = image / UNITS / "imlmesh-node@.service.d/override.conf"
    own.write_text("[Service]\n")
    assert imlmesh("uninstall", "node", "--dry-run")[1]["deeds"]
    assert (image / NODE_UNIT).exists()
    assert imlmesh("uninstall", "node")[0] == 0
    assert not (image / NODE_UNIT).exists()
    assert not list((image / UNITS / "multi-user.target.wants").glob("imlmesh-node@*"))
    # what the administrator added is theirs
    assert own.exists()
    assert (image / UNITS / "imlmesh-orchestrator.service").exists()
    assert imlmesh("uninstall", "orchestrator")[0] == 0
    assert imlmesh("uninstall", "orchestrator")[1]["deeds"] == []
    assert files_of(image / "var") == data


def test_what_a_killed_install_left_is_put_right(image: Path, folder: Path, imlmesh: Call) -> None:
    half = image / "var/lib/imlmesh/nodes/.pi-bed.new"
    (half / "keys").mkdir(parents=True)
    (image / UNITS).mkdir(parents=True)
    (image / UNITS / ".imlmesh-node@.service.new").write_text("[Unit")
    assert imlmesh("install", "node", str(folder))[0] == 0
    names = [path.name for path in (image / "var/lib/imlmesh/nodes").iterdir()]
    assert names == ["pi-bed"]
    assert "WantedBy" in (image / NODE_UNIT).read_text()
    assert not list((image / UNITS).glob(".*"))


@pytest.mark.parametrize("done", range(7))
def test_an_install_that_was_cut_short_anywhere_is_finished_by_the_next(
    image: Path, folder: Path, imlmesh: Call, done: int
) -> None:
    machine = machines.Machine(image)
    deeds = service.install_node(machine, sys.executable, folder, hardware=True)
    assert len(deeds) == 7
    for deed in deeds[:done]:
        deed.carry_out()
    again = [str(folder)] if folder.exists() else []
    assert imlmesh("install", "node", *again, "--hardware")[0] == 0
    whole = files_of(image)
    assert imlmesh("install", "node", "--hardware")[0] == 0
    assert files_of(image) == whole
    assert (image / UNITS / "multi-user.target.wants/imlmesh-node@pi-bed.service").is_symlink()


@pytest.mark.parametrize("name", ["fchmod", "chown"])
def test_a_move_that_was_cut_short_leaves_one_whole_folder(
    image: Path, folder: Path, imlmesh: Call, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = files_of(folder)

    def power_cut(*_words: object, **_more: object) -> None:
        raise KeyboardInterrupt

    *first, move = service.install_node(
        machines.Machine(image), sys.executable, folder, hardware=False
    )[:4]
    for deed in first:
        deed.carry_out()
    with monkeypatch.context() as cut:
        cut.setattr(os, name, power_cut)
        with pytest.raises(KeyboardInterrupt):
            move.carry_out()
    assert before.items() <= files_of(folder).items()
    assert imlmesh("install", "node", str(folder))[0] == 0
    names = [path.name for path in (image / "var/lib/imlmesh/nodes").iterdir()]
    assert (names, folder.exists()) == (["pi-bed"], False)


def test_a_unit_of_somebody_else_is_not_touched(image: Path, folder: Path, imlmesh: Call) -> None:
    (image / UNITS).mkdir(parents=True)
    (image / NODE_UNIT).write_text("[Service]\nExecStart=/usr/bin/true\n")
    before = files_of(image), files_of(folder)
    assert failed_with(imlmesh("install", "node", str(folder))) == "service.foreign"
    assert failed_with(imlmesh("uninstall", "node")) == "service.foreign"
    assert (files_of(image), files_of(folder)) == before


@pytest.mark.parametrize(
    ("mesh_toml", "code"),
    [
        (None, "config.invalid"),
        ("id = [", "config.invalid"),
        ("mesh = 'home'", "name.invalid"),
        ("id = '../../etc'", "name.invalid"),
        ("id = 'a%i'", "name.invalid"),
    ],
)
def test_a_folder_that_is_no_node_is_refused_before_anything(
    image: Path, tmp_path: Path, imlmesh: Call, mesh_toml: str | None, code: str
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    if mesh_toml is not None:
        (odd / "mesh.toml").write_text(mesh_toml)
    before = files_of(image)
    assert failed_with(imlmesh("install", "node", str(odd))) == code
    assert files_of(image) == before


def test_a_node_that_runs_or_is_there_already_does_not_move(
    image: Path, folder: Path, tmp_path: Path, imlmesh: Call
) -> None:
    with (folder / "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = files_of(image)
        assert failed_with(imlmesh("install", "node", str(folder))) == "node.running"
        assert files_of(image) == before
    assert (folder / "keys/node.key").exists()
    assert imlmesh("install", "node", str(folder))[0] == 0
    make_node(
        Authority.create(Home(tmp_path / "second"), "home", "orchestrator"),
        "pi-bed",
        folder,
        brokers=("127.0.0.1:8883",),
    )
    assert failed_with(imlmesh("install", "node", str(folder))) == "folder.exists"
    assert (folder / "keys/node.key").exists()


def test_a_link_as_lock_empties_no_other_file(folder: Path, tmp_path: Path, imlmesh: Call) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (folder / "node.lock").symlink_to(precious)
    assert failed_with(imlmesh("install", "node", str(folder))) == "config.invalid"
    assert precious.read_text() == "kept"


def test_a_link_to_the_folder_moves_what_it_means(
    image: Path, folder: Path, tmp_path: Path, imlmesh: Call
) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert imlmesh("install", "node", str(tmp_path / "link"))[0] == 0
    assert (image / "var/lib/imlmesh/nodes/pi-bed/keys/node.key").is_file()
    assert not folder.exists()


def test_what_cannot_be_copied_leaves_the_folder_whole(
    image: Path, folder: Path, imlmesh: Call
) -> None:
    os.mkfifo(folder / "files" / "pipe")
    before = {path for path in folder.rglob("*") if path.name != "node.lock"}
    assert failed_with(imlmesh("install", "node", str(folder))) == "service.failed"
    assert {path for path in folder.rglob("*") if path.name != "node.lock"} == before
    (folder / "files" / "pipe").unlink()
    assert imlmesh("install", "node", str(folder))[0] == 0


def test_root_makes_nothing_in_the_home_of_services(
    image: Path, tmp_path: Path, imlmesh: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imlmesh("install", "orchestrator")[0] == 0
    home = image / "var/lib/imlmesh"
    before = files_of(home)
    code = run(["orchestrator", "run", "--home", str(home), "--json"])
    assert code == ExitCode.NOT_ALLOWED
    assert "sudo -u" in capsys.readouterr().err
    assert files_of(home) == before


@pytest.mark.parametrize(
    "words",
    [
        ("install", "broker"),
        ("install", "node"),
        ("install", "node", "--broker", "10.0.0.2:8883"),
        ("install", "orchestrator", "--hardware"),
        ("uninstall", "nodes"),
        ("logs", "node", "-n", "0"),
        ("logs", "node", "-n", "10000000"),
    ],
)
def test_wrong_use(imlmesh: Call, words: tuple[str, ...]) -> None:
    answer = imlmesh(*words)
    assert (failed_with(answer), answer[0]) == ("usage", ExitCode.USAGE)


@pytest.mark.parametrize(
    "broker", ["", "10.0.0.2", "10.0.0.2:70000", "a b:1", "10.0.0.2:8883 --home /"]
)
def test_a_broker_that_is_no_address(imlmesh: Call, broker: str) -> None:
    assert failed_with(imlmesh("install", "orchestrator", "--broker", broker)) == "config.invalid"


def test_logs_of_nothing_installed_say_so(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["service", "logs", "node", "--root", str(image)]) == 0
    assert "no node is installed" in capsys.readouterr().err


def test_without_a_running_systemd_it_says_so(
    tmp_path: Path, folder: Path, imlmesh: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "_RUNNING", tmp_path / "no-systemd")
    monkeypatch.setattr(service, "check_reach", lambda _file: None)
    answer = imlmesh("install", "node", str(folder), root=False)
    assert (failed_with(answer), answer[0]) == ("service.no_systemd", ExitCode.FAILED)
    assert "does not run" in answer[1]["errors"][0]["message"]
    code, record = imlmesh("install", "node", str(folder), "--dry-run", root=False)
    assert (code, record["systemd"], record["done"]) == (0, False, False)
    assert folder.exists()


def test_only_root_installs_here(
    tmp_path: Path, folder: Path, imlmesh: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "_RUNNING", tmp_path)
    monkeypatch.setattr(service, "check_reach", lambda _file: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    answer = imlmesh("install", "node", str(folder), root=False)
    assert (failed_with(answer), answer[0]) == ("access.denied", ExitCode.NOT_ALLOWED)
    assert folder.exists()
