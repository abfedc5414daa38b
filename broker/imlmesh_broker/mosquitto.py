"""Mosquitto as the broker: found, and configured for one mesh.

The one rule: its files are written anew at every start, so that nothing in them is older than the
code. Deliberately absent: looking after the process; `child` does that.
"""

import os
import pwd
import shutil
from typing import ClassVar

from imlmesh_broker.child import Broker
from imlmesh_broker.config import acl_text, config_text
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.files import write_private


class Mosquitto(Broker):
    """Mosquitto of the system."""

    program: ClassVar[str] = "mosquitto"

    def command(self) -> list[str]:
        """LinkError `broker.missing` when it is not installed."""
        binary = find_mosquitto()
        folder = self.place.folder
        write_private(folder / "mesh.acl", acl_text(self.mesh, self.control).encode())
        text = config_text(
            folder,
            self.place.clients(),
            host=self.place.host,
            port=self.port,
            user=pwd.getpwuid(os.geteuid()).pw_name,
        )
        write_private(folder / "mosquitto.conf", text.encode())
        return [binary, "-c", str(folder / "mosquitto.conf")]


def find_mosquitto() -> str:
    """The program's path; LinkError `broker.missing` when it is not installed."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise LinkError("broker.missing", "mosquitto is not installed")
    return found
