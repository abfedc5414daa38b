"""Addresses of brokers as people write them."""

import pytest

from imlmesh_protocol.errors import InputError
from imlmesh_runtime.link.address import JOIN_PORT, address_of, is_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.168.1.20:8883", ("192.168.1.20", 8883)),
        ("desk-1.local:1", ("desk-1.local", 1)),
        ("[2001:db8::9]:65535", ("2001:db8::9", 65_535)),
        ("[::ffff:10.0.0.1]:8883", ("::ffff:10.0.0.1", 8883)),
    ],
)
def test_what_is_one(text: str, address: tuple[str, int]) -> None:
    assert is_address(text)
    assert address_of(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "desk", "desk:", ":8883", "desk:0", "desk:65536", "desk:99999", "desk:-1"),
        *("::1:8883", "[::1]", "[desk]:8883", "a b:1", "mqtt://desk:1", "desk:8883 --home /"),
    ],
)
def test_what_is_none(text: str) -> None:
    assert not is_address(text)
    with pytest.raises(InputError) as caught:
        address_of(text)
    assert caught.value.code == "config.invalid"


def test_a_join_endpoint_is_called_so_and_has_its_own_port_in_the_example() -> None:
    with pytest.raises(InputError, match="--at 'desk' is not") as caught:
        address_of("desk", "--at", JOIN_PORT)
    assert f"192.168.1.20:{JOIN_PORT}" in str(caught.value.hint)
