"""What is written for Mosquitto: rules and options, comments on lines of their own."""

from dataclasses import replace
from pathlib import Path

import pytest

from imlmesh_broker import EVERYWHERE
from imlmesh_broker.config import Layout, acl_text, config_text
from imlmesh_broker.rights import Access
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import KINDS, Kind, Way

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "mosquitto"
BASE = "imlmesh/1/home"
LAYOUT = Layout(
    served=Path("/srv/mesh/broker/served"),
    node=("127.0.0.1", 8883),
    control=("127.0.0.1", 8884),
    user="pi",
)
PLUGIN = Path("/usr/lib/mosquitto_acl_file.so")
ACCESS = Access(7, revoked=frozenset({"stolen"}), quarantined=frozenset({"odd-one", "bed"}))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("2.0.conf", config_text(LAYOUT)),
        ("2.1.conf", config_text(replace(LAYOUT, plugin=PLUGIN))),
        ("mesh.acl", acl_text("home", "orchestra", ACCESS)),
    ],
)
def test_it_is_written_as_it_was_judged(name, text):
    """After a change that is meant: write the new text there, once it was tried on that version."""
    assert text == (GOLDEN / name).read_text()


def test_the_rules_are_the_topic_table():
    lines = acl_text("home", "orchestra").splitlines()
    assert lines[:2] == ["user orchestra", f"topic readwrite {BASE}/#"]
    patterns = {line.removeprefix("pattern ") for line in lines if line.startswith("pattern ")}
    assert patterns == {
        *(f"write {BASE}/from/%u/{kind}" for kind in KINDS[Way.FROM] - {Kind.EVENT}),
        f"write {BASE}/from/%u/event/#",
        *(f"read {BASE}/to/%u/{kind}" for kind in KINDS[Way.TO]),
        f"read {BASE}/all/command",
        f"read {BASE}/orchestrator/+/status",
    }


def test_who_is_revoked_is_denied_all_and_who_is_quarantined_what_gives_it_work():
    blocks = [block.splitlines() for block in acl_text("home", "orchestra", ACCESS).split("\n\n")]
    denied = {lines[0]: set(lines[1:]) for lines in blocks[1:-1]}
    assert denied["user stolen"] == {"topic deny #"}
    for name in ("bed", "odd-one"):
        assert denied[f"user {name}"] == {
            f"topic deny {BASE}/from/{name}/accept",
            f"topic deny {BASE}/from/{name}/reject",
            f"topic deny {BASE}/from/{name}/event/#",
            f"topic deny {BASE}/from/{name}/escalate",
            f"topic deny {BASE}/from/{name}/escalate",
            f"topic deny {BASE}/to/{name}/delegate",
            f"topic deny {BASE}/orchestrator/+/status",
        }
    assert set(denied) == {"user stolen", "user bed", "user odd-one"}


def test_nothing_of_the_mesh_is_asked_for_by_share():
    """So that a group that somebody makes has no member to take messages from."""
    ours = topics.node_subscriptions("home", "a") + topics.orchestrator_subscriptions("home")
    assert [one for one in ours if one.startswith("$")] == []


@pytest.mark.parametrize(
    ("mesh", "control"),
    [("home/#", "o"), ("home", "o\nuser evil"), ("home", "o # x"), ("", "o"), ("home", "")],
)
def test_a_name_that_is_no_id_makes_no_rule(mesh, control):
    with pytest.raises(InputError) as caught:
        acl_text(mesh, control)
    assert caught.value.code == "name.invalid"


@pytest.mark.parametrize("name", ["a/b", "+", "a # x", "a\nuser b", ""])
def test_an_id_that_is_none_makes_no_rule_either(name):
    for access in (Access(1, revoked=frozenset({name})), Access(1, quarantined=frozenset({name}))):
        with pytest.raises(InputError) as caught:
            acl_text("home", "o", access)
        assert caught.value.code == "name.invalid"


def test_a_broker_for_the_network_listens_on_every_address():
    text = config_text(replace(LAYOUT, node=(EVERYWHERE, 8883)))
    assert {"listener 8883", "listener 8884 127.0.0.1"} <= set(text.splitlines())


@pytest.mark.parametrize("plugin", [None, PLUGIN])
def test_the_configuration_says_what_the_mesh_relies_on(plugin):
    lines = config_text(replace(LAYOUT, plugin=plugin)).splitlines()
    for line in (
        "user pi",
        "persistence false",
        "set_tcp_nodelay true",
        f"max_packet_size {limits.BROKER_PACKET_BYTES}",
        "max_queued_messages 5000",
        "max_inflight_messages 100",
    ):
        assert lines.count(line) == 1
    at = [index for index, line in enumerate(lines) if line.startswith("listener ")]
    node, control = lines[at[0] : at[1]], lines[at[1] :]
    for role, listener in (("node", node), ("control", control)):
        for line in (
            "tls_version tlsv1.3",
            "require_certificate true",
            "use_identity_as_username true",
            f"cafile /srv/mesh/broker/served/{role}-ca.pem",
            f"crlfile /srv/mesh/broker/served/{role}-ca.crl",
            "keyfile /srv/mesh/broker/served/broker.key",
        ):
            assert line in listener
    # free on control, so that it can end a session by its id
    assert "use_username_as_clientid true" in node
    assert "use_username_as_clientid true" not in control
    assert not [line for line in lines if "#" in line and not line.startswith("#")]
    assert limits.BROKER_PACKET_BYTES > limits.MESSAGE_BYTES
    assert limits.BROKER_INFLIGHT_MESSAGES > limits.WINDOW_UNACKED
