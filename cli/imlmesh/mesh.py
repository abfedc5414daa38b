"""The files of a mesh on this computer: made on the first start, found again later.

The one rule: nothing is made anew that exists; ids, keys and the broker's ports stay, since nodes
elsewhere rely on them. Ports are settled when a broker of the mesh first serves on them: until
then another program may take them. Deliberately absent: processes.
"""

import json
import os
import platform
import re
import tomllib
from base64 import b64decode, b64encode
from dataclasses import dataclass, replace
from pathlib import Path

from imlmesh.client import Client, path_of
from imlmesh_broker.child import USUAL_CONTROL_PORT, USUAL_PORT
from imlmesh_node.config import read_policy
from imlmesh_node.joining import NewKeys, Place, write_folder
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.entry.endpoint import last_port
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.errors import Place as TextPlace
from imlmesh_protocol.manifest import PROFILES
from imlmesh_runtime.files import read_file, write_private
from imlmesh_runtime.paths import Home, find_home

MESH = "home"
ORCHESTRATOR = "orchestrator"
ADDRESS = "127.0.0.1"
_DEFAULT_POLICIES = {
    "readonly": 'profile = "readonly"\n\n[roots]\nread = ["files"]\n',
    **{
        profile: f'profile = "{profile}"\n\n[roots]\nwrite = ["files"]\n'
        for profile in PROFILES
        if profile != "readonly"
    },
}


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh whose files are in `home`; the ports are None until its broker has served once.

    Nodes come in at `port`, the orchestrator at `control_port`.
    """

    home: Home
    authority: Authority
    port: int | None
    timing: str
    control_port: int | None = None

    @property
    def broker_address(self) -> str:
        """address:port of the broker, as nodes of this computer reach it; InputError
        `home.missing` before the first start."""
        return self._address(self.port)

    @property
    def control_address(self) -> str:
        """The same for the orchestrator."""
        return self._address(self.control_port)

    def settle_ports(self, port: int, control_port: int) -> "Mesh":
        """The mesh whose broker serves on these ports from now on."""
        if (port, control_port) == (self.port, self.control_port):
            return self
        _write_settings(self.home, port=port, control_port=control_port, timing=self.timing)
        return replace(self, port=port, control_port=control_port)

    def _address(self, port: int | None) -> str:
        if port is None:
            text = f"the mesh of {self.home.root} has not been started yet"
            raise InputError("home.missing", text, hint="imlmesh up starts it")
        return f"{ADDRESS}:{port}"

    def has_removed(self, client: Client, node: str) -> bool:
        """Whether somebody removed this node: it never comes in again, and nobody should wait for it."""
        known = client.get("nodes")["nodes"]
        return any((each["node"], each["admission"]) == (node, "revoked") for each in known)

    def own_node(self, client: Client, name: str, policy: Path | None = None) -> Path:
        """The folder of a node of this home, let in as local_worker when it is new."""
        folder = self.home.node(name)
        if not (folder / "mesh.toml").exists():
            profile, text = policy_text("local_worker", policy)
            # Before its broker has served it has no address; `up` hands it over at each start.
            brokers = (self.broker_address,) if self.port else ()
            place = Place(
                self.authority.mesh,
                name,
                self.authority.orchestrator,
                brokers,
                timing=self.timing,
                join=(f"{ADDRESS}:{last_port(self.home)}",),
            )
            let_in(client, folder, place, profile, text)
        elif policy is not None:
            granted = policy_text("", policy)[0]
            client.post(path_of("nodes", name, "profile"), {"profile": granted})
            write_private(folder / "policy.toml", policy_text("", policy)[1].encode())
        return folder


def let_in(
    client: Client, folder: Path, place: Place, profile: str, policy_text: str | None
) -> None:
    """Make the folder of a node of our own: its keys here, its papers by the orchestrator.

    InputError `node.exists`, `folder.exists`, and what else the orchestrator refuses.
    """
    if folder.exists():
        raise InputError("folder.exists", f"{folder} is there already")
    keys = NewKeys.kept(folder)
    asked = {
        "node": place.id,
        "profile": profile,
        "identity": b64encode(keys.identity).decode(),
        "request": keys.request.decode(),
    }
    told = client.post("nodes", asked)["papers"]
    papers = {name: b64decode(data) for name, data in told.items()}
    write_folder(folder, place, keys, papers, policy_text)


def open_mesh(home: str | Path | None) -> Mesh:
    """The mesh of a home; InputError `home.missing` when there is none, `access.denied` for root
    in the home of somebody else, who could not read what root makes there.
    """
    found = find_home(home, os.environ)
    check_owner(found)
    authority = Authority.open(found)
    port, control_port, timing = _settings(found)
    return Mesh(found, authority, port, timing, control_port)


def check_owner(home: Home) -> None:
    """InputError `access.denied` for root in the home of somebody else."""
    if os.geteuid() == 0 and home.ca.is_dir() and (owner := home.ca.stat().st_uid) != 0:
        text = f"{home.root} is another user's, who could not read what root makes there"
        raise InputError("access.denied", text, hint=f"sudo -u '#{owner}' imlmesh ...")


def control_address(home: Home) -> str:
    """address:port at which the orchestrator reaches the broker, which may not have been started yet.

    InputError `config.invalid`. Unlike `open_mesh` it needs no key.
    """
    return f"{ADDRESS}:{_settings(home)[1] or USUAL_CONTROL_PORT}"


def nodes_address(home: Home) -> str | None:
    """The same of nodes; None in a home without the file that says so."""
    if not _settings_file(home).exists():
        return None
    return f"{ADDRESS}:{_settings(home)[0] or USUAL_PORT}"


def make_mesh(home: str | Path | None, timing: str | None) -> tuple[Mesh, bool]:
    """The mesh of a home, made when it is new; whether it was. `timing`: a name of limits.TIMINGS."""
    found = find_home(home, os.environ)
    if timing is not None and timing not in limits.TIMINGS:
        names = ", ".join(sorted(limits.TIMINGS))
        raise InputError("config.invalid", f"timing must be one of {names}")
    is_new = not found.ca.exists()
    if is_new:
        Authority.create(found, MESH, ORCHESTRATOR)
    path = _settings_file(found)
    if not path.exists():
        _write_settings(found, timing=timing or "wan")
    mesh = open_mesh(home)
    if timing is not None and timing != mesh.timing:
        text = f"the mesh of {found.root} has the timing {mesh.timing}; its nodes rely on it"
        raise InputError("config.invalid", text, hint="use another --home")
    return mesh, is_new


def policy_text(profile: str, policy: Path | None) -> tuple[str, str]:
    """(profile, content of policy.toml): of the file, else the default of `profile`.

    InputErrors `policy.invalid`: all for which a node would refuse to run.
    """
    if policy is None:
        if profile not in _DEFAULT_POLICIES:
            names = ", ".join(PROFILES)
            raise InputError("config.invalid", f"profile must be one of {names}")
        return profile, _DEFAULT_POLICIES[profile]
    try:
        text = policy.read_text(encoding="utf-8")
    except OSError as exc:
        place = TextPlace(file=str(policy))
        raise InputError("policy.invalid", f"{policy}: {exc.strerror}", place=place) from exc
    except UnicodeDecodeError as exc:
        place = TextPlace(file=str(policy))
        raise InputError("policy.invalid", str(exc), place=place) from exc
    return read_policy(policy, policy.parent).profile, text


def machine_name() -> str:
    """This computer's name as an id of a node."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", platform.node().partition(".")[0].lower()).strip("-_")
    if not plain or plain == ORCHESTRATOR:
        return "this-computer"
    return plain[:63]


def _settings(home: Home) -> tuple[int | None, int | None, str]:
    """(port for nodes, port for control, timing)."""
    path = _settings_file(home)
    try:
        table = tomllib.loads(read_file(path).decode())
        port, control_port = table.get("port"), table.get("control_port")
        ports = port and int(port), control_port and int(control_port)
        return *ports, str(table["timing"])
    except (ValueError, KeyError) as exc:
        raise InputError(
            "config.invalid", f"{path}: {exc}", place=TextPlace(file=str(path))
        ) from exc


def _write_settings(home: Home, **fields: str | int) -> None:
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in fields.items()]
    write_private(_settings_file(home), "".join(lines).encode())


def _settings_file(home: Home) -> Path:
    return home.orchestrator / "mesh.toml"
