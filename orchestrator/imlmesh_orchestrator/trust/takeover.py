"""Ending the session of another client, by connecting under its id.

The one rule: a clean session that asks for nothing, held for a moment: whoever takes it back within
that time still gets in, so an undisturbed hold is the proof that nobody does. It needs a listener
whose client ids are free, which is control's alone. MQTT 3.1.1, without the client library, since
that library would connect again by itself.
"""

import asyncio
import ssl

from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.link.base import Address

_CONNECT_HEAD = b"\x00\x04MQTT\x04\x02"  # version 3.1.1, clean session, no will
_ACCEPTED = b"\x20\x02\x00\x00"
_DISCONNECT = b"\xe0\x00"


async def take_over(
    address: Address, client_id: str, context: ssl.SSLContext, hold_ms: int
) -> bool:
    """Whether the session was ours for `hold_ms`; False when somebody took it back meanwhile.

    LinkError `link.down` when the broker cannot be reached, `link.refused` when it refuses us.
    """
    host, port = address
    try:
        async with asyncio.timeout(limits.LINK_CONNECT_MS / 1_000):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                writer.write(_connect(client_id))
                answer = await reader.readexactly(len(_ACCEPTED))
                if answer != _ACCEPTED:
                    raise LinkError("link.refused", f"CONNACK {answer.hex()} for {client_id}")
                if await _is_ended(reader, hold_ms):
                    return False
                writer.write(_DISCONNECT)
                await writer.drain()
                return True
            finally:
                writer.close()
    except LinkError:
        raise  # it is an OSError too
    except (OSError, EOFError) as exc:
        raise LinkError("link.down", f"{host}:{port}: {exc!r}") from exc


def _connect(client_id: str) -> bytes:
    """A CONNECT packet; ids have at most 63 characters, so its length is one byte."""
    name = client_id.encode()
    keepalive = limits.KEEPALIVE_S.to_bytes(2, "big")
    body = _CONNECT_HEAD + keepalive + len(name).to_bytes(2, "big") + name
    return bytes((0x10, len(body))) + body


async def _is_ended(reader: asyncio.StreamReader, hold_ms: int) -> bool:
    try:
        async with asyncio.timeout(hold_ms / 1_000):
            return await reader.read(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
