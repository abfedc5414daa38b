"""Why a connection to the broker ended or never began, as a code: the one table for it.

The one rule: what is unforeseen is logged with its traceback and still gets a code.
"""

import logging
import ssl

from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, MeshError

logger = logging.getLogger(__name__)

_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_CONNACK_UNAVAILABLE = 3


def ending(exc: Exception | None, answered: bool) -> MeshError:
    """Why an established connection ended.

    In TLS 1.3 a broker judges our certificate after our side of the handshake is done, so a
    TLS alert before its first answer means that it does not want us.
    """
    if isinstance(exc, ssl.SSLError) and not answered:
        return LinkError("link.refused", f"the broker refused the certificate ({exc.reason})")
    return LinkError("link.down", f"the connection ended: {exc or 'closed by the broker'}")


def not_admitted(answer: int, text: str, address: str) -> MeshError:
    """The broker's answer to CONNECT, when it is not yes."""
    code = "link.down" if answer == _CONNACK_UNAVAILABLE else "link.refused"
    return LinkError(code, f"{address}: {text}")


def explain(exc: Exception, address: str) -> MeshError:
    """The one table of what may go wrong while connecting."""
    match exc:
        case MeshError():
            return exc
        case ssl.SSLCertVerificationError(verify_code=code) if code == _NOT_YET_VALID:
            return LinkError("clock.behind", f"{address}: {exc.verify_message}")
        case ssl.SSLCertVerificationError():
            return LinkError("link.tls", f"{address}: {exc.verify_message}")
        case ssl.SSLError():
            return LinkError("link.tls", f"{address}: {exc.reason}")
        case TimeoutError():
            return LinkError("link.down", f"{address}: no answer in {limits.LINK_CONNECT_MS} ms")
        case OSError():
            return LinkError("link.down", f"{address}: {exc}")
        case _:
            logger.error("unexpected while connecting to %s", address, exc_info=exc)
            return LinkError("link.down", f"{address}: {exc!r}")
