"""Where everything of a mesh lies on this machine, and how the orchestrator's API is found.

The one rule: a path below the home is built here and nowhere else. Folders are made for their
owner alone. Deliberately absent: what the files hold.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from imlmesh_protocol.errors import InputError, LinkError
from imlmesh_protocol.ids import check_name
from imlmesh_runtime.files import read_file, write_private

SERVICE_HOME = Path("/var/lib/imlmesh")
SERVICE_RUN = Path("/run/imlmesh")
SERVICE_API = SERVICE_RUN / "api.json"
_SOCKET_PATH_BYTES = 100  # Linux allows 107, macOS 103


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of a mesh and its named places."""

    root: Path
    #: where the API listens and says so; None: in `run`
    api_folder: Path | None = None

    @property
    def config(self) -> Path:
        """What the operator set, if anything."""
        return self.root / "orchestrator.toml"

    @property
    def ca(self) -> Path:
        return self.root / "ca"

    @property
    def broker(self) -> Path:
        return self.root / "broker"

    @property
    def orchestrator(self) -> Path:
        return self.root / "orchestrator"

    @property
    def nodes(self) -> Path:
        return self.root / "nodes"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def api_json(self) -> Path:
        return (self.api_folder or self.run) / "api.json"

    @property
    def api_socket(self) -> Path:
        return (self.api_folder or self.run) / "api.sock"

    @property
    def api_token(self) -> Path:
        return (self.api_folder or self.run) / "api.token"

    @property
    def join_json(self) -> Path:
        """Where nodes joined at the last start: {"address", "port"}."""
        return self.run / "join.json"

    @property
    def demo(self) -> Path:
        """Is there when `imlmesh demo` made the mesh of this home."""
        return self.root / "demo"

    def node(self, node_id: str) -> Path:
        """The folder of a node of this machine; `name.invalid` when it is not an id."""
        return self.nodes / check_name("node", node_id)

    def pid_file(self, process: str) -> Path:
        """Where `process` (broker, orchestrator, a node's id) writes its number."""
        return self.run / f"{process}.pid"

    def socket_fits(self) -> bool:
        """False when the system cannot open a socket at so long a path: use loopback and token."""
        return len(os.fsencode(self.api_socket)) <= _SOCKET_PATH_BYTES

    def make(self) -> None:
        """Make the folders that are missing, mode 0700; `ca` and `broker` come with their keys.

        InputError `config.invalid` where that is not possible.
        """
        for folder in (self.root, self.orchestrator, self.nodes, self.run, self.logs):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as exc:
                raise InputError("config.invalid", f"home {folder}: {exc.strerror}") from exc


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """What run/api.json says: a base URL, and the socket or the token file that goes with it."""

    url: str
    socket: str | None = None
    token_file: str | None = None


def find_home(flag: str | Path | None, environ: Mapping[str, str]) -> Home:
    """The home: the flag, else IMLMESH_HOME, else `imlmesh` in the user's data folder."""
    named = flag or environ.get("IMLMESH_HOME")
    if named:
        return Home(Path(named).expanduser().absolute())
    data = environ.get("XDG_DATA_HOME")
    # XDG: a relative path in the variable is to be ignored.
    base = Path(data) if data and Path(data).is_absolute() else Path.home() / ".local/share"
    return Home(base / "imlmesh")


def find_api(home: Home, *, service: Path | None = None) -> ApiAddress:
    """Where the orchestrator listens, from the home or else from the file `service`.

    LinkError `orchestrator.unreachable` when neither file is there, InputError `access.denied`
    when one is for another user, `config.invalid` when one is not readable as an address.
    """
    for path in (home.api_json, service):
        if path is not None and _is_there(path):
            return _read_api(path)
    raise LinkError("orchestrator.unreachable", f"no orchestrator runs for {home.root}")


def write_api(home: Home, address: ApiAddress) -> None:
    """Tell where the orchestrator listens."""
    write_private(home.api_json, json.dumps(asdict(address)).encode())


def _is_there(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as exc:
        raise InputError("access.denied", f"{path} is for another user") from exc


def _read_api(path: Path) -> ApiAddress:
    try:
        record = json.loads(read_file(path))
        return ApiAddress(record["url"], record["socket"], record["token_file"])
    except (ValueError, KeyError, TypeError) as exc:
        raise InputError("config.invalid", f"{path} is not an address: {exc!r}") from exc
