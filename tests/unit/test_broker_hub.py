"""Flow and hub without sockets: order, bounds, who is ended and who is made to wait."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_broker.embedded import codec
from imlmesh_broker.embedded.access import Identity, Role
from imlmesh_broker.embedded.codec import Message
from imlmesh_broker.embedded.flow import Flow
from imlmesh_broker.embedded.hub import Hub
from imlmesh_broker.rights import ALL_IN, Access
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, MeshError
from imlmesh_runtime.link.packets import next_packet

BASE = "imlmesh/1/home"
DOWN = f"{BASE}/to/a/ack".encode()
UP = f"{BASE}/from/a/complete".encode()


class Client:
    """A member that writes down what becomes of it."""

    def __init__(self, hub: Hub, role: Role, name: str, *asked: str, client: str = "") -> None:
        uri = f"imlmesh://home/{role}/{name}"
        self.identity = Identity.of_certificate("home", {"subjectAltName": (("URI", uri),)}, role)
        self.client = client or name
        self.flow = Flow()
        self.will: Message | None = None
        self.asked: dict[str, int] = {}
        self.taken: dict[str, int] = {}
        self.refusals: list[str] = []
        self.ended: list[str] = []
        self.held = False
        self._hub = hub
        hub.join(self)
        self.granted = hub.subscribe(self, [(one, 1) for one in asked])

    def touch(self) -> None:
        """Nothing is written."""

    def refuse(self, error: MeshError) -> None:
        self.refusals.append(error.code)

    def end(self, error: MeshError) -> None:
        self.ended.append(error.code)
        self._hub.leave(self)

    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        self.held = False

    def limit(self, identity: Identity) -> None:
        self.identity = identity

    def read(self) -> list[tuple[str, bytes]]:
        return [(topic.decode(), payload) for topic, _, payload in packets(self.flow)]


def packets(flow: Flow) -> list[tuple[bytes, int, bytes]]:
    data, at, found = flow.unsent, 0, []
    flow.unsent = bytearray()
    while (bounds := next_packet(data, at)) is not None:
        found.append(codec.parse_publish(data[at], bytes(data[bounds[0] : bounds[1]])))
        at = bounds[1]
    return found


@pytest.fixture
def hub() -> Hub:
    return Hub("home")


@given(st.lists(st.one_of(st.integers(0, 1), st.sampled_from(["ack", "shut", "open", "read"]))))
def test_a_flow_keeps_order_and_its_window(steps: list[Any]):
    flow, sent, got, awaited = Flow(), [], [], []

    def read() -> None:
        for _, packet_id, payload in packets(flow):
            got.append(payload)
            awaited.extend([packet_id] if packet_id else [])

    for step in steps:
        if step in (0, 1):
            sent.append(b"%d" % len(sent))
            assert flow.deliver(b"t", sent[-1], step)
        elif step == "ack" and awaited:
            flow.acknowledge(awaited.pop(0))
        elif step in ("shut", "open"):
            flow.is_open = step == "open"
        read()
        flow.go_on()
        assert len(flow._awaited) <= limits.BROKER_INFLIGHT_MESSAGES
    flow.is_open = True
    while flow.waiting_bytes or flow.unsent:
        flow.go_on()
        read()
        while awaited:
            flow.acknowledge(awaited.pop())
    assert got == sent


def test_the_window_waits_for_acknowledgements():
    flow = Flow()
    for number in range(limits.BROKER_INFLIGHT_MESSAGES + 1):
        assert flow.deliver(b"t", b"%d" % number, 1)
    sent = packets(flow)
    assert len(sent) == limits.BROKER_INFLIGHT_MESSAGES
    assert len({packet_id for _, packet_id, _ in sent}) == len(sent)
    flow.acknowledge(0)
    flow.go_on()
    assert packets(flow) == []
    flow.acknowledge(sent[3][1])
    flow.go_on()
    assert [payload for _, _, payload in packets(flow)] == [b"100"]


def test_a_slow_reader_loses_qos_0_first_and_then_its_place():
    flow, piece = Flow(), bytes(limits.MESSAGE_BYTES)
    flow.is_open = False
    while not flow.dropped:
        assert flow.deliver(b"t", piece, 0)
    assert flow.waiting_bytes < limits.BROKER_QUEUED_BYTES // 2
    kept = 0
    while flow.deliver(b"t", piece, 1):
        kept += 1
    assert kept > 1
    assert flow.waiting_bytes < limits.BROKER_QUEUED_BYTES + 2 * limits.MESSAGE_BYTES


def test_a_slow_node_is_ended_and_nobody_waits_for_it(hub):
    control = Client(hub, "control", "o", f"{BASE}/from/#")
    node = Client(hub, "node", "a", f"{BASE}/to/a/+")
    node.will = Message(f"{BASE}/from/a/status", b"gone", 1, False)
    node.flow.is_open = False
    while not node.ended:
        hub.spread(control, DOWN, bytes(limits.MESSAGE_BYTES), 1)
    assert node.ended == ["broker.slow"]
    assert not control.held
    assert control.read() == [(f"{BASE}/from/a/status", b"gone")]
    hub.spread(control, DOWN, b"nobody is there", 1)


def test_a_flood_of_one_node_makes_that_node_wait_and_control_stays(hub):
    control = Client(hub, "control", "o", f"{BASE}/from/#")
    loud, quiet = Client(hub, "node", "a"), Client(hub, "node", "b")
    control.flow.is_open = False
    while not loud.held:
        hub.spread(loud, UP, bytes(limits.MESSAGE_BYTES), 1)
    assert control.ended == []
    assert not quiet.held
    control.flow.is_open = True
    while control.flow.waiting_bytes:
        for _, packet_id, _ in packets(control.flow):
            control.flow.acknowledge(packet_id)
        control.flow.go_on()
        hub.caught_up(control)
    assert not loud.held


def test_who_waited_for_control_is_read_again_when_it_leaves(hub):
    control = Client(hub, "control", "o", f"{BASE}/from/#")
    node = Client(hub, "node", "a")
    control.flow.is_open = False
    while not node.held:
        hub.spread(node, UP, bytes(limits.MESSAGE_BYTES), 1)
    hub.leave(control)
    assert not node.held


def test_subscriptions_have_a_limit_and_foreign_ones_are_refused(hub):
    many = [f"{BASE}/orchestrator/o{number}/status" for number in range(10_000)]
    node = Client(hub, "node", "a", f"{BASE}/to/b/+", *many)
    assert node.granted[0] == codec.REFUSED_FILTER
    assert node.granted.count(1) == limits.BROKER_SUBSCRIPTIONS
    assert node.granted[limits.BROKER_SUBSCRIPTIONS + 1] == codec.REFUSED_FILTER
    assert sorted(node.refusals) == ["broker.subscriptions", "broker.topic"]
    assert hub.subscribe(node, [(many[0], 0)]) == [0]


def test_who_is_revoked_goes_at_once_without_a_last_word(hub):
    control = Client(hub, "control", "o", f"{BASE}/from/#")
    node, other = Client(hub, "node", "a", "#"), Client(hub, "node", "b", "#")
    node.will = Message(f"{BASE}/from/a/status", b"gone", 1, False)
    hub.limit(Access(1, revoked=frozenset({"a"})))
    assert (node.ended, other.ended, control.read()) == (["link.refused"], [], [])
    hub.spread(control, DOWN, b"for a", 1)
    assert node.read() == []
    with pytest.raises(LinkError) as caught:
        hub.admit(node.identity)
    assert caught.value.code == "link.refused"
    assert hub.admit(other.identity) == other.identity


def test_who_is_quarantined_gets_no_work_until_it_is_released(hub):
    control = Client(hub, "control", "o", f"{BASE}/from/#")
    node = Client(hub, "node", "a", f"{BASE}/to/a/+")
    work, asked = f"{BASE}/to/a/delegate", f"{BASE}/to/a/request"
    hub.spread(control, work.encode(), b"1", 1)
    hub.limit(Access(1, quarantined=frozenset({"a"})))
    for topic in (work, asked):
        hub.spread(control, topic.encode(), b"2", 1)
    assert node.read() == [(work, b"1"), (asked, b"2")]
    assert hub.may_write(node, UP.decode())
    assert not hub.may_write(node, f"{BASE}/from/a/event/log")
    assert hub.subscribe(node, [(work, 1)]) == [1]
    hub.limit(ALL_IN)
    hub.spread(control, work.encode(), b"3", 1)
    assert node.read() == [(work, b"3")]
    assert hub.may_write(node, f"{BASE}/from/a/event/log")


def test_control_ends_a_session_under_its_client_id(hub):
    node = Client(hub, "node", "a")
    Client(hub, "control", "o")
    guest = Client(hub, "control", "o", client="a")
    assert node.ended == ["link.down"]
    assert guest.identity.is_control


def test_two_filters_of_a_client_bring_a_message_once(hub):
    control = Client(hub, "control", "o")
    node = Client(hub, "node", "a", f"{BASE}/to/a/+", "#", f"{BASE}/#")
    hub.spread(control, DOWN, b"once", 1)
    assert node.read() == [(DOWN.decode(), b"once")]
    hub.unsubscribe(node, [f"{BASE}/to/a/+", "never taken"])
    hub.spread(control, DOWN, b"still", 1)
    assert node.read() == [(DOWN.decode(), b"still")]
    hub.unsubscribe(node, ["#", f"{BASE}/#"])
    hub.spread(control, DOWN, b"no more", 1)
    assert node.read() == []


def test_status_alone_is_retained_within_a_limit(hub, monkeypatch):
    node, control = Client(hub, "node", "a"), Client(hub, "control", "o", f"{BASE}/from/#")
    monkeypatch.setattr(limits, "BROKER_RETAINED_BYTES", 10)
    hub.publish(node, Message(f"{BASE}/from/a/complete", b"x", 1, True))
    hub.publish(node, Message(f"{BASE}/from/a/status", b"0123456789", 1, True))
    hub.publish(control, Message(f"{BASE}/from/b/status", b"x", 1, True))
    assert (node.refusals, control.refusals) == (["broker.topic"], ["message.too_large"])
    control.read()
    hub.send_retained(control, [f"{BASE}/from/#", "never taken"])
    assert control.read() == [(f"{BASE}/from/a/status", b"0123456789")]
    hub.publish(node, Message(f"{BASE}/from/a/status", b"", 1, True))
    hub.publish(control, Message(f"{BASE}/from/b/status", b"y", 1, True))
    control.read()
    hub.send_retained(control, [f"{BASE}/from/#"])
    assert control.read() == [(f"{BASE}/from/b/status", b"y")]


def test_retained_messages_that_cannot_wait_end_the_client(hub, monkeypatch):
    node = Client(hub, "node", "a")
    hub.publish(node, Message(f"{BASE}/from/a/status", b"here", 1, True))
    control = Client(hub, "control", "o", f"{BASE}/from/#")
    control.flow.is_open = False
    monkeypatch.setattr(limits, "BROKER_QUEUED_BYTES", 0)
    with pytest.raises(LinkError) as caught:
        hub.send_retained(control, [f"{BASE}/from/#"])
    assert caught.value.code == "broker.slow"


def test_a_will_on_a_foreign_topic_is_refused(hub):
    control = Client(hub, "control", "o", f"{BASE}/from/#")
    node = Client(hub, "node", "a")
    node.will = Message(f"{BASE}/from/b/status", b"forged", 1, False)
    node.end(LinkError("link.down", "gone"))
    assert node.refusals == ["broker.topic"]
    assert control.read() == []


def test_routes_that_are_remembered_are_bounded_and_renewed(hub, monkeypatch):
    monkeypatch.setattr(limits, "BROKER_ROUTES", 2)
    control = Client(hub, "control", "o", f"{BASE}/from/#")
    node = Client(hub, "node", "a")
    for number in range(5):
        hub.spread(node, f"{BASE}/from/a/event/source/{number}".encode(), b"", 0)
        assert len(hub._routes) <= 2
    assert len(control.read()) == 5
