"""Certificates of the orchestrator's own machine that a disk spoilt: they are made anew; a CA is named."""

from pathlib import Path

import pytest

from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.ca.authority import is_good
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "h")
    Authority.create(made, "home", "orchestrator")
    Authority.open(made)
    return made


@pytest.mark.parametrize("content", [b"", b"\xd9rubbish" * 30], ids=["empty", "other bytes"])
@pytest.mark.parametrize("name", ["ca/control.pem", "ca/join.pem", "broker/broker.pem"])
def test_what_a_ca_can_make_anew_is_made_anew(home: Home, name: str, content: bytes) -> None:
    path = home.root / name
    path.write_bytes(content)
    authority = Authority.open(home)
    assert is_good(path, authority.issuer("control").der)
    ControlKeys.load(home.ca, "home").context()


@pytest.mark.parametrize("name", ["control-ca.pem", "node-ca.pem", "control-ca.key", "node-ca.key"])
def test_a_spoilt_ca_is_named(home: Home, name: str) -> None:
    (home.ca / name).write_bytes(b"")
    with pytest.raises(TrustError) as caught:
        Authority.open(home)
    assert caught.value.code == "trust.file"
    assert str(home.ca / name) in caught.value.message
