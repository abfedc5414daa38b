"""`python -m imlmesh_broker.access --home DIR --to DIR --control ADDRESS:PORT --pid COMMAND ...`

For a broker that systemd runs: brings the files that it serves by in line with what the orchestrator
wrote, lets it read them, and says so in applied.json. The one rule: what is said is in force. The
exit code is 3 when something could not be taken. COMMAND prints the number of the broker's process, 0
while there is none. Deliberately absent: watching; a path unit does that.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from imlmesh_broker.serving import Served, Source
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, TrustError
from imlmesh_protocol.ids import check_name
from imlmesh_runtime.files import read_file
from imlmesh_runtime.link.address import address_of
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.paths import Home
from imlmesh_runtime.process import logged
from imlmesh_runtime.trust import ControlKeys, broker_name


def main(words: list[str] | None = None) -> int:
    """Once through; again as long as the orchestrator writes meanwhile."""
    parser = argparse.ArgumentParser(prog="imlmesh_broker.access")
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--to", required=True, type=Path)
    parser.add_argument("--control", required=True, type=address_of)
    parser.add_argument("--pid", required=True, nargs=argparse.REMAINDER)
    options = parser.parse_args(words)
    set_up_logs()
    return logged(lambda: _bring(Home(options.home), options))


def _bring(home: Home, options: argparse.Namespace) -> int:
    mesh, control = _names(home)
    source = Source(mesh, control, home.ca, home.broker / "access.json")
    served = Served(source, options.to, _write_beside)
    while served.is_changed():
        served.take()
        # even when nothing changed: an earlier one may have ended between writing and telling
        _signal(options.pid)
        _greet(ControlKeys.load(home.ca, mesh), mesh, options.control)
        told = json.dumps({"version": served.access.version}).encode()
        _write_beside(home.broker / "applied.json", told, 0o600)
    return 3 if served.faults else 0


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


def _greet(keys: ControlKeys, mesh: str, place: tuple[str, int]) -> None:
    """A handshake that began after the signal and is done proves that the broker has read all anew,
    for it reads between two packets. Nobody at the port: nobody serves by what was."""
    with contextlib.suppress(ConnectionRefusedError):
        try:
            with (
                socket.create_connection(place, limits.BROKER_START_MS / 1000) as bare,
                keys.context().wrap_socket(bare, server_hostname=broker_name(mesh)),
            ):
                return
        except ConnectionRefusedError:
            raise
        except OSError as exc:
            raise LinkError("broker.failed", f"{place[0]}:{place[1]}: {exc}") from exc


if __name__ == "__main__":
    sys.exit(main())
