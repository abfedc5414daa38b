"""The authority of a mesh: its keys, the certificates it issues, the trust that it signs.

The one rule: a folder of keys appears whole or not at all. The root key signs `trust` and nothing
else, so it may be moved away; everything online has a key of its own. Deliberately absent: who may
join, which the core decides, and the keys of nodes, which never leave them.
"""

import json
import ssl
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imlmesh_orchestrator.ca.certificates import Issued, Issuer, check_request, new_root
from imlmesh_orchestrator.ca.lists import Lists
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, TrustError
from imlmesh_protocol.ids import check_name
from imlmesh_protocol.wire.documents import Trust
from imlmesh_runtime.files import folder_at, read_file, read_private, write_all, write_private
from imlmesh_runtime.pairs import (
    certificates_in,
    is_issued_by,
    key_file,
    own_certificate,
    validity_of,
    write_pair,
)
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import (
    HeldTrust,
    Signer,
    broker_name,
    join_name,
    load_public,
    load_signer,
    new_signing_key,
    new_tls_key,
)

#: the two CAs; each vouches for one role, and a listener asks for one of them
NODE, CONTROL = "node", "control"
#: behind `<role>-ca`: key and certificate of the CA that a role rolls over to
NEXT_CA = ".next.pem"
#: Ed25519 keys that trust names
VOICES = ("plan", "ledger", "roster")


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA of one mesh, on the machine of its orchestrator."""

    mesh: str
    orchestrator: str
    folder: Path

    @classmethod
    def create(cls, home: Home, mesh_id: str, orchestrator_id: str) -> Self:
        """Make all keys, the first trust, and the certificates of this machine.

        InputError `name.invalid`, or `folder.exists` when the home has a CA: another would disown
        its nodes.
        """
        check_name("mesh", mesh_id)
        check_name("orchestrator", orchestrator_id)
        home.make()
        if home.ca.exists():
            raise InputError("folder.exists", f"{home.ca} already holds the CA of a mesh")
        with folder_at(home.ca) as folder:
            files: dict[str, bytes] = {}
            for name in ("root", *VOICES):
                files[f"{name}.key"], files[f"{name}.pub"] = new_signing_key()
            for role in (NODE, CONTROL):
                files[f"{role}-ca.key"], files[f"{role}-ca.pem"] = new_root(mesh_id, role)
            write_all(folder, files)
            write_mesh(folder, {"mesh": mesh_id, "orchestrator": orchestrator_id})
            sign_trust(folder, mesh_id, 1, load_signer(folder / "root.key"))
            made = cls._of(folder)
            made.revoke(())
            made.refresh()
        return cls.open(home)

    @classmethod
    def open(cls, home: Home) -> Self:
        """The authority of a home, its own certificates good for a third of their life at least.

        InputError `home.missing`, TrustError `trust.file`.
        """
        if not home.ca.is_dir():
            raise InputError("home.missing", f"{home.root} has no mesh")
        authority = cls._of(home.ca)
        if not home.broker.exists():
            authority.issue_broker(home.broker)
        authority.refresh(home.broker)
        return authority

    @classmethod
    def _of(cls, folder: Path) -> Self:
        try:
            names = tomllib.loads(read_file(folder / "mesh.toml").decode())
            mesh, orchestrator = str(names["mesh"]), str(names["orchestrator"])
        except (ValueError, KeyError) as exc:
            raise TrustError("trust.file", f"{folder / 'mesh.toml'}: {exc!r}") from exc
        if (folder / "ca.pem").exists():
            raise TrustError(
                "trust.file",
                f"{folder} is of an imlmesh whose nodes shared one CA",
                hint="make a new home, and let the nodes join it",
            )
        authority = cls(mesh, orchestrator, folder)
        for role in (NODE, CONTROL):
            authority.issuers(role)
        return authority

    def issuers(self, role: str) -> list[Issuer]:
        """The CAs of a role whose keys are here, the newest first: two while one rolls over.

        Read each time, for whoever rolls over is another process. TrustError `trust.file`.
        """
        keys = [self.folder / f"{role}-ca{name}" for name in (".key", NEXT_CA)]
        found = [read_private(path) for path in keys if path.exists()]
        pem = self.folder / f"{role}-ca.pem"
        made = [Issuer.of(found, certificate) for certificate in certificates_in(pem)]
        if not any(made):
            text = f"{keys[0]}: no key of the {role} CA belongs to its certificate"
            raise TrustError("trust.file", text)
        return [issuer for issuer in made if issuer is not None]

    def issuer(self, role: str) -> Issuer:
        """The CA that vouches now: of nodes the newest that they were told of, of control the oldest,
        since nodes must know a CA before a server shows its certificate."""
        trust = self.trust
        told = trust.node_cas if role == NODE else trust.control_cas[::-1]
        here = {issuer.der: issuer for issuer in self.issuers(role)}
        for der in told:
            if der in here:
                return here[der]
        raise TrustError("trust.file", f"trust names no {role} CA whose key is here")

    @property
    def trust(self) -> Trust:
        """Whom the mesh trusts now."""
        return HeldTrust(self.folder, self.mesh).trust

    def issue_broker(self, folder: Path) -> None:
        """Write `folder` with broker.key and broker.pem; the folder must not exist."""
        with folder_at(folder) as made:
            write_all(made, self._server("broker", broker_name(self.mesh), self.issuer(CONTROL)))

    def certify(self, request: bytes, node: str, lifetime_s: int = limits.CERTIFICATE_S) -> Issued:
        """The certificate of a node for the key of its PEM request, which may ask for nothing else.

        InputError `name.invalid`, or `node.exists` for our own id, which a broker takes for ours
        whoever issued it; TrustError `signature.invalid` when the request does not prove a
        P-256 key, `join.request` when it asks for more.
        """
        check_name("node", node)
        if node == self.orchestrator:
            raise InputError("node.exists", f"{node!r} is the orchestrator")
        check_request(request, node)
        uri = f"imlmesh://{self.mesh}/node/{node}"
        return self.issuer(NODE).issue_client(request, node, uri, lifetime_s)

    def revoke(self, serials: Iterable[int]) -> None:
        """Write the revocation lists anew: node certificates with these numbers are refused."""
        self._lists(NODE).write(serials)
        self._lists(CONTROL).write(())

    def revoke_too(self, serials: Iterable[int]) -> None:
        """Add to the revocation list what nobody else knows of: certificates made for a probe, which
        end within minutes. TrustError `trust.file` when the list is broken."""
        self._lists(NODE).add(serials)

    def renew_lists(self, served: Path) -> None:
        """Make revocation lists anew that are older than a day: who was off for a month would find
        them ended, and then nobody comes in. Broken ones become those of the folder `served`, by which
        the broker shut out whom it did; the orchestrator makes them anew when it starts."""
        for role in (NODE, CONTROL):
            self._lists(role).renew(served / f"{role}-ca.crl")

    def _lists(self, role: str) -> Lists:
        return Lists(self.folder, role, lambda: self.issuers(role))

    def papers(self) -> dict[str, bytes]:
        """What a new node needs beside its certificate, by file name: root.pub and trust. The roster
        that names it comes with its first birth."""
        return {
            "root.pub": read_file(self.folder / "root.pub"),
            "trust": read_file(self.folder / "trust", limits.DOCUMENT_BYTES),
        }

    def refresh(self, broker: Path | None = None, issuer: Issuer | None = None) -> list[str]:
        """Make anew what is over two thirds of its life, or does not work, of the certificates of
        this machine: control, join and, in the folder `broker`, the broker's; their names.

        `issuer` is the CA that they shall be of, by default the one that vouches now.
        """
        issuer = issuer or self.issuer(CONTROL)
        made = []
        if not is_good(self.folder / "control.pem", issuer.der):
            private, request = new_tls_key(self.orchestrator)
            uri = f"imlmesh://{self.mesh}/control/{self.orchestrator}"
            issued = issuer.issue_client(request, self.orchestrator, uri)
            if (self.folder / "control.pem").exists():
                write_pair(self.folder / "control.pem", private, issued.pem)
            else:
                write_all(self.folder, {"control.key": private, "control.pem": issued.pem})
            made.append("control")
        servers = [(self.folder, "join", join_name(self.mesh))]
        if broker is not None:
            servers.append((broker, "broker", broker_name(self.mesh)))
        for folder, what, name in servers:
            if not is_good(folder / f"{what}.pem", issuer.der):
                write_all(folder, self._server(what, name, issuer))
                made.append(what)
        return made

    def _server(self, what: str, name: str, issuer: Issuer) -> dict[str, bytes]:
        private, request = new_tls_key(what)
        issued = issuer.issue_server(request, name)
        return {f"{what}.key": private, f"{what}.pem": issued.pem}


def is_good(pem: Path, ca: bytes) -> bool:
    """Whether the certificate in `pem` is of `ca` (DER), in the first two thirds of its life, and its
    key is there: a crash between the files of a pair leaves two that do not belong together."""
    if not pem.exists():
        return False
    try:
        certificate = own_certificate(pem)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pem, key_file(pem))
    except (OSError, TrustError):
        return False
    fresh = time.time_ns() // 1_000_000 < validity_of(certificate).renewal_ms
    return fresh and is_issued_by(certificate, ca)


def sign_trust(folder: Path, mesh: str, version: int, root: Signer) -> None:
    """Write trust anew from what `folder` holds: certificates of CAs, public keys of voices."""
    cas = [certificates_in(folder / f"{role}-ca.pem") for role in (NODE, CONTROL)]
    voices = [(bytes(load_public(folder / f"{name}.pub").key),) for name in VOICES]
    trust = Trust(mesh, version, *cas, *voices)
    write_private(folder / "trust", trust.sealed(root.sign, root.key_id))


def write_mesh(folder: Path, fields: Mapping[str, str | Sequence[str]]) -> None:
    """Write mesh.toml. The values are checked names and addresses, so TOML and JSON agree."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in fields.items()]
    write_private(folder / "mesh.toml", "".join(lines).encode())
