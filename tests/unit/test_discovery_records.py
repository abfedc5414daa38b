"""What services of the network are taken for: what we would have made ourselves, nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from imlmesh_protocol import limits
from imlmesh_protocol.ids import NAME
from imlmesh_runtime.discovery import MESHES, NODES, Service, service_of
from imlmesh_runtime.multicast import Network, is_loopback, nearest_first

MESH = {"mesh": "home", "root": "1a2b3c4d"}
AT = ["10.0.0.1"]
texts = st.none() | st.text(max_size=80) | st.sampled_from(["home", "1a2b3c4d", "pi-bed"])


def test_a_mesh_and_a_node_that_waits_are_read() -> None:
    mesh = service_of(MESHES, MESH, 8883, AT)
    assert mesh == Service("home", "1a2b3c4d", port=8883, addresses=("10.0.0.1",))
    assert mesh is not None
    assert mesh.kind == MESHES
    door = service_of(MESHES, {**MESH, "join": "8766"}, 8883, AT)
    assert door == Service("home", "1a2b3c4d", port=8883, addresses=("10.0.0.1",), join=8766)
    node = service_of(NODES, {**MESH, "node": "pi-bed"}, 9, AT)
    assert node == Service("home", "1a2b3c4d", "pi-bed", 9, ("10.0.0.1",))
    assert node is not None
    assert node.kind == NODES


def test_what_is_malformed_was_never_heard() -> None:
    for wrong in (
        service_of(MESHES, {"mesh": "Home!", "root": "1a2b3c4d"}, 8883, AT),
        service_of(MESHES, {"mesh": "home", "root": "1a2b3c4d5"}, 8883, AT),
        service_of(MESHES, {"mesh": "home\n", "root": "1a2b3c4d"}, 8883, AT),
        service_of(MESHES, {"mesh": None, "root": "1a2b3c4d"}, 8883, AT),
        service_of(MESHES, {}, 8883, AT),
        service_of(MESHES, MESH, 8883, []),
        service_of(MESHES, MESH, 0, AT),
        service_of(MESHES, MESH, None, AT),
        service_of(MESHES, {**MESH, "node": "pi"}, 8883, AT),
        *(service_of(MESHES, {**MESH, "join": x}, 8883, AT) for x in ("x", "99999", "-1", "1 ")),
        service_of(NODES, MESH, 9, AT),
        service_of(NODES, {**MESH, "node": "../etc"}, 9, AT),
    ):
        assert wrong is None


@given(
    st.sampled_from([MESHES, NODES]),
    st.dictionaries(st.sampled_from(["mesh", "root", "node", "join"]), texts),
    st.none() | st.integers(0, 65_535),
    st.lists(st.just("10.0.0.1"), max_size=40),
)
def test_whatever_is_read_is_named_and_bounded(
    kind: str, properties: dict[str, str | None], port: int | None, addresses: list[str]
) -> None:
    service = service_of(kind, properties, port, addresses)
    if service is not None:
        assert service.kind == kind
        assert all(NAME.fullmatch(name) for name in (service.mesh, service.node) if name)
        assert 0 <= service.join < 65_536
        assert 1 <= len(service.addresses) <= limits.DISCOVERED_ADDRESSES


def test_addresses_of_our_own_networks_are_tried_first() -> None:
    here = (
        Network("192.168.1.7", "255.255.255.0", True),
        Network("10.8.0.2", "255.255.255.255", False),
    )
    heard = ["172.17.0.1", "192.168.1.20", "10.8.0.1"]
    assert nearest_first(heard, here) == ["192.168.1.20", "172.17.0.1", "10.8.0.1"]


def test_what_means_this_computer() -> None:
    assert [is_loopback(name) for name in ("127.0.0.1", "127.3.2.1", "::1", "localhost")] == [
        True
    ] * 4
    assert [is_loopback(name) for name in ("10.0.0.1", "desk.lan", "fe80::1")] == [False] * 3
