"""Keys and CAs roll over in the folder of a CA, whatever ends in between."""

import itertools
import os
import shutil
import signal
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from imlmesh_broker.revocation import checked_lists
from imlmesh_orchestrator.ca import Authority, rotation
from imlmesh_orchestrator.ca.asking_broker import AskedBroker
from imlmesh_orchestrator.ca.rotation import (
    CAS,
    WHATS,
    finish,
    root_signer,
    rotate,
    under_way,
)
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, TrustError
from imlmesh_protocol.wire.documents import Roster, Trust
from imlmesh_runtime.files import read_file, write_private
from imlmesh_runtime.pairs import certificates_of, is_issued_by, key_file, own_certificate
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import (
    ControlKeys,
    HeldTrust,
    load_public,
    load_signer,
    new_signing_key,
    new_tls_key,
)

NOBODY = AskedBroker({})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    Authority.create(made, "mesh", "orchestra")
    return made


def keys_of(home: Home, what: str) -> tuple[bytes, ...]:
    trust = HeldTrust(home.ca, "mesh").trust
    found: tuple[bytes, ...] = getattr(trust, f"{CAS[what]}_cas" if what in CAS else what)
    return found


def certify(authority: Authority) -> bytes:
    _, request = new_tls_key("pi")
    return certificates_of(authority.certify(request, "pi").pem)[0]


def check(home: Home) -> None:
    """What must hold at any moment: whoever opens this folder can work with it."""
    authority = Authority.open(home)
    trust = HeldTrust(home.ca, "mesh").trust
    keys = ControlKeys.load(home.ca, "mesh", strict=True)
    keys.context()
    for what, signer in (("plan", keys.signer), ("roster", keys.roster), ("ledger", keys.ledger)):
        assert signer.raw_public in getattr(trust, what)
    node_cas = certificates_of(read_file(home.ca / "node-ca.pem"))
    made = certify(authority)
    assert any(is_issued_by(made, ca) for ca in node_cas if ca in trust.node_cas)
    for pem in (home.ca / "control.pem", home.ca / "join.pem", home.broker / "broker.pem"):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pem, key_file(pem))
        assert any(is_issued_by(own_certificate(pem), ca) for ca in trust.control_cas)
    for role in ("node", "control"):
        # a broker refuses every client of a CA without a list
        cas = certificates_of(read_file(home.ca / f"{role}-ca.pem"))
        lists = [
            x509.load_pem_x509_crl(part + b"-----END X509 CRL-----\n")
            for part in read_file(home.ca / f"{role}-ca.crl").split(b"-----END X509 CRL-----\n")[
                :-1
            ]
        ]
        for der in cas:
            public = x509.load_der_x509_certificate(der).public_key()
            assert any(each.is_signature_valid(public) for each in lists)


@pytest.mark.parametrize("what", WHATS)
def test_the_new_one_stands_beside_the_old_one_and_then_alone(home, what):
    authority = Authority.open(home)
    root = root_signer(authority, None)
    (old,) = keys_of(home, what)
    assert rotate(authority, what, root, NOBODY).version == 2
    new, also = keys_of(home, what)
    assert also == old != new
    assert under_way(authority) == [what]
    check(home)
    assert rotate(authority, what, root, NOBODY).version == 2, "under way already"
    assert keys_of(home, what) == (new, old)
    trust = finish(authority, what, root, home.broker, NOBODY)
    # seals of an old ledger key are believed for ever
    assert keys_of(home, what) == ((new, old) if what == "ledger" else (new,))
    assert under_way(authority) == []
    check(home)
    assert finish(authority, what, root, home.broker, NOBODY) == trust, "nothing is left to finish"
    assert HeldTrust(home.ca, "mesh").trust == trust


@pytest.mark.parametrize("what", ["plan", "roster", "ledger"])
def test_nobody_signs_with_a_key_before_it_is_finished(home, what):
    authority = Authority.open(home)
    root = root_signer(authority, None)
    (old,) = keys_of(home, what)
    rotate(authority, what, root, NOBODY)
    assert load_signer(home.ca / f"{what}.key").raw_public == old
    finish(authority, what, root, home.broker, NOBODY)
    now = load_signer(home.ca / f"{what}.key").raw_public
    assert now == keys_of(home, what)[0] != old
    assert bytes(load_public(home.ca / f"{what}.pub").key) == now


def test_a_roster_outlives_the_key_that_signed_it(home):
    authority = Authority.open(home)
    root = root_signer(authority, None)
    held = HeldTrust(home.ca, "mesh")
    old = load_signer(home.ca / "roster.key")
    nodes = {"pi": ("active", "readonly")}
    held.take(Roster("mesh", 7, 1, ("orchestra",), nodes).sealed(old.sign, old.key_id))
    rotate(authority, "roster", root, NOBODY)
    assert HeldTrust(home.ca, "mesh").roster == held.roster
    finish(authority, "roster", root, home.broker, NOBODY)
    kept = HeldTrust(home.ca, "mesh").roster
    assert kept is not None
    assert (kept.version, dict(kept.nodes)) == (8, nodes)
    # whoever held the older one takes this, and none that the old key signs
    assert held.reload()
    assert held.roster == kept
    late = Roster("mesh", 9, 1, ("orchestra",), {}).sealed(old.sign, old.key_id)
    with pytest.raises(TrustError) as caught:
        held.take(late)
    assert caught.value.code == "signature.unknown_key"


def test_certificates_of_nodes_come_from_the_new_ca_as_soon_as_nodes_know_it(home):
    authority = Authority.open(home)
    before = certify(authority)
    rotate(authority, "node-ca", root_signer(authority, None), NOBODY)
    new, old = keys_of(home, "node-ca")
    assert is_issued_by(before, old)
    assert is_issued_by(certify(authority), new)
    finish(authority, "node-ca", root_signer(authority, None), home.broker, NOBODY)
    assert certificates_of(read_file(home.ca / "node-ca.pem")) == (new,)
    assert is_issued_by(certify(Authority.open(home)), new)


def test_servers_show_a_certificate_of_the_new_ca_when_all_know_it(home):
    authority = Authority.open(home)
    pems = [home.ca / "control.pem", home.ca / "join.pem", home.broker / "broker.pem"]
    rotate(authority, "control-ca", root_signer(authority, None), NOBODY)
    new, old = keys_of(home, "control-ca")
    Authority.open(home)
    assert all(is_issued_by(own_certificate(pem), old) for pem in pems)
    finish(authority, "control-ca", root_signer(authority, None), home.broker, NOBODY)
    assert all(is_issued_by(own_certificate(pem), new) for pem in pems)


def test_who_was_removed_stays_removed_while_a_ca_rolls_over(home):
    authority = Authority.open(home)
    authority.revoke([4711])
    rotate(authority, "node-ca", root_signer(authority, None), NOBODY)
    first, second = read_file(home.ca / "node-ca.crl").split(b"-----END X509 CRL-----\n")[:-1]
    end = b"-----END X509 CRL-----\n"
    old = x509.load_pem_x509_crl(second + end)
    assert old.get_revoked_certificate_by_serial_number(4711) is not None
    assert not list(x509.load_pem_x509_crl(first + end))
    authority.revoke([4711, 4712])
    lists = read_file(home.ca / "node-ca.crl").split(end)[:-1]
    assert len(lists) == 2
    for each in lists:
        found = x509.load_pem_x509_crl(each + end)
        assert found.get_revoked_certificate_by_serial_number(4712) is not None


def test_nothing_is_finished_that_nodes_were_not_told_of(home, monkeypatch):
    authority = Authority.open(home)
    root = root_signer(authority, None)
    (home.ca / "plan.next.key").write_bytes(new_signing_key()[0])
    (home.ca / "plan.next.key").chmod(0o600)
    with pytest.raises(InputError) as caught:
        finish(authority, "plan", root, home.broker, NOBODY)
    assert caught.value.code == "trust.rotating"
    check(home)
    with pytest.raises(InputError) as caught:
        rotate(authority, "everything", root, NOBODY)
    assert caught.value.code == "usage"


def test_trust_has_no_room_without_end(home, monkeypatch):
    authority = Authority.open(home)
    root = root_signer(authority, None)
    for _ in range(limits.TRUST_KEYS - 1):
        rotate(authority, "ledger", root, NOBODY)
        finish(authority, "ledger", root, home.broker, NOBODY)
    with pytest.raises(InputError) as caught:
        rotate(authority, "ledger", root, NOBODY)
    assert caught.value.code == "trust.rotating"
    check(home)


def test_a_root_key_that_is_away_is_asked_for_and_another_is_refused(home, tmp_path):
    authority = Authority.open(home)
    away = tmp_path / "stick.key"
    (home.ca / "root.key").rename(away)
    with pytest.raises(TrustError) as caught:
        root_signer(authority, None)
    assert caught.value.code == "trust.root_away"
    assert "--root" in caught.value.hint
    assert rotate(authority, "plan", root_signer(authority, away), NOBODY).version == 2
    other = tmp_path / "other.key"
    other.write_bytes(new_signing_key()[0])
    other.chmod(0o600)
    with pytest.raises(TrustError) as caught:
        root_signer(authority, other)
    assert caught.value.code == "trust.file"


def killed_at(number: int, deed: Callable[[], object]) -> bool:
    """Do it in a process that is killed before its write number `number`; whether there was one."""
    child = os.fork()
    if child == 0:
        left = iter(range(number, 0, -1))

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def write(*given: object, **named: object) -> object:
                if next(left, 0) == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*given, **named)

            return write

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", counted(Path.replace))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            try:
                deed()
            except BaseException:
                os._exit(1)
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize("deed", ["rotate", "finish"])
@pytest.mark.parametrize("what", WHATS)
def test_who_is_killed_at_any_write_leaves_what_the_same_command_completes(
    tmp_path, home, what, deed
):
    (old,) = keys_of(home, what)
    if deed == "finish":
        authority = Authority.open(home)
        rotate(authority, what, root_signer(authority, None), NOBODY)

    def do(place: Home) -> Trust:
        authority = Authority.open(place)
        root = root_signer(authority, None)
        if deed == "rotate":
            return rotate(authority, what, root, NOBODY)
        return finish(authority, what, root, place.broker, NOBODY)

    for number in itertools.count(1):
        copied = Home(tmp_path / str(number))
        shutil.copytree(home.root, copied.root)
        was_killed = killed_at(number, lambda place=copied: do(place))
        check(copied)
        done = do(copied)
        check(copied)
        assert done.version == 2 + (deed == "finish" and what != "ledger")
        found = keys_of(copied, what)
        assert found[0] != old
        assert found[1:] == ((old,) if deed == "rotate" or what == "ledger" else ())
        assert under_way(Authority.open(copied)) == ([what] if deed == "rotate" else [])
        if not was_killed:
            break
    assert number > 2


def test_who_is_removed_while_a_ca_rolls_over_takes_no_list_away(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.open(home)
    removing = threading.Thread(target=authority.revoke, args=([7],))

    def write(path: Path, data: bytes) -> None:
        if path.name == "node-ca.pem":
            removing.start()
            removing.join(0.5)  # it waits for us, or would be done by then
        write_private(path, data)

    monkeypatch.setattr(rotation, "write_private", write)
    rotate(authority, "node-ca", root_signer(authority, None), NOBODY)
    removing.join(20)
    cas, lists = (read_file(home.ca / f"node-ca.{kind}") for kind in ("pem", "crl"))
    assert checked_lists(cas, lists)
    for issuer in authority.issuers("node"):
        assert issuer.revoked_by(lists)[0] == {7}
