"""A question to whoever answers at an address: what is no answer of a mesh is a coded error."""

import asyncio
import ssl
from pathlib import Path

import pytest

from imlmesh_node.exchange import exchange
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.errors import MeshError, TrustError
from imlmesh_protocol.limits import JOIN_ANSWER_BYTES, JOIN_HEAD_BYTES
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import unverified_context

EMPTY = b"content-length: 1\r\n\r\n\xc0"


UNREADABLE = pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", "join.unreachable"),
        (b"\r\n\r\n", "join.unreachable"),
        (b"X\r\n" + EMPTY, "join.unreachable"),
        (b"HTTP/1.1 \r\n" + EMPTY, "join.unreachable"),
        (b"HTTP/1.1 two\r\n" + EMPTY, "join.unreachable"),
        ("HTTP/1.1 ²\r\n".encode("latin-1") + EMPTY, "join.unreachable"),
        (b"HTTP/1.1 200 \r\n\r\n", "join.unreachable"),
        (b"HTTP/1.1 200 \r\ncontent-length: -1\r\n\r\n", "join.unreachable"),
        (
            f"HTTP/1.1 200 \r\ncontent-length: {JOIN_ANSWER_BYTES + 1}\r\n\r\n".encode(),
            "join.unreachable",
        ),
        (b"HTTP/1.1 200 \r\n" + b"x" * 2 * JOIN_HEAD_BYTES, "join.unreachable"),
        (b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\n\xc1\xc1", "message.invalid"),
        (b"HTTP/1.1 403 \r\n" + EMPTY, "internal"),
    ],
)


async def test_why_there_is_no_question_is_told_as_it_is(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    Authority.create(home, "home", "main")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.ca / "join.pem", home.ca / "join.key")

    def no_body(shown: bytes) -> dict[str, bytes]:
        raise TrustError("join.pin", "out of date")

    server = await asyncio.start_server(lambda _, writer: None, "127.0.0.1", 0, ssl=context)
    async with server:
        place = server.sockets[0].getsockname()
        with pytest.raises(TrustError, match="out of date"):
            await exchange(place, unverified_context(), "/v1/renew", no_body)


@UNREADABLE
async def test_what_is_no_answer_is_a_coded_error(tmp_path: Path, said: bytes, code: str) -> None:
    home = Home(tmp_path / "h")
    Authority.create(home, "home", "main")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.ca / "join.pem", home.ca / "join.key")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        place = server.sockets[0].getsockname()
        with pytest.raises(MeshError) as caught:
            await exchange(place, unverified_context(), "/v1/trust")
    assert caught.value.code == code
