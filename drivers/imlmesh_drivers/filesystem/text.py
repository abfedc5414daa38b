"""Text in files: encodings, lines, and where a limit cuts.

The one rule: a character is never cut in two, and a file that is not text says so.
"""

import codecs
import io

from imlmesh_protocol.errors import DriverError

_CHUNK_CHARS = 1024 * 1024


def check_encoding(encoding: str) -> None:
    """`driver.params` unless Python knows it as an encoding of text."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError) as exc:
        raise DriverError("driver.params", f"encoding: {encoding[:80]!r} is not known") from exc


def encode(content: str, encoding: str) -> bytes:
    """The bytes of a text; `driver.params` when the encoding has no form for it."""
    check_encoding(encoding)
    try:
        return content.encode(encoding)
    except UnicodeEncodeError as exc:
        raise DriverError("driver.params", f"content: cannot be written as {encoding}") from exc


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
