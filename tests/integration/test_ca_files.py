"""What the authority writes: whole folders, private files, certificates that strict TLS accepts."""

import logging
import os
import ssl
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from imlmesh_node.joining import NewKeys
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.ca.authority import sign_trust
from imlmesh_orchestrator.ca.certificates import Issuer, new_root
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, ProtocolError, TrustError
from imlmesh_protocol.wire.documents import Roster
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import (
    ControlKeys,
    HeldTrust,
    NodeKeys,
    client_context,
    load_public,
    load_signer,
    new_signing_key,
    new_tls_key,
)
from node_folders import make_node

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
    server.load_verify_locations(home.ca / "node-ca.pem")
    server.load_verify_locations(home.ca / "control-ca.pem")
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


def test_a_second_authority_does_not_disown_the_first(home, authority):
    before = (home.ca / "root.key").read_bytes()
    with pytest.raises(InputError) as caught:
        Authority.create(home, "home", "orchestra")
    assert caught.value.code == "folder.exists"
    assert (home.ca / "root.key").read_bytes() == before


def test_a_home_without_a_mesh_is_said_so(home):
    with pytest.raises(InputError) as caught:
        Authority.open(home)
    assert caught.value.code == "home.missing"


@pytest.mark.parametrize("mesh", ["home", "my_mesh", "a-", "x" * 63])
def test_strict_tls_accepts_every_role_under_the_name_of_the_mesh(tmp_path, mesh):
    home = Home(tmp_path / "home")
    authority = Authority.create(home, mesh, "orchestra")
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    node, control = NodeKeys.load(home.node("pi-1"), mesh), ControlKeys.load(home.ca, mesh)
    assert handshake(home, node.context()) == (f"imlmesh://{mesh}/node/pi-1", "TLSv1.3")
    assert handshake(home, control.context()) == (f"imlmesh://{mesh}/control/orchestra", "TLSv1.3")


def test_a_node_folder_holds_what_the_node_needs_and_no_more(home, authority, tmp_path):
    out = tmp_path / "elsewhere" / "pi-1"
    made, _ = make_node(
        authority,
        "pi-1",
        out,
        brokers=BROKERS,
        timing="lan",
        policy_text='profile = "local_worker"\n',
    )
    assert files_of(out) == {
        *("mesh.toml", "policy.toml", "keys/root.pub", "keys/node.pem", "keys/node.key"),
        *("keys/identity.key", "keys/trust"),
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
    plan = keys.find_key(control.signer.key_id, "pi-1")
    assert plan is not None
    assert bytes(plan) == control.signer.raw_public
    assert keys.find_key(keys.signer.key_id, "pi-1") is None
    assert made.identity == keys.signer.raw_public
    assert list(out.parent.iterdir()) == [out]


def test_without_a_policy_the_node_has_none(home, authority):
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    assert not (home.node("pi-1") / "policy.toml").exists()


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


def test_a_damaged_certificate_is_said_when_it_is_used(home, authority):
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    (home.node("pi-1") / "keys" / "node.pem").write_text("no")
    with pytest.raises(TrustError) as caught:
        NodeKeys.load(home.node("pi-1"), "home").context()
    assert caught.value.code == "trust.file"


@pytest.mark.parametrize("name", ["identity.key", "node.key"])
def test_a_key_that_others_could_read_warns_or_refuses(home, authority, caplog, name):
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    (home.node("pi-1") / "keys" / name).chmod(0o640)
    with caplog.at_level(logging.WARNING):
        NodeKeys.load(home.node("pi-1"), "home")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(TrustError) as caught:
        NodeKeys.load(home.node("pi-1"), "home", strict=True)
    assert caught.value.code == "trust.mode"
    assert caught.value.hint == f"chmod 600 {home.node('pi-1') / 'keys' / name}"


def test_a_file_of_somebody_else_says_whose_it_should_be(home, authority, as_root):
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    keys = home.node("pi-1") / "keys"
    for path in (keys, keys / "node.key"):
        os.chown(path, 65_534, -1)
        with pytest.raises(TrustError) as caught:
            NodeKeys.load(home.node("pi-1"), "home", strict=True)
        assert caught.value.hint == f"sudo chown 0 {path}"
        os.chown(path, 0, -1)


def test_loading_the_keys_of_a_node_brings_no_certificate_maker(home, authority):
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
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


def test_a_new_authority_has_its_files_for_its_owner_alone(home, authority):
    voices = {
        f"{name}.{end}" for name in ("root", "plan", "ledger", "roster") for end in ("key", "pub")
    }
    cas = {f"{role}-ca.{end}" for role in ("node", "control") for end in ("key", "pem", "crl")}
    own = {f"{name}.{end}" for name in ("control", "join") for end in ("key", "pem")}
    assert files_of(home.ca) == voices | cas | own | {"trust", "mesh.toml"}
    assert files_of(home.broker) == {"broker.key", "broker.pem"}
    for path in home.root.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    again = Authority.open(home)
    assert (again.mesh, again.orchestrator) == ("home", "orchestra")


def test_the_root_key_may_be_moved_away(home, authority, tmp_path):
    (home.ca / "root.key").rename(tmp_path / "root.key")
    make_node(Authority.open(home), "pi-1", home.node("pi-1"), brokers=BROKERS)
    assert NodeKeys.load(home.node("pi-1"), "home").held.trust.version == 1


def test_a_home_whose_nodes_shared_one_ca_is_said_to_be_old(home, authority):
    (home.ca / "ca.pem").write_text("old")
    with pytest.raises(TrustError) as caught:
        Authority.open(home)
    assert caught.value.code == "trust.file"
    assert "join" in caught.value.hint


def test_certificates_say_one_role_each(home, authority):
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    leaves = {
        (home.node("pi-1") / "keys/node.pem", "node", ExtendedKeyUsageOID.CLIENT_AUTH, "pi-1"),
        (home.ca / "control.pem", "control", ExtendedKeyUsageOID.CLIENT_AUTH, "orchestra"),
        (home.ca / "join.pem", "control", ExtendedKeyUsageOID.SERVER_AUTH, "join"),
        (home.broker / "broker.pem", "control", ExtendedKeyUsageOID.SERVER_AUTH, "broker"),
    }
    for path, role, purpose, name in leaves:
        root = x509.load_pem_x509_certificate((home.ca / f"{role}-ca.pem").read_bytes())
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
        leaf = x509.load_pem_x509_certificate(path.read_bytes())
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
        assert leaf.subject.rfc4514_string() == f"CN={name}"


def test_a_broker_of_another_mesh_of_the_same_ca_is_not_ours(home, authority):
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    keys = home.node("pi-1") / "keys"
    cas = HeldTrust(keys, "home").trust.control_cas
    context = client_context(cas, keys / "node.pem", keys / "node.key", "broker.other.imlmesh")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(home, context)


@pytest.mark.parametrize(
    "name", ["", "Pi", "a/b", "-a", "a b", "é", "a" * 64, "..", "a\n", "+", "#"]
)
def test_bad_names_get_no_certificate(authority, name):
    _, request = new_tls_key("pi-1")
    with pytest.raises(InputError) as caught:
        authority.certify(request, name)
    assert caught.value.code == "name.invalid"


def asking(name: str, *extensions: x509.ExtensionType) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if name else [])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    signed = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("name", "extensions"),
    [
        ("orchestra", ()),
        ("pi-2", ()),
        ("pi-1", (x509.BasicConstraints(ca=True, path_length=None),)),
        ("", (x509.SubjectAlternativeName([x509.DNSName("broker.home.imlmesh")]),)),
    ],
)
def test_a_request_that_asks_for_more_gets_nothing(authority, name, extensions):
    with pytest.raises(TrustError) as caught:
        authority.certify(asking(name, *extensions), "pi-1")
    assert caught.value.code == "join.request"


@pytest.mark.parametrize("name", ["", "pi-1"])
def test_a_certificate_names_its_node_alone(authority, name):
    issued = authority.certify(asking(name), "pi-1")
    leaf = x509.load_pem_x509_certificate(issued.pem)
    assert leaf.subject.rfc4514_string() == "CN=pi-1"
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [each.value for each in names] == [f"imlmesh://{authority.mesh}/node/pi-1"]
    assert leaf.serial_number == issued.serial


@pytest.mark.parametrize("kind", ["rsa", "p384", "ed25519", "tampered", "garbage"])
def test_a_request_without_proof_of_a_fitting_key_gets_no_certificate(authority, kind):
    _, request = new_tls_key("pi-1")
    makers = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": Ed25519PrivateKey.generate,
    }
    if kind in makers:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pi-1")])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        signed = builder.sign(makers[kind](), None if kind == "ed25519" else hashes.SHA256())
        request = signed.public_bytes(serialization.Encoding.PEM)
    elif kind == "tampered":
        lines = request.decode().splitlines()
        lines[2] = lines[2][:10] + "AAAA" + lines[2][14:]
        request = "\n".join(lines).encode()
    else:
        request = b"no request"
    with pytest.raises(TrustError) as caught:
        authority.certify(request, "pi-1")
    assert caught.value.code == "signature.invalid"


def test_a_key_of_another_ca_is_refused():
    private, _ = new_root("home", "node")
    _, certificate = new_root("home", "node")
    with pytest.raises(TrustError):
        Issuer(private, certificate)


def test_a_revocation_list_names_what_was_revoked_and_openssl_accepts_it(home, authority):
    _, issued = make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    authority.revoke([issued.serial])
    listed = x509.load_pem_x509_crl((home.ca / "node-ca.crl").read_bytes())
    assert [revoked.serial_number for revoked in listed] == [issued.serial]
    command = ["openssl", "crl", "-CAfile", home.ca / "node-ca.pem", "-noout"]
    done = subprocess.run(
        [*map(str, command), "-in", str(home.ca / "node-ca.crl")], capture_output=True, text=True
    )
    assert "verify OK" in done.stdout + done.stderr


def test_an_older_document_never_takes_the_place_of_a_newer(home, authority):
    root = load_signer(home.ca / "root.key")
    old = (home.ca / "trust").read_bytes()
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    held = HeldTrust(home.node("pi-1") / "keys", "home")
    sign_trust(home.ca, "home", 2, root)
    new = (home.ca / "trust").read_bytes()
    assert held.take(new)
    assert not held.take(new)
    with pytest.raises(TrustError) as caught:
        held.take(old)
    assert caught.value.code == "trust.rollback"
    assert HeldTrust(home.node("pi-1") / "keys", "home").trust.version == 2


def test_trust_is_the_root_keys_word_alone(home, authority, tmp_path):
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    held = HeldTrust(home.node("pi-1") / "keys", "home")
    sign_trust(home.ca, "home", 2, load_signer(home.ca / "roster.key"))
    with pytest.raises(TrustError) as caught:
        held.take((home.ca / "trust").read_bytes())
    assert caught.value.code == "signature.unknown_key"
    assert held.trust.version == 1


def test_a_roster_is_the_roster_keys_word_alone(home, authority):
    held = HeldTrust(home.ca, "home")
    roster, plan = (load_signer(home.ca / f"{name}.key") for name in ("roster", "plan"))
    made = Roster("home", 5, 1_000, ("orchestra",), {"pi-1": ("active", "readonly")})
    assert held.take(made.sealed(roster.sign, roster.key_id))
    assert HeldTrust(home.ca, "home").roster == made
    with pytest.raises(TrustError) as caught:
        held.take(replace(made, version=6).sealed(plan.sign, plan.key_id))
    assert caught.value.code == "signature.unknown_key"
    with pytest.raises(TrustError) as caught:
        held.take(replace(made, version=4).sealed(roster.sign, roster.key_id))
    assert caught.value.code == "trust.rollback"
    with pytest.raises(ProtocolError) as refused:
        held.take(replace(made, mesh="other", version=9).sealed(roster.sign, roster.key_id))
    assert refused.value.code == "message.audience"


def test_keys_of_a_node_are_made_once_whatever_ends_in_between(home, authority):
    first = NewKeys.kept(home.node("pi-1"))
    assert NewKeys.kept(home.node("pi-1")) == first
    keys, _ = make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    assert keys == first
    assert [path.name for path in home.nodes.iterdir()] == ["pi-1"]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("keys/identity.key", b"not a key"),
        ("keys/identity.key", None),
        ("keys/node.key", None),
        ("keys/root.pub", b"not a key"),
        ("keys/root.pub", None),
        ("keys/root.pub", bytes(limits.KEY_FILE_BYTES + 1)),
        ("keys/trust", None),
    ],
)
def test_a_damaged_key_file_is_said_so(home, authority, path, content):
    make_node(authority, "pi-1", home.node("pi-1"), brokers=BROKERS)
    place = home.node("pi-1") / path
    place.unlink()
    if content is not None:
        place.write_bytes(content)
        place.chmod(0o600)
    with pytest.raises(TrustError) as caught:
        NodeKeys.load(home.node("pi-1"), "home")
    assert caught.value.code == "trust.file"
