"""Verifies an exported ledger of imlmesh without imlmesh: python verify_ledger.py FOLDER [--key HEX].

Needs Python 3.11 and PyNaCl, for Ed25519. docs/ledger.md says what is checked and why.
Exit code 0: whole; 1: findings, one a line; 2: not an export. With --key only seals by that key count:
give the one that you got from somewhere else than the export.
"""

import argparse
import base64
import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path

from nacl.signing import VerifyKey

FIELDS = ["n", "at_ms", "actor", "kind", "subject", "payload", "prev"]
NUMBERS = {0xCA + n: f">{form}" for n, form in enumerate("fdBHIQbhiq")}
#: first byte of what has a length of its own: what it is, and how the length is written
SIZED = {0xC4: "bin B", 0xC5: "bin H", 0xC6: "bin I", 0xD9: "str B", 0xDA: "str H", 0xDB: "str I"}
SIZED |= {0xDC: "list H", 0xDD: "list I", 0xDE: "map H", 0xDF: "map I"}


def unpack(data):
    value, end = read_value(data, 0)
    if end != len(data):
        raise ValueError("bytes are left over")
    return value


def read_value(data, at):
    first, at = data[at], at + 1
    if first < 0x80 or first >= 0xE0:
        return (first if first < 0x80 else first - 256), at
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in NUMBERS:
        size = struct.calcsize(NUMBERS[first])
        return struct.unpack(NUMBERS[first], data[at : at + size])[0], at + size
    if first in SIZED:
        what, form = SIZED[first].split()
        width = struct.calcsize(f">{form}")
        count, at = struct.unpack(f">{form}", data[at : at + width])[0], at + width
    elif first < 0xC0:
        what = "map" if first < 0x90 else "list" if first < 0xA0 else "str"
        count = first & (0x1F if what == "str" else 0x0F)
    else:
        raise ValueError(f"no value begins with {first:#x}")
    if at + count > len(data):
        raise ValueError("cut off")
    if what in ("bin", "str"):
        part = bytes(data[at : at + count])
        return (part if what == "bin" else part.decode()), at + count
    values = []
    for _ in range(count * 2 if what == "map" else count):
        value, at = read_value(data, at)
        values.append(value)
    return (dict(zip(values[::2], values[1::2], strict=True)) if what == "map" else values), at


def sha256(data):
    return hashlib.sha256(data).digest()


def append(peaks, leaf):
    """Add a leaf to [(leaves, hash), ...], the complete subtrees from the largest on; the new root."""
    peaks.append((1, leaf))
    while len(peaks) > 1 and peaks[-1][0] == peaks[-2][0]:
        (count, right), (_, left) = peaks.pop(), peaks.pop()
        peaks.append((count * 2, sha256(b"\1" + left + right)))
    root = peaks[-1][1]
    for _, left in reversed(peaks[:-1]):
        root = sha256(b"\1" + left + root)
    return root


def lines_of(path):
    return map(json.loads, path.open(encoding="utf-8"))


def hexed(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: hexed(item) for name, item in value.items()}
    return [hexed(item) for item in value] if isinstance(value, list) else value


def read_seal(document, mesh, keys):
    try:
        version, kind, key_id, body, signature = unpack(document)
        key = next(key for key in keys if sha256(key)[:8] == key_id)
        signed = (
            b"imlmesh1" + bytes([len(kind)]) + kind.encode() + struct.pack(">I", len(body)) + body
        )
        VerifyKey(key).verify(signed, signature)
        seal = unpack(body)
        if (version, kind, seal["mesh"]) == (1, "seal", mesh):
            return seal
    except Exception as exc:
        raise ValueError(f"not signed by a known key ({type(exc).__name__})") from exc
    raise ValueError("of another ledger")


def check_entries(folder, sizes, find):
    peaks, roots, prev, at_ms, last = [], {0: sha256(b"")}, bytes(32), 0, 0
    runs, blind = {}, False
    for count, line in enumerate(lines_of(folder / "entries.jsonl"), 1):
        n, data, told = line["n"], base64.b64decode(line["entry"]), line["told"]
        if n != last + 1:
            find("gap", f"entry {n} follows entry {last}")
        try:
            entry = unpack(data)
            if list(entry) != FIELDS:
                raise ValueError("fields")
            if entry["n"] != n:
                find("order", f"in the place of entry {n} lies entry {entry['n']}")
            if entry["prev"] != prev:
                find("chain", f"entry {n} does not follow the one before it")
            if entry["at_ms"] < at_ms:
                find("time", f"entry {n} is older than the one before it")
            at_ms = max(at_ms, entry["at_ms"])
            words = {name: entry[name] for name in ("at_ms", "actor", "kind", "subject")}
            if line["payload"] is None:
                blind = True
            else:
                payload = base64.b64decode(line["payload"])
                if (
                    hmac.digest(base64.b64decode(line["salt"]), payload, "sha256")
                    != entry["payload"]
                ):
                    find("payload", f"the payload of entry {n} is not what it commits to")
                held = unpack(payload)
                rows = [dict(zip(held["names"], row, strict=True)) for row in held["rows"]]
                words |= {"cause": held["cause"], "rows": hexed(rows)}
                follow(n, entry, rows, runs, blind, find)
            if words != told:
                find("words", f"what stands beside entry {n} is not what it says")
        except (ValueError, KeyError, TypeError, IndexError, struct.error):
            find("entry", f"entry {n} cannot be read")
        last, prev = n, sha256(b"\0" + data)
        root = append(peaks, prev)
        roots |= {count: root} if count in sizes else {}
    return sum(count for count, _ in peaks), roots


def follow(n, entry, rows, runs, blind, find):
    kind, run = entry["kind"], entry["subject"]
    if kind == "dispatch-planned":
        runs.setdefault(run, set()).update(row["dispatch"] for row in rows)
    elif kind == "result-taken" and not blind:
        for name in {row["dispatch"] for row in rows} - runs.get(run, set()):
            find("intent", f"entry {n} tells a result of {name}, never planned")
    elif kind == "run-ended":
        runs.pop(run, None)


def check(folder, pinned, find):
    named = json.loads((folder / "keys.json").read_text(encoding="utf-8"))
    mesh, keys = named["mesh"], [bytes.fromhex(key) for key in pinned or named["ledger"]]
    heads = []
    for file, whose in (("seals.jsonl", "size"), ("witnessed.jsonl", "node")):
        for line in lines_of(folder / file):
            try:
                seal = read_seal(base64.b64decode(line["seal"]), mesh, keys)
                heads.append((str(line[whose]), file, seal))
            except ValueError as exc:
                find("signature", f"{file}, {line[whose]}: {exc}")
    given_up = [head for _, _, seal in heads for head in seal["breaks"]]
    count, roots = check_entries(folder, {seal["size"] for *_, seal in heads}, find)
    for who, file, seal in heads:
        size, root = seal["size"], seal["root"]
        if roots.get(size) == root or [size, root] in given_up:
            continue
        what = "cut" if size > count else "fork" if file == "witnessed.jsonl" else "root"
        find(what, f"{file}, {who}: {size} signed entries are not here, there are {count}")
    sealed = max((s["size"] for *_, s in heads if roots.get(s["size"]) == s["root"]), default=0)
    return f"{count} entries, {sealed} of them sealed, mesh {mesh}, keys {hexed(keys)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--key", action="append", metavar="HEX")
    given = parser.parse_args()
    findings = []
    try:
        told = check(given.folder, given.key, lambda *found: findings.append(": ".join(found)))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        print(f"not an export of a ledger: {exc!r}", file=sys.stderr)
        return 2
    print(*findings, told, "NOT WHOLE" if findings else "whole", sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
