"""The authority of a mesh: its keys, the certificates it issues, the trust that it signs.

The one rule: a folder of keys appears whole or not at all. The root key signs `trust` and nothing
else, so it may be moved away; everything online has a key of its own. Deliberately absent: who may
join, which the core decides, and the keys of nodes, which never leave them.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imlmesh_orchestrator.ca.certificates import Issued, Issuer, new_root
from imlmesh_orchestrator.ca.lists import Lists
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, TrustError
from imlmesh_protocol.ids import check_name
from imlmesh_protocol.wire.documents import Trust
from imlmesh_runtime.files import folder_at, read_file, read_private, write_all, write_private
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import (
    Signer,
    broker_name,
    certificates_of,
    join_name,
    load_public,
    load_signer,
    new_signing_key,
    new_tls_key,
)

#: the two CAs; each vouches for one role, and a listener asks for one of them
NODE, CONTROL = "node", "control"
#: Ed25519 keys that trust names
VOICES = ("plan", "ledger", "roster")


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA of one mesh, on the machine of its orchestrator."""

    mesh: str
    orchestrator: str
    folder: Path
    node: Issuer
    control: Issuer

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
            made._certify_itself()
        return cls.open(home)

    @classmethod
    def open(cls, home: Home) -> Self:
        """The authority of a home; InputError `home.missing`, TrustError `trust.file`."""
        if not home.ca.is_dir():
            raise InputError("home.missing", f"{home.root} has no mesh")
        authority = cls._of(home.ca)
        if not home.broker.exists():
            authority.issue_broker(home.broker)
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
        issuers = [
            Issuer(read_private(folder / f"{role}-ca.key"), read_file(folder / f"{role}-ca.pem"))
            for role in (NODE, CONTROL)
        ]
        return cls(mesh, orchestrator, folder, *issuers)

    def issue_broker(self, folder: Path) -> None:
        """Write `folder` with broker.key and broker.pem; the folder must not exist."""
        with folder_at(folder) as made:
            write_all(made, self._server("broker", broker_name(self.mesh)))

    def certify(self, request: bytes, node: str, lifetime_s: int = limits.CERTIFICATE_S) -> Issued:
        """The certificate of a node for the key of its PEM request, whatever else that asks for.

        InputError `name.invalid`; TrustError `signature.invalid` when the request does not prove a
        P-256 key.
        """
        check_name("node", node)
        uri = f"imlmesh://{self.mesh}/node/{node}"
        return self.node.issue_client(request, node, uri, lifetime_s)

    def revoke(self, serials: Iterable[int]) -> None:
        """Write the revocation lists anew: node certificates with these numbers are refused."""
        self._lists(NODE).write(serials)
        self._lists(CONTROL).write(())

    def revoke_too(self, serials: Iterable[int]) -> None:
        """Add to the revocation list what nobody else knows of: certificates made for a probe, which
        end within minutes. TrustError `trust.file` when the list is broken."""
        self._lists(NODE).add(serials)

    def renew_lists(self) -> None:
        """Make revocation lists anew that are older than a day: who was off for a month would find
        them ended, and then nobody comes in."""
        for role in (NODE, CONTROL):
            self._lists(role).renew()

    def _lists(self, role: str) -> Lists:
        return Lists(self.folder, role, [self.node if role == NODE else self.control])

    def papers(self) -> dict[str, bytes]:
        """What a new node needs beside its certificate: root.pub and trust, by file name."""
        return {
            "root.pub": read_file(self.folder / "root.pub"),
            "trust": read_file(self.folder / "trust", limits.DOCUMENT_BYTES),
        }

    def _certify_itself(self) -> None:
        private, request = new_tls_key(self.orchestrator)
        uri = f"imlmesh://{self.mesh}/control/{self.orchestrator}"
        issued = self.control.issue_client(request, self.orchestrator, uri)
        write_all(self.folder, {"control.key": private, "control.pem": issued.pem})
        write_all(self.folder, self._server("join", join_name(self.mesh)))

    def _server(self, what: str, name: str) -> dict[str, bytes]:
        private, request = new_tls_key(what)
        issued = self.control.issue_server(request, name)
        return {f"{what}.key": private, f"{what}.pem": issued.pem}


def sign_trust(folder: Path, mesh: str, version: int, root: Signer) -> None:
    """Write trust anew from what `folder` holds: certificates of CAs, public keys of voices."""
    cas = [certificates_of(read_file(folder / f"{role}-ca.pem")) for role in (NODE, CONTROL)]
    voices = [(bytes(load_public(folder / f"{name}.pub").key),) for name in VOICES]
    trust = Trust(mesh, version, *cas, *voices)
    write_private(folder / "trust", trust.sealed(root.sign, root.key_id))


def write_mesh(folder: Path, fields: Mapping[str, str | Sequence[str]]) -> None:
    """Write mesh.toml. The values are checked names and addresses, so TOML and JSON agree."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in fields.items()]
    write_private(folder / "mesh.toml", "".join(lines).encode())
