"""Who a certificate names, and how filters are cut down to what that client may read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_broker.embedded.access import Identity, Role, narrowed
from imlmesh_broker.embedded.routes import Tree
from imlmesh_broker.rights import ALL_IN, Access
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.wire.topics import KINDS, Way

BASE = "imlmesh/1/farm"
PARTS = st.sampled_from(["a", "b", ""])
TOPICS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
FILTERS = st.tuples(
    st.lists(st.one_of(PARTS, st.just("+")), min_size=1, max_size=3), st.booleans()
).map(lambda found: "/".join([*found[0], "#"] if found[1] else found[0]))


def takes(asked: str, topic: str) -> bool:
    """What the standard says of a filter, one level at a time (section 4.7)."""
    filters, levels = asked.split("/"), topic.split("/")
    for index, part in enumerate(filters):
        if part == "#":
            return True
        if index == len(levels) or part not in ("+", levels[index]):
            return False
    return len(filters) == len(levels)


def identity(uri: str, role: Role = "node") -> Identity:
    names = (("DNS", "x"), ("URI", uri))
    return Identity.of_certificate("farm", {"subjectAltName": names}, role)


@given(FILTERS, FILTERS, TOPICS)
def test_a_narrowed_filter_takes_what_both_take(one, other, topic):
    found = narrowed(one, other)
    assert (found is not None and takes(found, topic)) == (
        takes(one, topic) and takes(other, topic)
    )


@given(st.lists(st.tuples(FILTERS, st.integers(0, 2)), max_size=8, unique=True), TOPICS)
def test_a_tree_finds_the_filters_that_take_a_topic(entries, topic):
    tree: Tree[int, str] = Tree()
    for asked, who in entries:
        tree.put(asked, who, asked)
    wanted = sorted((who, asked) for asked, who in entries if takes(asked, topic))
    assert sorted(tree.taking(topic)) == wanted
    for asked, who in entries:
        tree.drop(asked, who)
    assert tree._top.below == {}


@given(st.lists(TOPICS, max_size=8, unique=True), FILTERS)
def test_a_tree_finds_the_topics_that_a_filter_takes(topics, asked):
    tree: Tree[str, str] = Tree()
    for topic in topics:
        tree.put(topic, topic, topic)
    assert sorted(tree.within(asked)) == sorted(topic for topic in topics if takes(asked, topic))


def test_a_node_has_its_own_topics():
    node = identity("imlmesh://farm/node/a")
    assert (node.id, node.is_control) == ("a", False)
    assert node.may_write(f"{BASE}/from/a/complete")
    assert node.may_write(f"{BASE}/from/a/event/source/door")
    foreign_topics = ("from/b/complete", "to/a/delegate", "all/command", "from/ab/status", "from")
    for foreign in (*foreign_topics, "from/a/delegate", "from/a/complete/x", "from/a/else"):
        assert not node.may_write(f"{BASE}/{foreign}")
    kinds = [f"{BASE}/to/a/{kind}" for kind in sorted(KINDS[Way.TO])]
    assert node.readable(f"{BASE}/to/a/+") == kinds
    assert node.readable("#") == [*kinds, f"{BASE}/all/command", f"{BASE}/orchestrator/+/status"]
    assert node.readable(f"{BASE}/+/a/status") == [f"{BASE}/orchestrator/a/status"]
    foreign_filters = (f"{BASE}/to/b/#", f"{BASE}/from/#", "$SYS/#", "imlmesh/1/other/all/#")
    for foreign in (*foreign_filters, f"$share/x/{BASE}/to/a/+"):
        assert not node.may_ask(foreign)
        assert node.readable(foreign) == []


def test_a_quarantined_node_keeps_what_gives_it_no_work():
    node = identity("imlmesh://farm/node/a").under(Access(1, quarantined=frozenset({"a"})))
    said = {kind for kind in KINDS[Way.FROM] if node.may_write(f"{BASE}/from/a/{kind}")}
    assert said == {"status", "heartbeat", "request", "response", "complete"}
    assert not node.may_write(f"{BASE}/from/a/event/log")
    heard = [f"{BASE}/to/a/{kind}" for kind in ("ack", "command", "request", "response")]
    assert node.readable("#") == [*heard, f"{BASE}/all/command"]
    # taken while it counts for nothing, and there when the node is released
    assert node.may_ask(f"{BASE}/to/a/delegate")
    assert node.under(ALL_IN) == identity("imlmesh://farm/node/a")


def test_a_revoked_node_has_nothing_and_its_namesake_in_control_has_all():
    access = Access(1, revoked=frozenset({"a"}))
    node = identity("imlmesh://farm/node/a").under(access)
    assert (node.writes, node.reads) == ((), ())
    control = identity("imlmesh://farm/control/a", "control")
    assert control.under(access) == control


@pytest.mark.parametrize("role", ["node", "control"])
def test_a_certificate_of_the_other_role_names_no_client(role):
    other = {"node": "control", "control": "node"}[role]
    with pytest.raises(LinkError) as caught:
        identity(f"imlmesh://farm/{other}/a", role)
    assert caught.value.code == "link.refused"


def test_control_has_its_mesh():
    control = identity("imlmesh://farm/control/orchestra", "control")
    assert control.is_control
    assert control.may_write(f"{BASE}/to/a/delegate")
    assert not control.may_write("imlmesh/1/other/to/a/delegate")
    assert control.readable("#") == [f"{BASE}/#"]


@pytest.mark.parametrize(
    "uri",
    [
        "imlmesh://other/node/a",
        "imlmesh://farm/node/",
        "imlmesh://farm/node/a/b",
        "imlmesh://farm/node/+",
        "imlmesh://farm/admin/a",
        "imlmesh://farm/node",
        "https://farm/node/a",
    ],
)
def test_another_certificate_names_no_client(uri):
    with pytest.raises(LinkError) as caught:
        identity(uri)
    assert caught.value.code == "link.refused"


@pytest.mark.parametrize("names", [(), (("DNS", "a"),), (("URI", "x"), ("URI", "y"))])
def test_a_certificate_names_exactly_one(names):
    with pytest.raises(LinkError) as caught:
        Identity.of_certificate("farm", {"subjectAltName": names}, "node")
    assert caught.value.code == "link.refused"
