"""Text in files: encodings, lines, and where a limit cuts.

The one rule: a character is never cut in two, and a file that is not text says so.
"""

import codecs
import io

from imlmesh_protocol.errors import DriverError

_CHUNK_CHARS = 1024 * 1024
#: forms of domain names; 64,000 characters take them minutes, in which nothing stops a thread
_OF_NAMES = ("idna", "punycode")


def check_encoding(encoding: str) -> None:
    """`driver.params` unless Python knows it as an encoding of text."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError) as exc:
        raise DriverError("driver.params", f"encoding: {encoding[:80]!r} is not known") from exc
    if codecs.lookup(encoding).name in _OF_NAMES:
        text = f"encoding: {encoding[:80]!r} is for domain names, not for files"
        raise DriverError("driver.params", text)


def encode(content: str, encoding: str) -> tuple[bytes, bytes]:
    """The mark that a file in this encoding begins with, often empty, and the bytes of a text.

    Raises `driver.params` when the encoding has no form for the text.
    """
    check_encoding(encoding)
    try:
        mark, data = "".encode(encoding), content.encode(encoding)
    except UnicodeEncodeError as exc:
        raise DriverError("driver.params", f"content: cannot be written as {encoding}") from exc
    return mark, data.removeprefix(mark)


def decode(data: bytes, limit: int, encoding: str) -> str:
    """The text of the first `limit` bytes; `driver.failed` when it is none."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        # a character that the limit cut in two is left out, not an error
        return decoder.decode(data[:limit], final=len(data) <= limit)
    except UnicodeDecodeError as exc:
        raise DriverError(
            "driver.failed", f"the file is not {encoding} text: {exc.reason}"
        ) from exc


def read_lines(
    file: io.BufferedReader, encoding: str, first: int, last: int | None, limit: int
) -> bytes:
    """The chosen lines as UTF-8; stops soon after `limit` bytes."""
    text = io.TextIOWrapper(file, encoding=encoding, newline="")
    found = bytearray()
    number = 1
    try:
        while (last is None or number <= last) and len(found) <= limit:
            # one line may be larger than memory: it is read in pieces
            piece = text.readline(_CHUNK_CHARS)
            if not piece:
                break
            if number >= first:
                found += piece.encode()
            number += piece.endswith("\n")
    except UnicodeDecodeError as exc:
        raise DriverError(
            "driver.failed", f"the file is not {encoding} text: {exc.reason}"
        ) from exc
    finally:
        text.detach()
    return bytes(found)
