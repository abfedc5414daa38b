"""`python -m imlmesh_broker.access --home DIR --to DIR --control ADDRESS:PORT --pid COMMAND ...`

For a broker that systemd runs: keeps the files that it serves by in line with what the orchestrator
writes, lets it read them, and says so in applied.json. COMMAND prints the number of the broker's
process, 0 while there is none. The one rule: what is said is in force. Deliberately absent: a start for
each change; a path unit of systemd misses what changes while it runs its service.
"""

import argparse
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from imlmesh_broker.serving import Served, Source
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, TrustError
from imlmesh_protocol.ids import check_name
from imlmesh_runtime.files import read_file
from imlmesh_runtime.link.address import address_of
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.notify import READY, notify
from imlmesh_runtime.pairs import key_file
from imlmesh_runtime.paths import Home
from imlmesh_runtime.process import logged
from imlmesh_runtime.trust import HeldTrust, broker_name, client_context

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0  # before a broker that could not be told is told again


def main() -> int:
    """Watch until the process is ended; 3 when nothing can be served."""
    parser = argparse.ArgumentParser(prog="imlmesh_broker.access")
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--to", required=True, type=Path)
    parser.add_argument("--control", required=True, type=address_of)
    parser.add_argument("--pid", required=True, nargs=argparse.REMAINDER)
    options = parser.parse_args()
    set_up_logs()
    return logged(lambda: _watch(Home(options.home), options))


def _watch(home: Home, options: argparse.Namespace) -> int:
    mesh, control = _names(home)
    source = Source(mesh, control, home.ca, home.broker)
    served = Served(source, options.to, _write_beside)
    # also when nothing changed: an earlier one may have ended between writing and telling
    untold = True
    while True:
        if untold or served.is_changed():
            untold = not _tell(home, served, options)
            notify(READY)
        time.sleep(_PAUSE_S if untold else limits.BROKER_WATCH_MS / 1000)


def _tell(home: Home, served: Served, options: argparse.Namespace) -> bool:
    """Whether the broker serves by what is there now; TrustError when it never served by any."""
    served.take()
    try:
        _signal(options.pid)
        _greet(home.ca, served.source.mesh, options.control)
    except LinkError as exc:
        logger.error("the broker was not told who may come in: %s", exc, extra={"code": exc.code})
        return False
    told = json.dumps({"version": served.access.version}).encode()
    _write_beside(home.broker / "applied.json", told, 0o600)
    return True


def _names(home: Home) -> tuple[str, str]:
    """(mesh, orchestrator) as the folder of the CAs says; TrustError `trust.file`."""
    path = home.ca / "mesh.toml"
    try:
        table = tomllib.loads(read_file(path).decode())
        return (
            check_name("mesh", str(table["mesh"])),
            check_name("orchestrator", str(table["orchestrator"])),
        )
    except (ValueError, KeyError) as exc:
        raise TrustError("trust.file", f"{path}: {exc!r}") from exc


def _write_beside(path: Path, data: bytes, mode: int = 0o640) -> None:
    """Write `path` whole or not at all, for owner and group of its folder."""
    folder = path.parent.stat()
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
            os.fsync(descriptor)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _signal(command: list[str]) -> None:
    """SIGHUP to the process that `command` names; LinkError `broker.failed` when that cannot be."""
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, timeout=limits.BROKER_START_MS / 1000
        )
        if number := int(done.stdout):
            os.kill(number, signal.SIGHUP)
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        raise LinkError("broker.failed", f"{command[:1]}: {exc}") from exc


def _greet(ca: Path, mesh: str, place: tuple[str, int]) -> None:
    """A handshake that began after the signal and is done proves that the broker has read all anew,
    for it reads between two packets. Nobody at the port: nobody serves by what was."""
    name = broker_name(mesh)
    cas = HeldTrust(ca, mesh).trust.control_cas
    pem = ca / "control.pem"
    context = client_context(cas, pem, key_file(pem), name)
    try:
        with (
            socket.create_connection(place, limits.BROKER_START_MS / 1000) as bare,
            context.wrap_socket(bare, server_hostname=name),
        ):
            return
    except ConnectionRefusedError:
        return
    except OSError as exc:
        raise LinkError("broker.failed", f"{place[0]}:{place[1]}: {exc}") from exc


if __name__ == "__main__":
    sys.exit(main())
