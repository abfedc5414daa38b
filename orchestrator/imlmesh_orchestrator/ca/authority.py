"""The authority of a mesh: makes its keys, issues certificates, enrols nodes.

The one rule: a folder of keys appears whole or not at all; it is written beside its place and
renamed. An id is enrolled once and never again. Deliberately absent: joining over the network.
"""

import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imlmesh_orchestrator.ca.certificates import Issuer, new_root
from imlmesh_orchestrator.ca.provision import NodeOrder, enrol, write_keys, write_mesh
from imlmesh_protocol.errors import InputError, TrustError
from imlmesh_protocol.ids import check_name
from imlmesh_runtime.files import read_file, read_private, sync_folder, write_private
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import (
    EnrolledNode,
    PublicKey,
    broker_name,
    load_signer,
    new_signing_key,
    new_tls_key,
)


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA of one mesh, on the machine of its orchestrator."""

    mesh: str
    orchestrator: str
    folder: Path
    issuer: Issuer

    @classmethod
    def create(cls, home: Home, mesh_id: str, orchestrator_id: str) -> Self:
        """Make CA, plan key, control certificate and the broker's; InputError `name.invalid`.

        Raises `folder.exists` when the home has a CA: another would disown its nodes.
        """
        check_name("mesh", mesh_id)
        check_name("orchestrator", orchestrator_id)
        home.make()
        if home.ca.exists():
            raise InputError("folder.exists", f"{home.ca} already holds the CA of a mesh")
        with folder_at(home.ca) as folder:
            private, certificate = new_root(mesh_id)
            issuer = Issuer(private, certificate)
            plan_private, plan_public = new_signing_key()
            control_private, request = new_tls_key(orchestrator_id)
            uri = f"imlmesh://{mesh_id}/control/{orchestrator_id}"
            files = {
                "ca.key": private,
                "ca.pem": certificate,
                "plan.key": plan_private,
                "plan.pub": plan_public,
                "control.key": control_private,
                "control.pem": issuer.issue_client(request, orchestrator_id, uri),
            }
            write_keys(folder, files)
            write_mesh(folder, {"mesh": mesh_id, "orchestrator": orchestrator_id})
            (folder / "enrolled").mkdir(mode=0o700)
        return cls.open(home)

    @classmethod
    def open(cls, home: Home) -> Self:
        """The authority of a home; InputError `home.missing`, TrustError `trust.file`."""
        if not home.ca.is_dir():
            raise InputError("home.missing", f"{home.root} has no mesh")
        try:
            names = tomllib.loads(read_file(home.ca / "mesh.toml").decode())
            mesh, orchestrator = str(names["mesh"]), str(names["orchestrator"])
        except (ValueError, KeyError) as exc:
            raise TrustError("trust.file", f"{home.ca / 'mesh.toml'}: {exc!r}") from exc
        issuer = Issuer(read_private(home.ca / "ca.key"), read_file(home.ca / "ca.pem"))
        authority = cls(mesh, orchestrator, home.ca, issuer)
        if not home.broker.exists():
            authority.issue_broker(home.broker)
        return authority

    def issue_broker(self, folder: Path) -> None:
        """Write `folder` with broker.key and broker.pem; the folder must not exist."""
        private, request = new_tls_key("broker")
        certificate = self.issuer.issue_server(request, broker_name(self.mesh))
        with folder_at(folder) as made:
            write_keys(made, {"broker.key": private, "broker.pem": certificate})

    def provision(
        self,
        name: str,
        out: Path,
        *,
        brokers: tuple[str, ...],
        timing: str = "wan",
        policy_text: str | None = None,
        profile: str = "readonly",
        hint: str = "",
    ) -> EnrolledNode:
        """Write the folder of a new node to `out` and enrol it.

        `brokers` are host:port; without one the node looks for its mesh by mDNS, and names the
        address `hint` to people when that fails. `timing` is a name of limits.TIMINGS,
        `policy_text` the content of policy.toml (none: the node is readonly). InputErrors name all
        that is wrong; InputError `node.exists` for an id ever used, `folder.exists` for an `out`
        that holds something.
        """
        order = NodeOrder(name, brokers, timing, policy_text, profile, hint)
        order.check()
        enrolled = self.folder / "enrolled"
        if name == self.orchestrator or (enrolled / f"{name}.json").exists():
            raise InputError("node.exists", f"the id {name!r} was used before in mesh {self.mesh}")
        with folder_at(out) as folder:
            raw_public = self._write_node(folder, order)
            identity = PublicKey.of_raw(raw_public)
            node = EnrolledNode(name, name, identity, time.time_ns() // 1_000_000, profile)
            # Enrolled before the folder appears: a crash in between costs a name, not the rule.
            enrol(enrolled, node)
        return node

    def _write_node(self, folder: Path, order: NodeOrder) -> bytes:
        keys = folder / "keys"
        keys.mkdir(mode=0o700)
        (folder / "files").mkdir(mode=0o700)
        tls_private, request = new_tls_key(order.name)
        identity_private, _ = new_signing_key()
        uri = f"imlmesh://{self.mesh}/node/{order.name}"
        files = {
            "ca.pem": read_file(self.folder / "ca.pem"),
            "plan.pub": read_file(self.folder / "plan.pub"),
            "node.key": tls_private,
            "node.pem": self.issuer.issue_client(request, order.name, uri),
            "identity.key": identity_private,
        }
        write_keys(keys, files)
        if order.policy_text is not None:
            write_private(folder / "policy.toml", order.policy_text.encode())
        names = {"mesh": self.mesh, "id": order.name, "orchestrator": self.orchestrator}
        found = {"broker_hint": order.hint} if order.hint else {}
        reached = {"brokers": list(order.brokers), **found, "timing": order.timing}
        write_mesh(folder, names | reached)
        return load_signer(keys / "identity.key").raw_public


@contextmanager
def folder_at(place: Path) -> Iterator[Path]:
    """A folder to fill that becomes `place` at the end, or vanishes when filling it fails."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError("folder.exists", f"{place} already holds something")
    made = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        yield made
        made.replace(place)
    except BaseException:
        shutil.rmtree(made)
        raise
    sync_folder(place.parent)
