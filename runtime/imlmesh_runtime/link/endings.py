"""Why a connection ended or never began: what TLS and the system say, as codes of ours.

The one rule: one table for all that may go wrong, so that a reason has one code wherever it shows.
Here is also what a certificate's dates mean to who has no clock to check them by.
"""

import logging
import ssl
from collections.abc import Mapping
from typing import Any

from imlmesh_protocol.errors import LinkError, MeshError

logger = logging.getLogger(__name__)

_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which `ssl` has no name for


def without_clock(context: ssl.SSLContext) -> ssl.SSLContext:
    """The context, which from now on looks at no date: for who learns the time on the connection, and
    asks `Link.check_peer` then."""
    context.verify_flags |= _NO_CHECK_TIME
    return context


def is_valid_at(certificate: Mapping[str, Any], at_ms: int) -> bool:
    """Whether a certificate, as `getpeercert` tells it, is valid at a time in ms since 1970."""
    begin_s, end_s = (ssl.cert_time_to_seconds(certificate[n]) for n in ("notBefore", "notAfter"))
    return begin_s * 1_000 <= at_ms <= end_s * 1_000


def ending(exc: Exception | None, answered: bool) -> MeshError:
    """Why an established connection ended.

    In TLS 1.3 a broker judges our certificate after our side of the handshake is done, so a
    TLS alert before its first answer means that it does not want us.
    """
    if isinstance(exc, ssl.SSLError) and not answered:
        return LinkError("link.refused", f"the broker refused the certificate ({exc.reason})")
    return LinkError("link.down", f"the connection ended: {exc or 'closed by the broker'}")


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
            return LinkError("link.down", f"{address}: no answer in time")
        case OSError():
            return LinkError("link.down", f"{address}: {exc}")
        case _:
            logger.error("unexpected while connecting to %s", address, exc_info=exc)
            return LinkError("link.down", f"{address}: {exc!r}")
