"""`python -m imlmesh_broker.embedded --mesh ID --folder DIR --ca FILE --address IP --port N --log FILE`.

The one rule: the exit code says it: 0 told to end, 3 wrong use or keys that cannot be used.
"""

import argparse
import asyncio
import resource
import sys
from pathlib import Path

from imlmesh_broker.embedded.server import serve, tls_context
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.process import logged, until_told


def main() -> int:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="imlmesh_broker.embedded")
    kinds = {"mesh": str, "folder": Path, "ca": Path, "address": str, "port": int, "log": Path}
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", required=True, type=kind)
    options = parser.parse_args()
    set_up_logs(options.log)
    return logged(lambda: asyncio.run(_serve(options)))


async def _serve(options: argparse.Namespace) -> int:
    # A connection is a descriptor, and the usual 1,024 are too few for a fleet.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    context = tls_context(options.folder, options.ca)
    server = await serve(options.mesh, context, options.address, options.port)
    await until_told(asyncio.get_running_loop().create_future())
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
