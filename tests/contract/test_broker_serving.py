"""Copies that a broker serves by, and the lists of the authority that they are copies of."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath

import pytest
from cryptography import x509

from imlmesh_broker.rights import ALL_IN
from imlmesh_broker.serving import Served, Source
from imlmesh_orchestrator.ca import Authority, certificates
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.paths import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    Authority.create(home, "home", "o")
    return home


@pytest.fixture
def served(home: Home, tmp_path: Path) -> Served:
    (tmp_path / "served").mkdir()
    source = Source("home", "o", home.ca, home.broker)
    return Served(source, tmp_path / "served")


def revoked(path: Path) -> set[int]:
    return {row.serial_number for row in x509.load_pem_x509_crl(path.read_bytes())}


def test_it_looks_again_only_after_a_change(home, served):
    assert served.is_changed()
    assert served.take()
    assert not served.is_changed()
    assert not served.take()
    Authority.open(home).revoke([7])
    assert served.is_changed()
    assert served.take()
    assert revoked(served.to / "node-ca.crl") == {7}
    assert {path.stat().st_mode & 0o777 for path in served.to.iterdir()} == {0o600}


def test_a_look_makes_no_path_anew(served, monkeypatch):
    served.take()
    with monkeypatch.context() as patched:
        # it comes twenty times a second, and making seven paths costs eight times as much as asking
        patched.delattr(PurePath, "__truediv__")
        assert not served.is_changed()


def test_the_first_start_of_a_mesh_shuts_nobody_out(served):
    served.take()
    assert served.access == ALL_IN
    assert served.faults == set()


def test_what_is_broken_leaves_the_last_good_one_and_is_told_once(home, served, caplog):
    Authority.open(home).revoke([7])
    served.take()
    list_ = home.ca / "node-ca.crl"
    good = list_.read_bytes()
    for text in (good[:99], b"", good[:98]):
        list_.write_bytes(text)
        assert not served.take()
    assert revoked(served.to / "node-ca.crl") == {7}
    assert served.faults == {"node"}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    list_.write_bytes(good)
    served.take()
    assert served.faults == set()


def test_without_a_good_copy_nothing_is_served(home, served, monkeypatch):
    (home.ca / "control-ca.crl").write_bytes(b"torn")
    with pytest.raises(TrustError) as caught:
        served.take()
    assert caught.value.code == "broker.lists"
    # a copy whose time is over is none
    Authority.open(home).revoke([])
    served.take()
    (home.ca / "control-ca.crl").write_bytes(b"torn")
    monkeypatch.setattr("imlmesh_broker.revocation.datetime", Later)
    with pytest.raises(TrustError):
        served.take()


class Later(datetime):
    @classmethod
    def now(cls, tz=None):  # type: ignore[override]
        return datetime.now(UTC) + timedelta(days=40)


def test_a_probe_adds_to_the_list_and_the_orchestrator_has_the_last_word(home):
    authority = Authority.open(home)
    authority.revoke([1, 2])
    authority.revoke_too([3])
    assert revoked(home.ca / "node-ca.crl") == {1, 2, 3}
    authority.revoke([1])
    assert revoked(home.ca / "node-ca.crl") == {1}
    (home.ca / "node-ca.crl").write_bytes(b"torn")
    with pytest.raises(TrustError):
        authority.revoke_too([3])
    assert (home.ca / "node-ca.crl").read_bytes() == b"torn"


def test_who_was_off_for_a_month_finds_lists_that_are_in_force(home, served, monkeypatch):
    authority = Authority.open(home)
    monkeypatch.setattr(certificates, "datetime", Earlier)
    authority.revoke([5])
    monkeypatch.undo()
    with pytest.raises(TrustError):
        served.take()
    authority.renew_lists(served.to)
    served.take()
    assert revoked(served.to / "node-ca.crl") == {5}
    # young ones stay as they are
    before = (home.ca / "control-ca.crl").read_bytes()
    authority.renew_lists(served.to)
    assert (home.ca / "control-ca.crl").read_bytes() == before


@pytest.mark.parametrize("how", ["torn", "empty", "missing", "of another mesh"])
def test_a_broken_list_becomes_the_one_that_the_broker_served_by(home, served, tmp_path, how):
    authority, path = Authority.open(home), home.ca / "node-ca.crl"
    other = Home(tmp_path / "other")
    Authority.create(other, "home", "o")
    authority.revoke([5, 6])
    served.take()
    contents = {"torn": path.read_bytes()[:200], "empty": b"", "missing": None}
    content = contents.get(how, (other.ca / path.name).read_bytes())

    def broken(path: Path) -> None:
        path.unlink() if content is None else path.write_bytes(content)

    broken(path)
    authority.renew_lists(served.to)
    assert revoked(path) == {5, 6}
    authority.revoke_too([7])  # as each start does for its probe
    # without a good copy nobody knows whom to shut out, and it stays for the broker to refuse
    broken(path)
    broken(served.to / path.name)
    authority.renew_lists(served.to)
    assert (path.read_bytes() if path.exists() else None) == content
    with pytest.raises(TrustError):
        served.take()


class Earlier(datetime):
    @classmethod
    def now(cls, tz=None):  # type: ignore[override]
        return datetime.now(UTC) - timedelta(days=40)
