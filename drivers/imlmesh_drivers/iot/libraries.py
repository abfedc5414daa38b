"""The libraries of pins and buses, which are imported when an action first needs them.

The one rule: which one is missing is said with the param that needs it, and with what installs it.
"""

import contextlib
from collections.abc import Iterator

from imlmesh_protocol.errors import DriverError

#: what no extra brings everywhere (docs/iot.md)
_OF_SYSTEM = {"lgpio": "; with Python 3.13 and newer: apt-get install python3-lgpio"}


@contextlib.contextmanager
def library(field: str, extra: str) -> Iterator[None]:
    """What cannot be imported within becomes `driver.missing`."""
    try:
        yield
    except ImportError as exc:
        name = (exc.name or "").rpartition(".")[2]
        of_system = _OF_SYSTEM.get(name, "")
        text = f"{field}: a library is not installed ({exc}): pip install 'imlmesh[{extra}]'{of_system}"
        raise DriverError("driver.missing", text) from exc
