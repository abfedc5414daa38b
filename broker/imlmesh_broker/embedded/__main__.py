"""`python -m imlmesh_broker.embedded`, with the options of `OPTIONS`, all of which it needs.

The one rule: SIGHUP lets it read anew who may come in, and the exit code says why it ended: 0 told to
end, 3 wrong use or keys that cannot be used. Deliberately absent: defaults; `choice` gives them all.
"""

import argparse
import asyncio
import resource
import signal
import sys
from asyncio import sslproto
from pathlib import Path

from imlmesh_broker.embedded.hub import Hub
from imlmesh_broker.embedded.server import Folder, Listeners
from imlmesh_protocol import limits
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.process import logged, until_told

OPTIONS = {
    "mesh": str,
    "control": str,
    "served": Path,
    "address": str,
    "port": int,
    "control-address": str,
    "control-port": int,
    "log": Path,
}


def main() -> int:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="imlmesh_broker.embedded")
    for name, kind in OPTIONS.items():
        parser.add_argument(f"--{name}", required=True, type=kind)
    options = parser.parse_args()
    set_up_logs(options.log)
    return logged(lambda: asyncio.run(_serve(options)))


async def _serve(options: argparse.Namespace) -> int:
    # By default each connection has 256 KiB for what it reads, before it has said a word.
    sslproto.SSLProtocol.max_size = limits.BROKER_READ_BYTES
    # A connection is a descriptor, and the usual 1,024 are too few for a fleet.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = asyncio.get_running_loop()
    served = Folder(options.served)
    listeners = Listeners(Hub(options.mesh), options.control, served)
    loop.add_signal_handler(signal.SIGHUP, listeners.renew_or_shut)
    listeners.open(
        {
            "node": (options.address, options.port),
            "control": (options.control_address, options.control_port),
        }
    )
    await until_told(loop.create_future())
    listeners.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
