"""Joining a mesh from this machine: `imlmesh node join`, whatever ends in between.

The one rule: what was made is used again, so that the same command goes on where it was. Deliberately
absent: what is proved to whom; `imlmesh_node.entering` does that.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from imlmesh.mesh import machine_name, policy_text
from imlmesh.render import say
from imlmesh.service import NODES
from imlmesh_node.entering import Door, LetIn, Told, Wish, enter
from imlmesh_node.joining import NewKeys, Place, joined_as, write_folder
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, MeshError
from imlmesh_protocol.errors import Place as TextPlace
from imlmesh_protocol.ids import check_name
from imlmesh_protocol.manifest import PROFILES
from imlmesh_protocol.wire.documents import root_hash
from imlmesh_protocol.wire.joining import JoinToken
from imlmesh_runtime.link.address import JOIN_PORT, address_of


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the words of the command say; `token` is its text, or @FILE."""

    token: str | None
    at: str | None
    name: str | None
    profile: str | None
    policy: Path | None
    out: Path | None


def join_mesh(wanted: Wanted) -> dict[str, Any]:
    """The record of a node that is in: node, alias, mesh, profile, folder, broker, and whether it
    was in `before`."""
    token = None if wanted.token is None else JoinToken.parse(_text_of(wanted.token))
    name = check_name("node", wanted.name or machine_name())
    folder = (wanted.out or Path(name)).absolute()
    asked, text = "", None
    if wanted.policy is not None:
        asked, text = policy_text("", wanted.policy)
    elif wanted.profile is not None:
        asked, _ = policy_text(wanted.profile, None)
    at = () if wanted.at is None else (address_of(wanted.at, "--at", JOIN_PORT),)
    for there in (folder, NODES / name):
        if (there / "mesh.toml").exists():
            return _joined_before(there, name, token)
    if folder.exists():
        raise InputError("folder.exists", f"{folder} is there already")
    with _written(folder):
        keys = NewKeys.kept(folder)
    told = Told(partial(_tell_waits, name), _tell)
    found = asyncio.run(enter(Wish(name, asked, token, at), keys, told))
    # whoever lets it in may give less than what was asked for here, and never more
    profile = min((asked or found.profile, found.profile), key=PROFILES.index)
    text = policy_text(profile, None)[1] if text is None else text
    with _written(folder):
        write_folder(folder, _place_of(found, name), keys, found.papers, text)
    record = {"node": name, "alias": found.alias, "mesh": found.mesh, "folder": str(folder)}
    return {**record, "profile": profile, "broker": found.broker, "before": False}


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """A place that cannot be written to is what somebody said, not an error of ours."""
    try:
        yield
    except OSError as exc:
        if isinstance(exc, MeshError):
            raise
        raise InputError("config.invalid", f"{folder} cannot be made: {exc.strerror}") from exc


def check_service() -> None:
    """What `--service` needs, before anything is made."""
    if os.geteuid() != 0:
        hint = "sudo imlmesh node join ... --service"
        raise InputError("access.denied", "only root installs services", hint=hint)


def _place_of(found: LetIn, name: str) -> Place:
    return Place(
        found.mesh,
        name,
        found.orchestrator,
        (found.broker,),
        timing=found.timing,
        join=(found.join,),
    )


def _joined_before(folder: Path, name: str, token: JoinToken | None) -> dict[str, Any]:
    """The command was carried out before, and its end was not seen; or this is another mesh's."""
    node, root = joined_as(folder)
    if node != name or (token is not None and root_hash(root) != token.pin.hex()):
        raise InputError("folder.exists", f"{folder} is of another node, or of another mesh")
    return {"node": node, "folder": str(folder), "before": True}


def _text_of(word: str) -> str:
    if not word.startswith("@"):
        return word.strip()
    path = Path(word[1:])
    try:
        return path.read_bytes()[: limits.TOKEN_CHARS].decode().strip()
    except (OSError, UnicodeDecodeError) as exc:
        text = f"{path}: {getattr(exc, 'strerror', None) or 'not text'}"
        raise InputError("token.invalid", text, place=TextPlace(file=str(path))) from exc


def _tell_waits(name: str, code: str, door: Door) -> None:
    if code:
        say(f'code {code}   compare it with what the owner of mesh "{door.mesh}" sees:')
        say(f"  imlmesh node discover   and then   imlmesh node approve {name}")
    else:
        say(f'the owner of mesh "{door.mesh}" has to agree to so much power:')
        say(f"  imlmesh node approve {name}")
    say("waiting; Ctrl-C ends it, and the same command goes on")


def _tell(error: MeshError | None) -> None:
    say(
        "it is there again"
        if error is None
        else f"! {error.message} [{error.code}]; still waiting, and looking by mDNS"
    )
