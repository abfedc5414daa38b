"""A machine becomes a node, as its owner meets it: a pasted line, or a code that is compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from imlmesh import Client
from imlmesh_broker import child
from imlmesh_orchestrator.entry import endpoint
from imlmesh_protocol.wire.joining import JoinToken
from imlmesh_runtime.files import write_private
from imlmesh_runtime.paths import Home
from namespaces import Computer, Lan
from waiting import slower

if TYPE_CHECKING:
    from conftest import Desk, Person, Terminal

Someone = Callable[[Computer, str], "Person"]

JOINED_S = 10.0  # from the pasted line to the first completed action, as the issue says
PLAN = """\
protocol_version: "2.0"
plan_id: marker
description: A node that joined does work
actions:
  - id: note
    module: filesystem
    action: write_file
    params: {path: marker.txt, content: here}
    target_node: NODE
"""


def mesh_up(person: Person, *flags: str) -> Terminal:
    terminal = person.open("up", "--timing", "lan", *flags, columns=600)
    terminal.expect(r"Ctrl-C stops all of it")
    return terminal


def line_of(up: Terminal) -> list[str]:
    """What `up` says to paste, without the program."""
    return up.expect(r"imlmesh (node join mj1_\S+)")[1].split()


def works(person: Person, node: str, folder: Path) -> None:
    """As soon as the node is there a plan for it leaves its file there."""
    plan = person.folder / f"{node}.iml.yaml"
    plan.write_text(PLAN.replace("NODE", node))
    with Client.connect(person.home) as client:

        def online() -> bool:
            nodes = client.get("nodes")["nodes"]
            return any(each["alias"] == node and each["liveness"] == "online" for each in nodes)

        person.until(online)
        assert client.run(plan, timeout_s=30)["state"] == "completed"
    assert (folder / "files" / "marker.txt").read_text() == "here"


@pytest.fixture(scope="module")
def up(person: Person) -> Terminal:
    """The mesh of one computer, which most tests share.

    At ports of its own: one that is killed finds them taken by no other mesh of this computer.
    """
    home = Home(person.home)
    home.make()
    write_private(home.join_json, json.dumps({"port": endpoint.USUAL_PORT}).encode())
    ports = f"port = {child.USUAL_PORT}\ncontrol_port = {child.USUAL_CONTROL_PORT}\n"
    (home.orchestrator / "mesh.toml").write_text(f'{ports}timing = "lan"\n')
    return mesh_up(person)


def test_from_the_pasted_line_to_the_first_completed_action(person: Person, up: Terminal) -> None:
    line = line_of(up)
    began_s = time.monotonic()
    done = person.run(*line, "--name", "pi-bed")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    person.open("node", "run", str(folder))
    works(person, "pi-bed", folder)
    took_s = time.monotonic() - began_s
    print(json.dumps({"bench": "join", "to_first_action_s": round(took_s, 2)}))
    assert took_s <= JOINED_S * slower()
    # The line was for one machine, and says so when another one pastes it.
    again = person.run(*line, "--name", "pi-roof")
    assert again.returncode == 6
    assert "error[token.used]" in again.stderr
    assert not (person.folder / "pi-roof").exists()
    # On the same machine it is no harm.
    assert person.run(*line, "--name", "pi-bed").returncode == 0


def test_tokens_are_listed_and_revoked(person: Person, up: Terminal) -> None:
    made = person.ask("token", "create", "--uses", "2", "--ttl", "2d", "--group", "cams")
    assert made["line"] == f"imlmesh node join {made['text']}"
    folder = Path(
        person.ask("node", "join", made["text"], "--name", "pi-cam", "--profile", "readonly")[
            "folder"
        ]
    )
    assert 'profile = "readonly"' in (folder / "policy.toml").read_text()
    (group,) = person.ask("group", "list")["groups"]
    assert [(node["node"], node["liveness"]) for node in group["nodes"]] == [("pi-cam", "offline")]
    assert "pi-cam" in person.run("group", "list").stdout
    table = person.run("token", "list").stdout
    assert re.search(rf"{made['token']} +open +1/2 .*readonly|{made['token']} +open +1/2", table)
    assert made["text"][4:] not in table
    assert person.run("token", "revoke", made["token"]).returncode == 0
    refused = person.run("node", "join", made["text"], "--name", "pi-new")
    assert (refused.returncode, "token.revoked" in refused.stderr) == (6, True)
    assert person.run("token", "revoke", "t-none").returncode == 3
    assert person.run("node", "join", made["text"][:-9]).returncode == 3


def test_whoever_has_no_token_waits_until_the_codes_were_compared(
    person: Person, up: Terminal
) -> None:
    port = person.ask("status")["join"]["endpoints"][0]
    joining = person.open("node", "join", "--at", port, "--name", "pi-attic", columns=200)
    code = joining.expect(r"code (\S{3}-\S{3})")[1]
    found = person.ask("node", "discover", "--listen", "0s")["nodes"]
    waits = {each["node"]: each["code"] for each in found if each["joins"]}
    assert waits == {"pi-attic": code}
    assert code in person.run("node", "discover", "--listen", "0s").stdout
    assert "1 node waiting to be let in" in person.run("status").stdout
    # Ctrl-C ends it, and the same command goes on with another code.
    joining.press("\x03")
    assert joining.wait() == 130
    again = person.open("node", "join", "--at", port, "--name", "pi-attic", columns=200)
    code = again.expect(r"code (\S{3}-\S{3})")[1]
    assert person.run("node", "approve", "pi-nobody").returncode == 3
    assert person.run("node", "approve", code).returncode == 0
    assert again.wait() == 0
    person.open("node", "run", "pi-attic")
    works(person, "pi-attic", person.folder / "pi-attic")


def test_an_ignored_node_is_told_and_an_open_door_lets_in(person: Person, up: Terminal) -> None:
    port = person.ask("status")["join"]["endpoints"][0]
    stranger = person.open("node", "join", "--at", port, "--name", "stranger", columns=200)
    stranger.expect(r"waiting; Ctrl-C")
    assert person.run("node", "ignore", "stranger").returncode == 0
    assert stranger.wait() == 6
    assert "error[join.ignored]" in stranger.text
    door = person.open("node", "discover", "--open", "2m", columns=200)
    door.expect(r"open for +\d+ s more")
    assert person.run("node", "join", "--at", port, "--name", "guest").returncode == 0
    door.expect(r"guest is in as local_worker")
    door.press("\x03")
    assert door.wait() == 130
    with Client.connect(person.home) as client:
        assert client.get("joins")["open_until_ms"] is None
    assert person.run("node", "discover", "--open", "2h").returncode == 2


def test_broker_and_orchestrator_are_killed_while_a_node_waits(
    person: Person, up: Terminal
) -> None:
    status = person.ask("status")
    port = status["join"]["endpoints"][0]
    joining = person.open("node", "join", "--at", port, "--name", "pi-late", columns=200)
    code = joining.expect(r"code (\S{3}-\S{3})")[1]
    brokers = [
        each
        for each in psutil.Process(up.pid).children(recursive=True)
        if "mosquitto" in each.name() or "imlmesh_broker" in " ".join(each.cmdline())
    ]
    assert brokers
    for broker in brokers:
        broker.kill()
    psutil.Process(status["pid"]).kill()
    person.until(lambda: person.run("node", "approve", code).returncode == 0)
    assert joining.wait() == 0, joining.text
    person.open("node", "run", "pi-late")
    works(person, "pi-late", person.folder / "pi-late")
    assert person.ask("status")["pid"] != status["pid"]


@pytest.mark.parametrize("way", ["mdns", "address"])
def test_a_node_joins_from_its_own_namespace_and_works(
    desk: Desk, shared_lan: Lan, someone: Someone, way: str
) -> None:
    name = f"pi-{way}"
    pi = shared_lan.computer(name)
    gardener = someone(pi, "gardener")
    if way == "mdns":
        token = JoinToken.parse(line_of(desk.up)[-1])
        assert [each.rpartition(":")[0] for each in token.endpoints] == [desk.computer.address]
        token = replace(token, endpoints=())
    else:
        token = JoinToken.parse(desk.owner.ask("token", "create")["text"])
        assert [each.rpartition(":")[0] for each in token.endpoints] == [desk.computer.address]
        pi.drop_mdns("input", "output")
    done = gardener.run("node", "join", token.text, "--name", name)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert f'brokers = ["{desk.computer.address}:' in (folder / "mesh.toml").read_text()
    gardener.open("node", "run", str(folder))
    works(desk.owner, name, folder)


def test_without_a_token_mdns_finds_the_mesh(desk: Desk, shared_lan: Lan, someone: Someone) -> None:
    pi, owner = shared_lan.computer("pi"), desk.owner
    gardener = someone(pi, "gardener")
    joining = gardener.open("node", "join", "--name", "pi-bed", columns=200)
    code = joining.expect(r"code (\S{3}-\S{3})")[1]
    (waits,) = (each for each in owner.ask("node", "discover")["nodes"] if each["joins"])
    assert (waits["code"], waits["addresses"]) == (code, [pi.address])
    assert owner.run("node", "approve", "pi-bed").returncode == 0
    assert joining.wait() == 0
    gardener.open("node", "run", "pi-bed")
    works(owner, "pi-bed", gardener.folder / "pi-bed")


def test_a_node_that_waits_follows_its_mesh_to_another_port(lan: Lan, someone: Someone) -> None:
    desk, pi = lan.computer("desk"), lan.computer("pi")
    owner, gardener = someone(desk, "owner"), someone(pi, "gardener")
    up = mesh_up(owner, "--lan")
    first = owner.ask("status")["join"]["endpoints"][0]
    joining = gardener.open("node", "join", "--at", first, "--name", "pi-bed", columns=200)
    joining.expect(r"waiting; Ctrl-C")
    up.press("\x03")
    assert up.wait() == 0
    joining.expect(r"still waiting, and looking by mDNS")
    taken = f"import socket, time; s = socket.create_server(('', {first.rpartition(':')[2]}))"
    stranger = subprocess.Popen(
        [
            *desk.within,
            sys.executable,
            "-c",
            f"{taken}; print('taken', flush=True); time.sleep(99)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stranger.stdout is not None
    assert stranger.stdout.readline() == "taken\n"
    mesh_up(owner, "--lan")
    assert owner.ask("status")["join"]["endpoints"][0] != first
    joining.expect(r"it is there again")
    assert owner.run("node", "approve", "pi-bed").returncode == 0
    assert joining.wait() == 0
    stranger.kill()
    stranger.wait()
    gardener.open("node", "run", "pi-bed")
    works(owner, "pi-bed", gardener.folder / "pi-bed")


def test_where_no_mesh_is_it_says_so(lan: Lan, someone: Someone) -> None:
    pi = lan.computer("pi")
    gardener = someone(pi, "gardener")
    alone = gardener.run("node", "join", "--name", "pi-bed")
    assert (alone.returncode, "error[join.unreachable]" in alone.stderr) == (5, True)
    assert "--at ADDRESS:PORT" in alone.stderr
    assert not (gardener.folder / "pi-bed").exists()
