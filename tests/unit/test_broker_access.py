"""Who a certificate names, and how filters are cut down to what that client may read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_broker.embedded.access import Identity, narrowed
from imlmesh_broker.embedded.routes import Tree
from imlmesh_protocol.errors import LinkError

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


def identity(uri: str) -> Identity:
    names = (("DNS", "x"), ("URI", uri))
    return Identity.of_certificate("farm", {"subjectAltName": names})


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
    for foreign in ("from/b/complete", "to/a/delegate", "all/command", "from/ab/x", "from"):
        assert not node.may_write(f"{BASE}/{foreign}")
    assert node.readable(f"{BASE}/to/a/+") == [f"{BASE}/to/a/+"]
    assert node.readable("#") == [
        f"{BASE}/to/a/#",
        f"{BASE}/all/#",
        f"{BASE}/orchestrator/+/status",
    ]
    assert node.readable(f"{BASE}/+/a/status") == [
        f"{BASE}/to/a/status",
        f"{BASE}/all/a/status",
        f"{BASE}/orchestrator/a/status",
    ]
    for foreign in (f"{BASE}/to/b/#", f"{BASE}/from/#", "$SYS/#", "imlmesh/1/other/all/#"):
        assert node.readable(foreign) == []


def test_control_has_its_mesh():
    control = identity("imlmesh://farm/control/orchestra")
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
        Identity.of_certificate("farm", {"subjectAltName": names})
    assert caught.value.code == "link.refused"
