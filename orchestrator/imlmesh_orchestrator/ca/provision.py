"""What a new node gets: the checks of an order, its files, and its line in the register.

The one rule: an order is checked whole before anything is written. Deliberately absent: the
choice of a policy; whoever asks for the node brings it.
"""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors
from imlmesh_protocol.ids import check_name
from imlmesh_protocol.manifest import PROFILES
from imlmesh_runtime.files import sync_folder, write_private
from imlmesh_runtime.link.base import is_address
from imlmesh_runtime.trust import EnrolledNode


@dataclass(frozen=True, slots=True)
class NodeOrder:
    """A wish for a node. `name` becomes its id and first alias; without `brokers` it looks for its
    mesh by mDNS, and `hint` tells people where that was."""

    name: str
    brokers: tuple[str, ...]
    timing: str
    policy_text: str | None
    profile: str
    hint: str = ""

    def check(self) -> None:
        """Raise InputErrors with all that is wrong."""
        errors: list[InputError] = []
        try:
            check_name("node", self.name)
        except InputError as exc:
            errors.append(exc)
        errors += [
            InputError("config.invalid", f"{address!r} is not host:port")
            for address in (*self.brokers, *filter(None, [self.hint]))
            if not is_address(address)
        ]
        if self.timing not in limits.TIMINGS:
            names = ", ".join(sorted(limits.TIMINGS))
            errors.append(InputError("config.invalid", f"timing must be one of {names}"))
        if self.profile not in PROFILES:
            names = ", ".join(PROFILES)
            errors.append(InputError("config.invalid", f"profile must be one of {names}"))
        if self.policy_text is not None:
            try:
                tomllib.loads(self.policy_text)
            except tomllib.TOMLDecodeError as exc:
                errors.append(InputError("policy.invalid", f"policy.toml: {exc}"))
        if errors:
            raise InputErrors(errors)


def write_keys(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` with mode 0600."""
    for name, data in files.items():
        write_private(folder / name, data)


def write_mesh(folder: Path, fields: Mapping[str, str | Sequence[str]]) -> None:
    """Write mesh.toml. The values are checked names and addresses, so TOML and JSON agree."""
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in fields.items()]
    write_private(folder / "mesh.toml", "".join(lines).encode())


def enrol(folder: Path, node: EnrolledNode) -> None:
    """Add `node` to the register; `node.exists` when its id is there, even if added just now."""
    temporary = folder / f".{node.id}.{os.getpid()}"
    write_private(temporary, json.dumps(node.to_record(), indent=1).encode())
    try:
        # A hard link, since it alone fails when the name is taken.
        (folder / f"{node.id}.json").hardlink_to(temporary)
    except FileExistsError as exc:
        raise InputError("node.exists", f"the id {node.id!r} was used before") from exc
    finally:
        temporary.unlink()
    sync_folder(folder)
