"""What it takes that systemd runs a node or an orchestrator, as a list of deeds.

The one rule: what can be wrong is looked at before the first deed, and doing all of them again
changes nothing. Deliberately absent: printing; the texts of units, which stand in systemd/.
"""

import os
import shutil
import stat
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from imlmesh.machine import Deed, Machine, copy_private, give, write_file
from imlmesh.mesh import control_address, make_mesh
from imlmesh.shipped import shipped
from imlmesh.units import (
    ACCESS,
    HARDWARE,
    Kind,
    access_text,
    hardware_text,
    is_ours,
    unit_name,
    unit_text,
)
from imlmesh_broker.child import USUAL_CONTROL_PORT, USUAL_PORT
from imlmesh_protocol.errors import InputError, MeshError
from imlmesh_protocol.ids import check_name
from imlmesh_runtime.files import read_file
from imlmesh_runtime.link.address import JOIN_PORT, address_of
from imlmesh_runtime.paths import SERVICE_HOME, Home
from imlmesh_runtime.process import only_one

UNITS = Path("/etc/systemd/system")
NODES = SERVICE_HOME / "nodes"
#: where a package or an administrator puts the unit of the system's broker
_MOSQUITTO = tuple(
    Path(folder, "mosquitto.service")
    for folder in ("/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system")
)
#: what its configuration reads (docs/firmware.md), kept by imlmesh-access.service
_SERVED = Path("/etc/mosquitto/imlmesh")
_USERS: dict[Kind, str] = {"node": "imlmesh-node", "orchestrator": "imlmesh"}
_USERS_FILE = Path("/etc/sysusers.d/imlmesh.conf")
#: hidden from services by ProtectHome
_HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))


def check_reach(file: Path) -> None:
    """Raise `service.interpreter` when the users of services could not read `file`.

    It and what it is a link to must lie where everybody may go, outside of people's folders.
    """
    for path in (file, file.resolve()):
        if any(path.is_relative_to(hidden) for hidden in _HIDDEN):
            raise MeshError("service.interpreter", f"{path}: services do not see people's folders")
        try:
            closed = [up for up in path.parents if not up.stat().st_mode & stat.S_IXOTH]
            if closed or not path.stat().st_mode & stat.S_IROTH:
                text = f"{[*closed, path][0]} is closed to the users of services"
                raise MeshError("service.interpreter", text)
        except OSError as exc:
            raise MeshError("service.interpreter", f"{path}: {exc.strerror}") from exc


def install_orchestrator(
    machine: Machine,
    python: str,
    broker: str | None,
    join: str | None = None,
    *,
    lan: bool = False,
) -> list[Deed]:
    """The deeds for the mesh in the home of services, which is made when there is none.

    `broker` is ADDRESS:PORT; None: the one that the mesh names. `join` is where nodes join; None:
    on this machine alone, or with `lan` from everywhere. With `lan` the network is told by mDNS.
    InputError `config.invalid` for them, `service.foreign` for a unit that somebody else wrote.
    """
    if broker is not None:
        address_of(broker)
    if join is not None:
        address_of(join, "--join", JOIN_PORT)
    if lan:
        from imlmesh_orchestrator.announcing import check_announced

        check_announced(broker)
    home = machine.at(SERVICE_HOME)
    # refuses a path that systemd does not take, before anything is done
    unit_text("orchestrator", python)
    deeds = _foundation(machine)
    if not (home / "ca").is_dir():
        deeds.append(Deed(f"make a mesh in {home}: CA and keys", partial(_make_mesh, home)))
    owner = _USERS["orchestrator"]
    deeds.append(Deed(f"give all in {home} but nodes to {owner}", partial(_own_home, machine)))

    def text() -> str:
        return unit_text(
            "orchestrator", python, broker or control_address(Home(home)), join, lan=lan
        )

    name = unit_name("orchestrator")
    deeds.append(_write_unit(machine, name, text))
    return [*deeds, *_access(machine, python), *_enabled(machine, [name])]


def install_node(
    machine: Machine, python: str, folder: Path | None, *, hardware: bool
) -> list[Deed]:
    """The deeds for the node of `folder`, which moves; None: for those that moved before.

    `hardware` opens pins and buses to all nodes of that machine. InputError `config.invalid`,
    `name.invalid` or `folder.exists` for the folder, `service.foreign` for a unit that somebody
    else wrote.
    """
    text = unit_text("node", python)
    nodes = [_check_folder(machine, folder)] if folder is not None else node_ids(machine)
    if not nodes:
        hint = "imlmesh service install node FOLDER, which `imlmesh node join` made"
        raise InputError("usage", f"{machine.at(NODES)} holds no node yet", hint=hint)
    deeds = _foundation(machine)
    for target in (machine.at(NODES / node) for node in nodes):
        if folder is not None and not target.exists():
            move = partial(_move, machine, folder, target)
            deeds.append(Deed(f"move {folder} to {target}", move))
        else:
            own = partial(_own, machine, target, "node")
            deeds.append(Deed(f"give {target} to {_USERS['node']}", own))
    deeds.append(_write_unit(machine, unit_name("node"), lambda: text))
    if hardware:
        deeds.append(_write_unit(machine, HARDWARE, lambda: hardware_text(machine.groups())))
    return deeds + _enabled(machine, [unit_name("node", node) for node in nodes])


def uninstall(machine: Machine, kind: Kind) -> list[Deed]:
    """The deeds that end a service and remove its unit; empty when there is none.

    Data, users and drop-ins of others stay. InputError `service.foreign`.
    """
    now = ["--now"] if machine.is_this else []
    deeds = [
        Deed(f"stop and disable {unit}", partial(machine.run, "systemctl", "disable", *now, unit))
        for unit in [*installed(machine, kind), *_enabled_access(machine, kind)]
    ]
    folder = machine.at(UNITS)
    names = [unit_name(kind), HARDWARE if kind == "node" else ACCESS]
    for path in (folder / name for name in names):
        if path.exists():
            _check_ours(path)
            deeds.append(Deed(f"remove {path}", partial(_remove, path)))
    return [*deeds, *_reload(machine)] if deeds else []


def installed(machine: Machine, kind: Kind) -> list[str]:
    """The enabled units of a kind; `imlmesh-node@.service` has one for each node."""
    wanted = machine.at(UNITS) / "multi-user.target.wants"
    return sorted(link.name for link in wanted.glob(unit_name(kind, "*")))


def _enabled_access(machine: Machine, kind: Kind) -> list[str]:
    enabled = machine.at(UNITS) / "multi-user.target.wants" / ACCESS
    return [ACCESS] if kind == "orchestrator" and enabled.is_symlink() else []


def node_ids(machine: Machine) -> list[str]:
    """The nodes whose folders are in the home of services."""
    return sorted(path.parent.name for path in machine.at(NODES).glob("[!.]*/mesh.toml"))


def data_of(machine: Machine, kind: Kind) -> Path:
    """Where a service keeps its data."""
    return machine.at(NODES if kind == "node" else SERVICE_HOME)


def _foundation(machine: Machine) -> list[Deed]:
    """Users and folders, which both services need."""
    users = " and ".join(_USERS.values())
    return [
        Deed(f"make the users {users}, by {_USERS_FILE}", partial(_make_users, machine)),
        *(
            Deed(f"make {machine.at(folder)}", partial(_make_folder, machine.at(folder)))
            for folder in (SERVICE_HOME, NODES)
        ),
    ]


def _make_users(machine: Machine) -> None:
    text = shipped("systemd", "sysusers.conf").read_text(encoding="utf-8")
    write_file(machine.at(_USERS_FILE), text)
    machine.run("systemd-sysusers", _USERS_FILE.name)


def _access(machine: Machine, python: str) -> list[Deed]:
    """What tells the system's Mosquitto who may come in, where there is one."""
    if not any(machine.at(unit).exists() for unit in _MOSQUITTO):
        return []
    folder = machine.at(_SERVED)
    return [
        Deed(f"make {folder}", partial(_make_served, machine)),
        _write_unit(machine, ACCESS, partial(access_text, python)),
        *_enabled(machine, [ACCESS]),
    ]


def _make_served(machine: Machine) -> None:
    """What is in it is root's, and readable for Mosquitto."""
    folder = machine.at(_SERVED)
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    os.chown(folder, 0, machine.owner("mosquitto")[1])


def _make_folder(path: Path) -> None:
    """Root's: services pass it, to what is theirs, and can put nothing else there."""
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, 0, 0)
    path.chmod(0o711)


def _check_folder(machine: Machine, folder: Path) -> str:
    """The id of the node of `folder`, which may move."""
    file = folder / "mesh.toml"
    hint = "imlmesh node join makes one"
    if not file.is_file():
        raise InputError("config.invalid", f"{folder} is not the folder of a node", hint=hint)
    try:
        table = tomllib.loads(read_file(file).decode())
    except ValueError as exc:
        raise InputError("config.invalid", f"{file}: {exc}", hint=hint) from exc
    name = check_name("node", str(table.get("id")))
    target = machine.at(NODES / name)
    if target.exists() and not target.samefile(folder):
        hint = f"imlmesh service install node starts that one; {folder} still holds keys"
        raise InputError("folder.exists", f"{target} holds a node already", hint=hint)
    lock = folder / "node.lock"
    if not target.exists() and lock.exists():
        # told before anything is done; it is held when the folder moves
        with only_one(lock, "node.running"):
            pass
    return name


def _move(machine: Machine, folder: Path, target: Path) -> None:
    """Copied under another name first, so that one whole folder is left whatever happens."""
    # a node that still runs from the folder would go on beside its twin
    with only_one(folder / "node.lock", "node.running"):
        new = target.with_name(f".{target.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        copy_private(folder, new)
        _own(machine, new, "node")
        new.rename(target)
        shutil.rmtree(folder)


def _make_mesh(home: Path) -> None:
    """A mesh whose broker is the one of the system, on the usual ports."""
    mesh, _ = make_mesh(home, None)
    mesh.settle_ports(USUAL_PORT, USUAL_CONTROL_PORT)


def _own(machine: Machine, path: Path, kind: Kind) -> None:
    give(path, machine.owner(_USERS[kind]))


def _own_home(machine: Machine) -> None:
    for path in machine.at(SERVICE_HOME).iterdir():
        if path != machine.at(NODES):
            _own(machine, path, "orchestrator")


def _write_unit(machine: Machine, name: str, text: Callable[[], str]) -> Deed:
    path = machine.at(UNITS / name)
    if path.exists():
        _check_ours(path)
    return Deed(f"write {path}", lambda: write_file(path, text()))


def _check_ours(path: Path) -> None:
    if not is_ours(path.read_text(encoding="utf-8", errors="replace")):
        raise InputError("service.foreign", f"{path} was not written by imlmesh")


def _remove(path: Path) -> None:
    path.unlink()
    if path.parent.name.endswith(".d") and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _enabled(machine: Machine, units: list[str]) -> list[Deed]:
    """Start them, now where that is possible and at every boot."""
    what, now = ("enable and start", ["--now"]) if machine.is_this else ("enable", [])
    return _reload(machine) + [
        Deed(f"{what} {unit}", partial(machine.run, "systemctl", "enable", *now, unit))
        for unit in units
    ]


def _reload(machine: Machine) -> list[Deed]:
    reload = Deed("let systemd read its units", partial(machine.run, "systemctl", "daemon-reload"))
    return [reload] if machine.is_this else []
