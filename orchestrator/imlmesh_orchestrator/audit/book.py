"""A ledger to be verified, wherever it lies: in the stores of a home, or in an exported folder.

The one rule: what is read is handed on as it is; whether it is true is `verify`'s to say. Deliberately
absent: the orchestrator; its files are read beside it, or when it is stopped.
"""

import base64
import binascii
import json
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
from nacl.signing import VerifyKey

from imlmesh_orchestrator.store.ledgered import readable, told_of
from imlmesh_protocol.errors import InputError, MeshError, Place, StoreError
from imlmesh_runtime.files import read_file
from imlmesh_runtime.paths import Home
from imlmesh_runtime.sqlite import connect
from imlmesh_runtime.trust import HeldTrust, key_id, public_key

ENTRIES, SEALS, WITNESSED, KEYS = "entries.jsonl", "seals.jsonl", "witnessed.jsonl", "keys.json"

_BESIDE = ("at_ms", "actor", "kind", "subject")
_ROWS = """SELECT e.n, e.entry, p.salt, p.payload, e.at_ms, e.actor, e.kind, e.subject
    FROM entries e LEFT JOIN payloads p ON p.n = e.n ORDER BY e.n"""


@dataclass(frozen=True, slots=True)
class Row:
    """One entry as it is stored; without salt and payload when they were erased. `beside` is what
    stands beside the bytes for readers and must say the same; `hashes` are the stored roots of the
    subtrees that end with it, None where a tree is not stored."""

    n: int
    entry: bytes
    salt: bytes | None
    payload: bytes | None
    beside: dict[str, Any]
    hashes: dict[tuple[int, int], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Book:
    """`keys` are raw; `rows` come in the order of n; `seals` are documents by the size that they are
    stored for; `witnessed` are (who, document)."""

    mesh: str
    keys: tuple[bytes, ...]
    rows: Callable[[], Iterator[Row]]
    seals: tuple[tuple[int, bytes], ...]
    witnessed: tuple[tuple[str, bytes], ...]

    def find_key(self, named: bytes) -> VerifyKey | None:
        """The ledger key of that id."""
        return next((public_key(raw) for raw in self.keys if key_id(raw) == named), None)


def book_of(place: Path) -> Book:
    """The ledger of a home's root, or of an exported folder; `home.missing` when it is neither."""
    if (place / ENTRIES).is_file():
        return book_of_export(place)
    return book_of_home(Home(place))


def book_of_home(home: Home) -> Book:
    """From the stores of a home, and the journals of the nodes that live in it; `access.denied` when
    they are another user's."""
    try:
        return _read_home(home)
    except PermissionError as exc:
        if isinstance(exc, MeshError):
            raise
        raise InputError("access.denied", f"{exc.filename} is for another user") from exc


def _read_home(home: Home) -> Book:
    metadata = home.orchestrator / "metadata.db"
    if not home.ca.is_dir():
        raise InputError("home.missing", f"{home.root} holds neither a mesh nor an export")
    mesh = str(tomllib.loads(read_file(home.ca / "mesh.toml").decode())["mesh"])
    keys = HeldTrust(home.ca, mesh).trust.ledger
    seals = _asked(metadata, "SELECT size, seal FROM seals ORDER BY number")
    output = home.orchestrator / "output.db"
    witnessed = _asked(output, "SELECT node, seal FROM witnessed ORDER BY node")
    for journal in sorted(home.nodes.glob("*/journal.db")):
        kept = _asked(journal, "SELECT seal FROM seals WHERE what = 'last'")
        witnessed += [(journal.parent.name, row[0]) for row in kept]
    return Book(
        mesh,
        keys,
        lambda: _rows_of_file(metadata),
        tuple((size if type(size) is int else -1, _blob(seal)) for size, seal in seals),
        tuple(dict.fromkeys((str(who), _blob(seal)) for who, seal in witnessed)),
    )


def _blob(value: Any) -> bytes:
    """A column that we only ever fill with bytes. Whoever changed it could put anything there, and then
    it is nothing that verifies."""
    return value if type(value) is bytes else repr(value).encode()


def _asked(path: Path, sql: str) -> list[Any]:
    """The rows of a file; none of one that was never made, or never had such a table."""
    if not path.exists():
        return []
    try:
        with closing(connect(path, read_only=True)) as database:
            return list(database.execute(sql).fetchall())
    except sqlite3.OperationalError as exc:
        if "no such table" in str(exc):
            return []
        raise StoreError("store.failed", f"{path}: {exc}") from exc
    except sqlite3.Error as exc:
        raise StoreError("store.corrupt", f"{path}: {exc}") from exc


def _rows_of_file(path: Path) -> Iterator[Row]:
    if not path.exists():
        return
    with closing(connect(path, read_only=True)) as database:
        database.text_factory = lambda data: data.decode(errors="replace")
        try:
            for n, entry, salt, payload, *words in database.execute(_ROWS):
                told = [each if type(each) in (int, str) else repr(each) for each in words]
                beside = dict(zip(_BESIDE, told, strict=True))
                salt, payload = (None if each is None else _blob(each) for each in (salt, payload))
                yield Row(n, _blob(entry), salt, payload, beside, _hashes_at(database, n))
        except sqlite3.Error as exc:
            raise StoreError("store.corrupt", f"{path}: {exc}") from exc


def _hashes_at(database: sqlite3.Connection, n: int) -> dict[tuple[int, int], bytes]:
    """The stored roots of the subtrees that leaf n (from 1) completes."""
    places = [(level, (n >> level) - 1) for level in range((n & -n).bit_length())]
    found = {}
    for place in places:
        row = database.execute("SELECT hash FROM hashes WHERE level = ? AND at = ?", place)
        found[place] = next(row, (b"",))[0]
    return found


def book_of_export(folder: Path) -> Book:
    """From what `write_export` wrote; `config.invalid` with file and line where it is no JSON of ours."""
    try:
        named = json.loads(read_file(folder / KEYS))
        mesh, keys = str(named["mesh"]), tuple(bytes.fromhex(key) for key in named["ledger"])
    except (ValueError, KeyError, TypeError) as exc:
        place = Place(file=str(folder / KEYS))
        raise InputError("config.invalid", f"no keys of a ledger: {exc!r}", place=place) from exc
    seals = _lines(folder / SEALS, lambda line: (int(line["size"]), _bin(line["seal"])))
    witnessed = _lines(folder / WITNESSED, lambda line: (str(line["node"]), _bin(line["seal"])))
    return Book(
        mesh,
        keys,
        lambda: _lines(folder / ENTRIES, _row_of_line),
        tuple(seals),
        tuple(witnessed),
    )


def _row_of_line(line: dict[str, Any]) -> Row:
    salt, payload = line["salt"], line["payload"]
    return Row(
        int(line["n"]),
        _bin(line["entry"]),
        None if salt is None else _bin(salt),
        None if payload is None else _bin(payload),
        dict(line["told"]),
    )


def _lines(path: Path, read: Callable[[dict[str, Any]], Any]) -> Iterator[Any]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield read(json.loads(line))
                except (ValueError, KeyError, TypeError, binascii.Error) as exc:
                    place = Place(file=str(path), line=number, column=1)
                    text = f"not a line of an export: {exc!r}"
                    raise InputError("config.invalid", text, place=place) from exc
    except OSError as exc:
        raise InputError("config.invalid", f"{path}: {exc.strerror}") from exc


def _bin(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def beside_of(entry: dict[str, Any], payload: bytes | None) -> dict[str, Any]:
    """What an export says of an entry in words, beside its bytes."""
    told = {name: entry[name] for name in _BESIDE}
    if payload is not None:
        told |= {"cause": msgpack.unpackb(payload)["cause"], "rows": readable(told_of(payload))}
    return told


def write_export(book: Book, folder: Path) -> int:
    """Write entries, seals, what was witnessed and the public keys into a new folder; how many entries.

    InputError `folder.exists` when something is there; `config.invalid` where nothing can be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as exc:
        raise InputError("folder.exists", f"{folder} is there already") from exc
    except OSError as exc:
        raise InputError("config.invalid", f"{folder}: {exc.strerror}") from exc
    keys = {"mesh": book.mesh, "ledger": [key.hex() for key in book.keys]}
    (folder / KEYS).write_text(json.dumps(keys) + "\n", encoding="utf-8")
    seals = ({"size": size, "seal": _text(document)} for size, document in book.seals)
    _write_lines(folder / SEALS, seals)
    named = ({"node": who, "seal": _text(document)} for who, document in book.witnessed)
    _write_lines(folder / WITNESSED, named)
    return _write_lines(folder / ENTRIES, map(_line_of, book.rows()))


def _line_of(row: Row) -> dict[str, Any]:
    try:
        told = beside_of(msgpack.unpackb(row.entry), row.payload)
    except (ValueError, KeyError, TypeError, msgpack.UnpackException):
        told = row.beside  # it is no entry: whoever verifies the export says so
    return {
        "n": row.n,
        "entry": _text(row.entry),
        "salt": None if row.salt is None else _text(row.salt),
        "payload": None if row.payload is None else _text(row.payload),
        "told": told,
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _write_lines(path: Path, lines: Any) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count
