"""A node's folder as it comes to be: its keys are made here and never leave, papers come from the mesh.

The one rule: the folder appears whole or not at all. Deliberately absent: how the papers came.
"""

import glob
import json
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imlmesh_protocol.errors import InputError, TrustError
from imlmesh_runtime.files import folder_at, read_file, read_private, write_all, write_private
from imlmesh_runtime.trust import (
    HeldTrust,
    broker_name,
    client_context,
    load_public,
    new_signing_key,
    new_tls_key,
    signer_of,
)

_PRIVATE = ("node.key", "identity.key")


@dataclass(frozen=True, slots=True)
class NewKeys:
    """The keys of a node that is not in yet: private ones and the `request` as PEM, `identity` raw."""

    node_key: bytes
    request: bytes
    identity_key: bytes
    identity: bytes

    @classmethod
    def make(cls) -> Self:
        """Fresh ones; the mesh says whose they are."""
        node_key, request = new_tls_key()
        identity_key, _ = new_signing_key()
        return cls(node_key, request, identity_key, signer_of(identity_key).raw_public)

    @classmethod
    def kept(cls, folder: Path) -> Self:
        """The ones of the node that `folder` will be of: made once, whatever ends in between.

        They lie beside it until `write_folder` moves them, so that whoever asks again for the same
        node asks with the same keys. TrustError `trust.file`.
        """
        beside = _beside(folder)
        _remove_drafts(folder)
        if not beside.is_dir():
            made = cls.make()
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
    join: tuple[str, ...] = ()

    @property
    def text(self) -> bytes:
        """The file. Values are checked names and addresses, so TOML and JSON agree."""
        fields: dict[str, str | Sequence[str]] = {
            "mesh": self.mesh,
            "id": self.id,
            "orchestrator": self.orchestrator,
            "brokers": list(self.brokers),
        }
        if self.join:
            fields["join"] = list(self.join)
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
        cas = HeldTrust(made / "keys", place.mesh).trust.control_cas
        # refuses a certificate that is not for our key
        pair = (made / "keys" / "node.pem", made / "keys" / "node.key")
        client_context(cas, *pair, broker_name(place.mesh))
        if policy_text is not None:
            write_private(made / "policy.toml", policy_text.encode())
        write_private(made / "mesh.toml", place.text)
    shutil.rmtree(_beside(folder), ignore_errors=True)


def joined_as(folder: Path) -> tuple[str, bytes]:
    """(id, root key as raw bytes) of the node whose folder this is, for who joined it before.

    InputError `folder.exists` when it is something else, or nothing.
    """
    try:
        node = str(tomllib.loads(read_file(folder / "mesh.toml").decode())["id"])
        root = bytes(load_public(folder / "keys" / "root.pub").key)
    except (TrustError, ValueError, KeyError) as exc:
        text = f"{folder} is there already, and no folder of a node"
        raise InputError("folder.exists", text) from exc
    shutil.rmtree(_beside(folder), ignore_errors=True)
    _remove_drafts(folder)
    return node, root


def _remove_drafts(folder: Path) -> None:
    """What was being written when this computer lost its power, or the process was killed."""
    for name in (folder.name, _beside(folder).name):
        for draft in folder.parent.glob(f".{glob.escape(name)}.*"):
            if draft != _beside(folder) and draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.joining")
