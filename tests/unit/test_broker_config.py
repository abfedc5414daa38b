"""What is written for Mosquitto: rules and options, comments on lines of their own."""

from pathlib import Path

import pytest

from imlmesh_broker import EVERYWHERE
from imlmesh_broker.config import acl_text, config_text
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError


def test_the_rules_follow_the_topic_table():
    lines = [line for line in acl_text("home", "orchestra").splitlines() if line]
    assert lines == [
        "user orchestra",
        "topic readwrite imlmesh/1/home/#",
        "pattern write imlmesh/1/home/from/%u/#",
        "pattern read imlmesh/1/home/to/%u/#",
        "pattern read imlmesh/1/home/all/#",
        "pattern read imlmesh/1/home/orchestrator/+/status",
    ]


@pytest.mark.parametrize(
    ("mesh", "control"),
    [("home/#", "o"), ("home", "o\nuser evil"), ("home", "o # x"), ("", "o"), ("home", "")],
)
def test_a_name_that_is_no_id_makes_no_rule(mesh, control):
    with pytest.raises(InputError) as caught:
        acl_text(mesh, control)
    assert caught.value.code == "name.invalid"


def test_a_broker_for_the_network_listens_on_every_address():
    folder = Path("/srv/mesh")
    text = config_text(folder, folder / "ca.pem", host=EVERYWHERE, port=8883, user="pi")
    assert "listener 8883" in text.splitlines()


def test_the_configuration_says_what_the_mesh_relies_on():
    text = config_text(
        Path("/srv/mesh/broker"),
        Path("/srv/mesh/ca/ca.pem"),
        host="127.0.0.1",
        port=8883,
        user="pi",
    )
    lines = text.splitlines()
    for line in (
        "user pi",
        "allow_anonymous false",
        "persistence false",
        "set_tcp_nodelay true",
        f"max_packet_size {limits.BROKER_PACKET_BYTES}",
        "max_queued_messages 5000",
        "max_inflight_messages 100",
        "listener 8883 127.0.0.1",
        "tls_version tlsv1.3",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "keyfile /srv/mesh/broker/broker.key",
    ):
        assert line in lines
    assert not [line for line in lines if "#" in line and not line.startswith("#")]
    assert limits.BROKER_PACKET_BYTES > limits.MESSAGE_BYTES
    assert limits.BROKER_INFLIGHT_MESSAGES > limits.WINDOW_UNACKED
