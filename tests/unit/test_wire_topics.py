"""The topic table: what is made is read back; nothing climbs out of its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_protocol.errors import InputError, ProtocolError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind, Topic, Way


@pytest.mark.parametrize("kind", sorted(topics.KINDS[Way.TO]))
def test_topics_to_a_node_come_back(kind: Kind) -> None:
    assert topics.parse(topics.to_node("home", "pi-1", kind)) == Topic(Way.TO, "home", "pi-1", kind)


def test_topics_from_a_node_come_back_with_their_channel() -> None:
    text = topics.from_node("home", "pi-1", Kind.EVENT, "telemetry/soil")
    assert topics.parse(text) == Topic(Way.FROM, "home", "pi-1", Kind.EVENT, "telemetry/soil")


def test_topics_of_all_and_of_orchestrators_come_back() -> None:
    assert topics.parse(topics.to_all("home", Kind.COMMAND)).way is Way.ALL
    status = topics.parse(topics.orchestrator_status("home", "main"))
    assert (status.way, status.name, status.kind) == (Way.ORCHESTRATOR, "main", Kind.STATUS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "imlmesh/1/home",
        "imlmesh/2/home/to/pi/delegate",
        "imlmesh/1/home/to/pi/complete",
        "imlmesh/1/home/from/pi/delegate",
        "imlmesh/1/home/to/pi/delegate/more",
        "imlmesh/1/home/from/pi/event",
        "imlmesh/1/home/from/pi/event/gossip",
        "imlmesh/1/home/from/pi/event/telemetry",
        "imlmesh/1/home/from/pi/event/telemetry/a/b",
        "imlmesh/1/home/from/../event/log",
        "imlmesh/1/home/to/PI/delegate",
        "imlmesh/1/home/all/delegate",
        "imlmesh/1//to/pi/delegate",
        "imlmesh/1/home/sideways/pi/delegate",
        "imlmesh/1/home/to",
    ],
)
def test_what_is_not_in_the_table_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        topics.parse(text)
    assert caught.value.code == "message.kind"


@given(st.text(alphabet="imlesh/1ato.pifrm+#", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    code = "read"
    try:
        topics.parse(text)
    except ProtocolError as exc:
        code = exc.code
    assert code in ("read", "message.kind")


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "A", "-a", "a" * 64, "a\n"])
def test_names_that_could_climb_never_become_filters(name: str) -> None:
    with pytest.raises(InputError) as caught:
        topics.node_subscriptions("home", name)
    assert caught.value.code == "name.invalid"
    with pytest.raises(InputError):
        topics.acl_rules(name)


@pytest.mark.parametrize(
    "kind", sorted(topics.KINDS[topics.Way.TO] | topics.KINDS[topics.Way.FROM])
)
def test_only_a_status_may_have_been_kept(kind: topics.Kind) -> None:
    way = topics.Way.TO if kind in topics.KINDS[topics.Way.TO] else topics.Way.FROM
    channel = "/log" if kind is topics.Kind.EVENT else ""
    text = f"imlmesh/1/home/{way}/pi/{kind}{channel}"
    assert topics.received(text, False).kind is kind
    if kind is topics.Kind.STATUS:
        assert topics.received(text, True).kind is kind
    else:
        with pytest.raises(ProtocolError) as caught:
            topics.received(text, True)
        assert caught.value.code == "message.retained"
