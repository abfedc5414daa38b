"""The far end of a serial line, on a pseudo-terminal: a meter of the greenhouse.

The one rule: the near end is a terminal like any other, which pyserial opens by its path. The meter
answers the line `read` with one line of JSON and sends everything else back.
"""

import json
import os
import pty
import threading
import tty

from imlmesh_drivers.iot.twins.world import World

_LINE_BYTES = 4_096  # an endless line is cut there and sent back


class SerialTwin:
    """`path` is what to open; it ends with the process."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._far, near = pty.openpty()
        tty.setraw(near)
        # kept open, so that the far end lives while nobody has the near one
        self._near = near
        self.path = os.ttyname(near)
        threading.Thread(target=self._serve, name="serial twin", daemon=True).start()

    def _serve(self) -> None:
        line = b""
        while data := os.read(self._far, _LINE_BYTES):
            line += data
            *whole, line = line.split(b"\n")
            for text in whole:
                os.write(self._far, self._answer(text))
            if len(line) >= _LINE_BYTES:
                os.write(self._far, line)
                line = b""

    def _answer(self, line: bytes) -> bytes:
        if line.strip() != b"read":
            return line + b"\n"
        now = self._world.readings()
        found = {
            "temperature_c": round(now.temperature_c, 2),
            "humidity": round(now.humidity, 1),
            "soil": round(now.soil, 3),
        }
        return json.dumps(found).encode() + b"\n"
