"""The boundary between drivers and everybody else: foreign exceptions become coded errors.

The one rule: this table is the only place that knows which exception means which code; a
subclass stands before its base. Errors of our own tree pass unchanged.
"""

import errno

from imlmesh_protocol.errors import (
    DriverDenied,
    DriverError,
    DriverNotFound,
    DriverTimeout,
    MeshError,
)

#: what code of others may raise that must not end us: `sys.exit` means its process, not ours
FOREIGN_ERRORS = (Exception, SystemExit)

FOREIGN: tuple[tuple[type[BaseException], type[DriverError], str], ...] = (
    (FileNotFoundError, DriverNotFound, "driver.not_found"),
    (PermissionError, DriverDenied, "driver.denied"),
    (TimeoutError, DriverTimeout, "driver.timeout"),
    (NotADirectoryError, DriverError, "driver.failed"),
    (IsADirectoryError, DriverError, "driver.failed"),
    (FileExistsError, DriverError, "driver.failed"),
    (OSError, DriverError, "driver.unavailable"),
    (ImportError, DriverError, "driver.missing"),
    (Exception, DriverError, "driver.failed"),
    (SystemExit, DriverError, "driver.failed"),
)

#: of an OSError that says more than its class
_BY_NUMBER: dict[int | None, tuple[type[DriverError], str]] = {
    # what a hardened service has read-only, for example
    errno.EROFS: (DriverDenied, "driver.denied"),
    errno.ENOSPC: (DriverError, "store.full"),
    errno.EDQUOT: (DriverError, "store.full"),
}

#: what an error becomes again on the other side of a pipe
_CLASSES: dict[str, type[DriverError]] = {
    "driver.timeout": DriverTimeout,
    "driver.denied": DriverDenied,
    "driver.not_found": DriverNotFound,
    "policy.path": DriverDenied,
    "policy.command": DriverDenied,
    "policy.env": DriverDenied,
    "policy.process": DriverDenied,
    "policy.pin": DriverDenied,
    "policy.bus": DriverDenied,
    "policy.broker": DriverDenied,
    "mqtt.refused": DriverDenied,
}


def coded(exc: Exception | SystemExit) -> MeshError:
    """The error to raise from `exc`; `exc` itself when it is one of ours."""
    if isinstance(exc, MeshError):
        return exc
    text = f"{type(exc).__name__}: {exc}"[:2000]
    if isinstance(exc, OSError) and exc.errno in _BY_NUMBER:
        error, code = _BY_NUMBER[exc.errno]
        return error(code, text)
    for foreign, error, code in FOREIGN:
        if isinstance(exc, foreign):
            return error(code, text)
    raise exc


def from_code(code: str, message: str) -> DriverError:
    """The error that a child reported."""
    return _CLASSES.get(code, DriverError)(code, message)
