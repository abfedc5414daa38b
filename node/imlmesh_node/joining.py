"""A node's folder as it comes to be: its keys are made here and never leave, papers come from the mesh.

The one rule: the folder appears whole or not at all. Deliberately absent: how the papers came.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imlmesh_runtime.files import folder_at, read_file, read_private, write_all, write_private
from imlmesh_runtime.trust import HeldTrust, new_signing_key, new_tls_key, signer_of

_PRIVATE = ("node.key", "identity.key")


@dataclass(frozen=True, slots=True)
class NewKeys:
    """The keys of a node that is not in yet: private ones and the `request` as PEM, `identity` raw."""

    node_key: bytes
    request: bytes
    identity_key: bytes
    identity: bytes

    @classmethod
    def make(cls, name: str) -> Self:
        """Fresh ones for the node `name`."""
        node_key, request = new_tls_key(name)
        identity_key, _ = new_signing_key()
        return cls(node_key, request, identity_key, signer_of(identity_key).raw_public)

    @classmethod
    def kept(cls, folder: Path) -> Self:
        """The ones of the node that `folder` will be of: made once, whatever ends in between.

        They lie beside it until `write_folder` moves them, so that whoever asks again for the same
        node asks with the same keys. TrustError `trust.file`.
        """
        beside = _beside(folder)
        if not beside.is_dir():
            made = cls.make(folder.name)
            with folder_at(beside) as place:
                write_all(place, made.files | {"request.pem": made.request})
        node_key, identity_key = (read_private(beside / name) for name in _PRIVATE)
        raw_public = signer_of(identity_key, beside / "identity.key").raw_public
        return cls(node_key, read_file(beside / "request.pem"), identity_key, raw_public)

    @property
    def files(self) -> dict[str, bytes]:
        """The private ones by file name."""
        return dict(zip(_PRIVATE, (self.node_key, self.identity_key), strict=True))


@dataclass(frozen=True, slots=True)
class Place:
    """mesh.toml: of which mesh the node `id` is, and how it finds it."""

    mesh: str
    id: str
    orchestrator: str
    brokers: tuple[str, ...] = ()
    broker_hint: str = ""
    timing: str = "wan"

    @property
    def text(self) -> bytes:
        """The file. Values are checked names and addresses, so TOML and JSON agree."""
        fields: dict[str, str | Sequence[str]] = {
            "mesh": self.mesh,
            "id": self.id,
            "orchestrator": self.orchestrator,
            "brokers": list(self.brokers),
        }
        if self.broker_hint:
            fields["broker_hint"] = self.broker_hint
        fields["timing"] = self.timing
        return "".join(f"{name} = {json.dumps(fields[name])}\n" for name in fields).encode()


def write_folder(
    folder: Path, place: Place, keys: NewKeys, papers: Mapping[str, bytes], policy_text: str | None
) -> None:
    """Write the folder of a node that was let in; without a policy it is readonly.

    InputError `folder.exists`; TrustError or ProtocolError when the papers do not hold together.
    """
    with folder_at(folder) as made:
        for name in ("keys", "files"):
            (made / name).mkdir(mode=0o700)
        write_all(made / "keys", {**papers, **keys.files})
        HeldTrust(made / "keys", place.mesh)
        if policy_text is not None:
            write_private(made / "policy.toml", policy_text.encode())
        write_private(made / "mesh.toml", place.text)
    shutil.rmtree(_beside(folder), ignore_errors=True)


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.joining")
