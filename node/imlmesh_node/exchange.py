"""One question to the join endpoint of a mesh: a TLS connection, a request, an answer.

The one rule: the body is made when it is known whose certificate the server showed, since a proof is
bound to that. Everything read has a limit, and all of it a time. Deliberately absent: what is asked.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.errors import CODES, InputError, LinkError, MeshError, TrustError
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_runtime.link.address import address_text
from imlmesh_runtime.link.base import Address

_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID

#: gets the server's certificate as DER, returns the body
MakeBody = Callable[[bytes], Mapping[str, Any]]


async def exchange(
    address: Address, context: ssl.SSLContext, path: str, make_body: MakeBody | None = None
) -> Any:
    """The decoded answer to GET, or to POST with a body.

    LinkError `join.unreachable`, `clock.behind`; TrustError `join.pin` when the server is not who
    `context` wants; and what the mesh itself refuses, under its own code.
    """
    where = address_text(*address)
    try:
        async with asyncio.timeout(limits.JOIN_CONNECTION_MS / 1000):
            status, answer = await _ask(address, context, path, make_body)
    except MeshError:
        raise  # of `make_body`, or of the answer: some are ValueErrors or OSErrors too
    except ssl.SSLCertVerificationError as exc:
        if exc.verify_code == _NOT_YET_VALID:
            raise LinkError("clock.behind", f"{where}: {exc.verify_message}") from exc
        raise TrustError("join.pin", f"{where} is not the mesh's: {exc.verify_message}") from exc
    except TimeoutError as exc:
        raise LinkError("join.unreachable", f"{where} does not answer") from exc
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or "no answer of a mesh"
        raise LinkError("join.unreachable", f"{where}: {reason}") from exc
    if status != 200:
        raise _refusal(answer)
    return answer


async def _ask(
    address: Address, context: ssl.SSLContext, path: str, make_body: MakeBody | None
) -> tuple[int, Any]:
    host, port = address
    reader, writer = await asyncio.open_connection(
        host, port, ssl=context, limit=limits.JOIN_HEAD_BYTES
    )
    try:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        body = b"" if make_body is None else pack(dict(make_body(certificate)))
        method = "GET" if make_body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nhost: {address_text(host, port)}\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (each.partition(":") for each in lines)}
        size = int(fields.get("content-length", "-1"))
        if not 0 <= size <= limits.JOIN_ANSWER_BYTES:
            raise ValueError("no length that an answer has")
        status = first.split(" ")[1:2]
        if not status or not status[0].isdecimal():
            raise ValueError("no status that an answer has")
        return int(status[0]), unpack(await reader.readexactly(size))
    finally:
        writer.close()


def _refusal(answer: Any) -> MeshError:
    """What the mesh said; a code of a newer version becomes an internal error."""
    found = answer if type(answer) is dict else {}
    code, message = found.get("code"), str(found.get("message"))[: limits.FAULT_CHARS]
    if code not in CODES:
        return MeshError("internal", f"refused as {str(code)[:80]}: {message}")
    made_by = {"input": InputError, "peer": TrustError}.get(CODES[code].blame, LinkError)
    return made_by(code, message)
