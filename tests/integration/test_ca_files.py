"""What the authority writes: whole folders, private files, certificates that strict TLS accepts."""

import json
import logging
import os
import ssl
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.ca.certificates import Issuer, new_root
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, TrustError
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import (
    ControlKeys,
    Enrolled,
    NodeKeys,
    client_context,
    load_public,
    load_signer,
    new_signing_key,
    new_tls_key,
)

BROKERS = ("127.0.0.1:8883", "pi.local:8883", "[::1]:8883")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def authority(home: Home) -> Authority:
    return Authority.create(home, "home", "orchestra")


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def handshake(home: Home, client: ssl.SSLContext) -> tuple[str, str]:
    """(who the client was, TLS version) of a handshake in memory with the broker's certificate."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(home.broker / "broker.pem", home.broker / "broker.key")
    server.load_verify_locations(home.ca / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname="192.0.2.1")
    far = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [near, far]
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    certificate = far.getpeercert()
    assert certificate is not None
    return certificate["subjectAltName"][0][1], far.version() or ""


def test_a_new_authority_has_its_files_for_its_owner_alone(home, authority):
    assert files_of(home.ca) == {
        *("ca.key", "ca.pem", "plan.key", "plan.pub", "control.key", "control.pem", "mesh.toml"),
    }
    assert files_of(home.broker) == {"broker.key", "broker.pem"}
    for path in home.root.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    again = Authority.open(home)
    assert (again.mesh, again.orchestrator) == ("home", "orchestra")


def test_a_second_authority_does_not_disown_the_first(home, authority):
    before = (home.ca / "ca.pem").read_bytes()
    with pytest.raises(InputError) as caught:
        Authority.create(home, "home", "orchestra")
    assert caught.value.code == "folder.exists"
    assert (home.ca / "ca.pem").read_bytes() == before


def test_a_home_without_a_mesh_is_said_so(home):
    with pytest.raises(InputError) as caught:
        Authority.open(home)
    assert caught.value.code == "home.missing"


@pytest.mark.parametrize("mesh", ["home", "my_mesh", "a-", "x" * 63])
def test_strict_tls_accepts_every_role_under_the_name_of_the_mesh(tmp_path, mesh):
    home = Home(tmp_path / "home")
    authority = Authority.create(home, mesh, "orchestra")
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    node, control = NodeKeys.load(home.node("pi-1"), mesh), ControlKeys.load(home.ca, mesh)
    assert handshake(home, node.context()) == (f"imlmesh://{mesh}/node/pi-1", "TLSv1.3")
    assert handshake(home, control.context()) == (f"imlmesh://{mesh}/control/orchestra", "TLSv1.3")


def test_a_broker_of_another_mesh_of_the_same_ca_is_not_ours(home, authority):
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    keys = home.node("pi-1") / "keys"
    context = client_context(
        keys / "ca.pem", keys / "node.pem", keys / "node.key", "broker.other.imlmesh"
    )
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(home, context)


def test_certificates_say_one_role_each(home, authority):
    root, control, broker = (
        x509.load_pem_x509_certificate(path.read_bytes())
        for path in (home.ca / "ca.pem", home.ca / "control.pem", home.broker / "broker.pem")
    )
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    for leaf, purpose in (
        (control, ExtendedKeyUsageOID.CLIENT_AUTH),
        (broker, ExtendedKeyUsageOID.SERVER_AUTH),
    ):
        leaf.verify_directly_issued_by(root)
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.digital_signature
        assert not usage.value.key_cert_sign
        extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(extended) == [purpose]
        key = leaf.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
    assert control.subject.rfc4514_string() == "CN=orchestra"


def test_a_node_folder_holds_what_the_node_needs_and_no_more(home, authority, tmp_path):
    out = tmp_path / "elsewhere" / "pi-1"
    node = authority.provision(
        "pi-1", out, brokers=BROKERS, timing="lan", policy_text='profile = "local_worker"\n'
    )
    assert files_of(out) == {
        *("mesh.toml", "policy.toml", "keys/ca.pem", "keys/node.pem", "keys/node.key"),
        *("keys/identity.key", "keys/plan.pub"),
    }
    assert (out / "files").is_dir()
    assert tomllib.loads((out / "mesh.toml").read_text()) == {
        "mesh": "home",
        "id": "pi-1",
        "orchestrator": "orchestra",
        "brokers": list(BROKERS),
        "timing": "lan",
    }
    for path in [out, *out.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
    keys, control = NodeKeys.load(out, "home"), ControlKeys.load(home.ca, "home")
    assert keys.plan.key_id == control.signer.key_id
    assert keys.find_key(control.signer.key_id, "pi-1") is keys.plan.key
    assert keys.find_key(keys.signer.key_id, "pi-1") is None
    assert node.identity.key_id == keys.signer.key_id
    assert list(out.parent.iterdir()) == [out]


def test_without_a_policy_the_node_has_none(home, authority):
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    assert not (home.node("pi-1") / "policy.toml").exists()


@pytest.mark.parametrize("name", ["pi-1", "orchestra"])
def test_an_id_is_never_used_twice(home, authority, tmp_path, name):
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    register = (home.ca / "enrolled" / "pi-1.json").read_bytes()
    out = tmp_path / "again"
    with pytest.raises(InputError) as caught:
        authority.provision(name, out, brokers=BROKERS)
    assert caught.value.code == "node.exists"
    assert not out.exists()
    assert (home.ca / "enrolled" / "pi-1.json").read_bytes() == register


def test_a_folder_that_holds_something_is_left_alone(home, authority, tmp_path):
    out = tmp_path / "full"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(InputError) as caught:
        authority.provision("pi-1", out, brokers=BROKERS)
    assert caught.value.code == "folder.exists"
    assert files_of(out) == {"precious"}
    assert not list((home.ca / "enrolled").iterdir())


def test_a_failure_in_the_middle_leaves_nothing(home, authority, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imlmesh_orchestrator.ca.authority.write_mesh", full)
    with pytest.raises(OSError, match="No space"):
        authority.provision("pi-1", tmp_path / "nodes" / "pi-1", brokers=BROKERS)
    assert list((tmp_path / "nodes").iterdir()) == []
    assert not list((home.ca / "enrolled").iterdir())


def test_all_that_is_wrong_with_an_order_is_said_at_once(home, authority, tmp_path):
    with pytest.raises(InputErrors) as caught:
        authority.provision(
            "Pi/../1",
            tmp_path / "bad",
            brokers=("nohost", "h:0", "h:70000"),
            timing="fast",
            profile="root",
            policy_text="= no toml",
        )
    codes = [error.code for error in caught.value.errors]
    assert codes == ["name.invalid", *["config.invalid"] * 5, "policy.invalid"]
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("name", ["", "Pi", "a/b", "-a", "a b", "é", "a" * 64, "..", "a\n", "+"])
def test_bad_names_are_refused(authority, tmp_path, name):
    with pytest.raises(InputErrors) as caught:
        authority.provision(name, tmp_path / "bad", brokers=BROKERS)
    assert caught.value.code == "name.invalid"


def test_a_node_enrolled_later_is_known_at_once(home, authority):
    enrolled = ControlKeys.load(home.ca, "home").enrolled
    assert enrolled.node("pi-1") is None
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    authority.provision("pi-2", home.node("pi-2"), brokers=BROKERS)
    first, second = (NodeKeys.load(home.node(name), "home").signer for name in ("pi-1", "pi-2"))
    found = enrolled.find(first.key_id, "pi-1")
    assert found is not None
    assert bytes(found) == first.raw_public
    assert enrolled.find(second.key_id, "pi-1") is None
    assert enrolled.find(first.key_id, "pi-3") is None
    assert [node.id for node in enrolled.nodes()] == ["pi-1", "pi-2"]


def test_signing_keys_are_files_that_other_programs_read_and_write(tmp_path):
    private_pem, public_pem = new_signing_key()
    theirs = serialization.load_pem_private_key(private_pem, password=None)
    assert isinstance(theirs, Ed25519PrivateKey)
    assert theirs.public_key() == serialization.load_pem_public_key(public_pem)
    (tmp_path / "own.key").write_bytes(private_pem)
    (tmp_path / "own.key").chmod(0o600)
    (tmp_path / "own.pub").write_bytes(public_pem)
    signer, public = load_signer(tmp_path / "own.key"), load_public(tmp_path / "own.pub")
    assert signer.raw_public == theirs.public_key().public_bytes_raw() == bytes(public.key)
    assert signer.sign(b"data") == theirs.sign(b"data")


@pytest.mark.parametrize("curve", ["ed448", "p256", "encrypted", "cut"])
def test_a_key_of_another_kind_is_refused(tmp_path, curve):
    form = serialization.NoEncryption()
    if curve == "encrypted":
        form = serialization.BestAvailableEncryption(b"word")
    private = {
        "ed448": Ed448PrivateKey.generate,
        "p256": partial(ec.generate_private_key, ec.SECP256R1()),
    }
    made = private.get(curve, Ed25519PrivateKey.generate)()
    pem = made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form)
    path = tmp_path / "other.key"
    path.write_bytes(pem[:-40] if curve == "cut" else pem)
    path.chmod(0o600)
    with pytest.raises(TrustError) as caught:
        load_signer(path)
    assert caught.value.code == "trust.file"


def test_a_register_that_did_not_change_is_not_read_again(home, authority, monkeypatch):
    enrolled = Enrolled(home.ca / "enrolled")
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    monkeypatch.setattr("imlmesh_runtime.trust._MTIME_TICK_NS", 0)
    assert enrolled.node("stranger") is None
    monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("read again"))
    assert enrolled.node("stranger") is None


def test_a_broken_enrolment_is_logged_and_nobody_is_believed(home, authority, caplog):
    folder = home.ca / "enrolled"
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    record = json.loads((folder / "pi-1.json").read_text())
    (folder / "thief.json").write_text(json.dumps(record))
    (folder / "weak.json").write_text(
        json.dumps(record | {"id": "weak", "identity": "AQ" + "A" * 41 + "="})
    )
    (folder / "broken.json").write_text("{")
    with caplog.at_level(logging.ERROR):
        assert [node.id for node in Enrolled(folder).nodes()] == ["pi-1"]
    assert len(caplog.records) == 3


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("keys/identity.key", b"not a key"),
        ("keys/plan.pub", b"not a key"),
        ("keys/identity.key", None),
        ("keys/plan.pub", None),
        ("keys/node.key", None),
        ("keys/plan.pub", bytes(limits.KEY_FILE_BYTES + 1)),
    ],
)
def test_a_damaged_key_file_is_said_so(home, authority, path, content):
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    place = home.node("pi-1") / path
    place.unlink()
    if content is not None:
        place.write_bytes(content)
        place.chmod(0o600)
    with pytest.raises(TrustError) as caught:
        NodeKeys.load(home.node("pi-1"), "home")
    assert caught.value.code == "trust.file"


def test_a_damaged_certificate_is_said_when_it_is_used(home, authority):
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    (home.node("pi-1") / "keys" / "node.pem").write_text("no")
    with pytest.raises(TrustError) as caught:
        NodeKeys.load(home.node("pi-1"), "home").context()
    assert caught.value.code == "trust.file"


@pytest.mark.parametrize("name", ["identity.key", "node.key"])
def test_a_key_that_others_could_read_warns_or_refuses(home, authority, caplog, name):
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    (home.node("pi-1") / "keys" / name).chmod(0o640)
    with caplog.at_level(logging.WARNING):
        NodeKeys.load(home.node("pi-1"), "home")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(TrustError) as caught:
        NodeKeys.load(home.node("pi-1"), "home", strict=True)
    assert caught.value.code == "trust.mode"
    assert caught.value.hint == f"chmod 600 {home.node('pi-1') / 'keys' / name}"


def test_a_file_of_somebody_else_says_whose_it_should_be(home, authority, as_root):
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    keys = home.node("pi-1") / "keys"
    for path in (keys, keys / "node.key"):
        os.chown(path, 65_534, -1)
        with pytest.raises(TrustError) as caught:
            NodeKeys.load(home.node("pi-1"), "home", strict=True)
        assert caught.value.hint == f"sudo chown 0 {path}"
        os.chown(path, 0, -1)


def test_a_request_without_proof_gets_no_certificate(authority):
    _, request = new_tls_key("pi-1")
    assert authority.issuer.issue_client(request, "pi-1", f"imlmesh://{authority.mesh}/node/pi-1")
    lines = request.decode().splitlines()
    tampered = "\n".join([*lines[:2], lines[2][:10] + "AAAA" + lines[2][14:], *lines[3:]])
    with pytest.raises(TrustError) as caught:
        authority.issuer.issue_client(
            tampered.encode(), "pi-1", f"imlmesh://{authority.mesh}/node/pi-1"
        )
    assert caught.value.code == "signature.invalid"


def test_a_key_of_another_ca_is_refused():
    private, _ = new_root("home")
    _, certificate = new_root("home")
    with pytest.raises(TrustError):
        Issuer(private, certificate)


def test_loading_the_keys_of_a_node_brings_no_certificate_maker(home, authority):
    authority.provision("pi-1", home.node("pi-1"), brokers=BROKERS)
    code = (
        "import sys, pathlib\n"
        "from imlmesh_runtime.trust import NodeKeys\n"
        "NodeKeys.load(pathlib.Path(sys.argv[1]), 'home').context()\n"
        "print('cryptography.x509' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(home.node("pi-1"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
