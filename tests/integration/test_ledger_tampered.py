"""Somebody with access to the files changes the ledger while the orchestrator is stopped.

Each test changes the real files, then asks `imlmesh audit verify` and the independent verifier of an
export: what they say, and their exit codes.
"""

import asyncio
import base64
import contextlib
import importlib.util
import io
import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest

from imlmesh import main, render
from imlmesh_orchestrator.audit.book import book_of
from imlmesh_orchestrator.audit.verify import verify
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.store.ledger import FIELDS, commitment
from imlmesh_protocol import merkle
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.wire.seals import Seal, write_seal
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import load_signer
from ledger_mesh import opened_ledger
from orchestrator_mesh import ME, MESH, action

ROOT = Path(__file__).parents[2]
VERIFIER = ROOT / "docs" / "verify_ledger.py"
WITHIN_S = 60
TRIGGERS = (
    "entries_appended",
    "entries_stay",
    "entries_unchanged",
    "seals_stay",
    "seals_unchanged",
)


@dataclass
class Stopped:
    """The home of a stopped orchestrator, and its metadata.db at an earlier time."""

    home: Home
    earlier: Path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """Two runs; the file was copied between them. Two nodes on the same machine are witnesses."""
    folder = tmp_path_factory.mktemp("ledger")

    async def live() -> Stopped:
        async with opened_ledger(folder, "pi-1", "pi-2") as mesh:
            await mesh.run(action("a"), action("b", after=("a",)))
            await mesh.until(lambda: mesh.witnessed("pi-1", "pi-2"))
            earlier = folder / "earlier.db"
            with (
                closing(sqlite3.connect(mesh.home.orchestrator / "metadata.db")) as database,
                closing(sqlite3.connect(earlier)) as copy,
            ):
                database.backup(copy)
            await mesh.run(*(action(name) for name in "cdefgh"))
            await mesh.until(lambda: mesh.witnessed("pi-1", "pi-2"))
            return Stopped(mesh.home, earlier)

    return asyncio.run(live())


@pytest.fixture
def stopped(original: Stopped, tmp_path: Path) -> Stopped:
    shutil.copytree(original.home.root, tmp_path / "h", symlinks=True)
    return Stopped(Home(tmp_path / "h"), original.earlier)


def tamper(home: Home, change: Callable[[sqlite3.Connection], None]) -> None:
    """Change metadata.db as its owner can."""
    with closing(sqlite3.connect(home.orchestrator / "metadata.db")) as database:
        for trigger in TRIGGERS:
            database.execute(f"DROP TRIGGER {trigger}")
        change(database)
        database.commit()


def recompute(database: sqlite3.Connection) -> None:
    """Make chain, tree and columns fit the entries again: all that needs no key."""
    prev, peaks = bytes(32), merkle.NO_PEAKS
    database.execute("DELETE FROM hashes")
    for n, data in database.execute("SELECT n, entry FROM entries ORDER BY n").fetchall():
        entry = msgpack.unpackb(data) | {"n": n, "prev": prev}
        packed = msgpack.packb({name: entry[name] for name in FIELDS})
        columns = (packed, *(entry[name] for name in ("at_ms", "actor", "kind", "subject")), n)
        database.execute(
            "UPDATE entries SET entry = ?, at_ms = ?, actor = ?, kind = ?, subject = ? WHERE n = ?",
            columns,
        )
        prev = merkle.leaf_hash(packed)
        peaks, made = peaks.append(prev)
        database.executemany("INSERT INTO hashes VALUES (?,?,?)", made)


def change_entry(database: sqlite3.Connection) -> None:
    """Another person submitted the run: the entry, its payload, and what it commits to."""
    [(n, data, salt, payload)] = database.execute(
        """SELECT n, entry, salt, payload FROM entries JOIN payloads USING (n)
        WHERE kind = 'run-created' ORDER BY n LIMIT 1"""
    ).fetchall()
    told = msgpack.unpackb(payload)
    told["rows"][0][told["names"].index("by")] = "somebody else"
    payload = msgpack.packb(told)
    entry = msgpack.unpackb(data) | {"actor": "somebody else", "payload": commitment(salt, payload)}
    database.execute("UPDATE payloads SET payload = ? WHERE n = ?", (payload, n))
    database.execute("UPDATE entries SET entry = ? WHERE n = ?", (msgpack.packb(entry), n))


def swap_entries(database: sqlite3.Connection) -> None:
    (first, one), (second, other) = database.execute(
        "SELECT n, entry FROM entries WHERE kind = 'dispatch-planned' ORDER BY n LIMIT 2"
    ).fetchall()
    database.execute("UPDATE entries SET entry = ? WHERE n = ?", (other, first))
    database.execute("UPDATE entries SET entry = ? WHERE n = ?", (one, second))
    payloads = database.execute(
        "SELECT salt, payload FROM payloads WHERE n IN (?, ?) ORDER BY n", (first, second)
    ).fetchall()
    for n, row in ((first, payloads[1]), (second, payloads[0])):
        database.execute("UPDATE payloads SET salt = ?, payload = ? WHERE n = ?", (*row, n))


def cut_tail(database: sqlite3.Connection) -> None:
    [last] = database.execute("SELECT max(n) FROM entries").fetchone()
    database.execute("DELETE FROM entries WHERE n > ?", (last - 3,))
    database.execute("DELETE FROM payloads WHERE n > ?", (last - 3,))
    recompute(database)


def drop_seals(database: sqlite3.Connection) -> None:
    """Those that the remaining entries do not bear out."""
    leaves = [
        merkle.leaf_hash(row[0])
        for row in database.execute("SELECT entry FROM entries ORDER BY n").fetchall()
    ]
    for number, size, root in database.execute("SELECT number, size, root FROM seals").fetchall():
        if size > len(leaves) or merkle.root_of(leaves[:size]) != root:
            database.execute("DELETE FROM seals WHERE number = ?", (number,))


def typed(*words: str) -> tuple[int, str]:
    """Exit code and output of `imlmesh audit WORDS`, in this process, which has imported it all."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        render.console.cache_clear()
        code = main.run(["audit", *words])
    render.console.cache_clear()
    return code, out.getvalue()


def verified(place: Path, *, home: bool) -> tuple[int, dict[str, Any]]:
    """Exit code and verdict of `imlmesh audit verify`; of a home, or of an export."""
    where = ["--home", str(place)] if home else [str(place)]
    code, out = typed("verify", *where, "-o", "json")
    return code, json.loads(out)


def independent(folder: Path, *more: str) -> tuple[int, list[str]]:
    """Exit code and lines of the verifier that is not ours."""
    done = subprocess.run(
        # isolated, and away from our packages
        [sys.executable, "-I", str(VERIFIER), str(folder), *more],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
        cwd=folder,
    )
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def exported(home: Home) -> Path:
    folder = home.root.parent / "export"
    assert typed("export", str(folder), "--home", str(home.root))[0] == 0
    return folder


def found_by_all(home: Home) -> set[str]:
    """The words of what was found in the home; both verifiers must find the same in an export of it."""
    code, verdict = verified(home.root, home=True)
    words = {finding["what"] for finding in verdict["findings"]}
    assert code == (1 if words else 0)
    assert verdict["intact"] is not bool(words)
    in_export = words - {"hash", "words"}
    folder = exported(home)
    code, of_export = verified(folder, home=False)
    # an export holds neither a stored tree nor columns
    assert {finding["what"] for finding in of_export["findings"]} == in_export
    assert code == (1 if in_export else 0)
    code, lines = independent(folder)
    assert {line.partition(":")[0] for line in lines[:-2]} == in_export
    assert (code, lines[-1]) == ((1, "NOT WHOLE") if in_export else (0, "whole"))
    return words


def test_an_honest_ledger_is_whole(stopped: Stopped) -> None:
    assert found_by_all(stopped.home) == set()
    done = subprocess.run(
        [sys.executable, "-m", "imlmesh", "audit", "verify", "--home", str(stopped.home.root)],
        check=False,
    )
    assert done.returncode == 0, "as a process, too"
    _, verdict = verified(stopped.home.root, home=True)
    assert verdict["witnesses"].keys() == {"pi-1", "pi-2"}
    assert verdict["entries"] == verdict["sealed"] > 10


@pytest.mark.parametrize("seals", ["kept", "dropped"])
def test_a_cut_tail_is_found(stopped: Stopped, seals: str) -> None:
    tamper(stopped.home, cut_tail)
    if seals == "dropped":
        with closing(sqlite3.connect(stopped.home.orchestrator / "metadata.db")) as database:
            drop_seals(database)
            database.commit()
    assert found_by_all(stopped.home) == {"cut"}


@pytest.mark.parametrize("seals", ["kept", "dropped"])
def test_a_changed_entry_with_recomputed_chain_is_found(stopped: Stopped, seals: str) -> None:
    def change(database: sqlite3.Connection) -> None:
        change_entry(database)
        recompute(database)
        if seals == "dropped":
            drop_seals(database)

    tamper(stopped.home, change)
    # where no seal is left in the file, the witnesses still know
    assert found_by_all(stopped.home) == ({"root", "fork"} if seals == "kept" else {"fork"})


def test_a_changed_entry_alone_is_found(stopped: Stopped) -> None:
    tamper(stopped.home, change_entry)
    assert found_by_all(stopped.home) == {"chain", "hash", "root", "fork", "words"}


def test_a_restored_older_file_is_found(stopped: Stopped) -> None:
    shutil.copyfile(stopped.earlier, stopped.home.orchestrator / "metadata.db")
    assert found_by_all(stopped.home) == {"cut"}


def test_swapped_entries_are_found(stopped: Stopped) -> None:
    tamper(stopped.home, swap_entries)
    found = found_by_all(stopped.home)
    assert {"order", "chain", "root", "fork"} <= found


def test_swapped_entries_with_recomputed_chain_are_found(stopped: Stopped) -> None:
    def change(database: sqlite3.Connection) -> None:
        swap_entries(database)
        recompute(database)
        drop_seals(database)

    tamper(stopped.home, change)
    assert "fork" in found_by_all(stopped.home)


def test_a_missing_entry_is_found(stopped: Stopped) -> None:
    tamper(
        stopped.home, lambda database: database.execute("DELETE FROM entries WHERE n = 4") and None
    )
    assert {"gap", "chain", "root"} <= found_by_all(stopped.home)


def test_a_changed_payload_is_found_and_an_erased_one_is_not(stopped: Stopped) -> None:
    def erase(database: sqlite3.Connection) -> None:
        database.execute("DELETE FROM payloads WHERE n = 3")

    tamper(stopped.home, erase)
    assert found_by_all(stopped.home) == set()
    shutil.rmtree(stopped.home.root.parent / "export")
    with closing(sqlite3.connect(stopped.home.orchestrator / "metadata.db")) as database:
        database.execute("UPDATE payloads SET salt = zeroblob(32) WHERE n = 5")
        database.commit()
    assert found_by_all(stopped.home) == {"payload"}


def test_a_forged_seal_is_found(stopped: Stopped) -> None:
    def forge(database: sqlite3.Connection) -> None:
        number, seal = database.execute("SELECT max(number), seal FROM seals").fetchone()
        forged = seal[:-1] + bytes([seal[-1] ^ 1])
        database.execute("UPDATE seals SET seal = ? WHERE number = ?", (forged, number))

    tamper(stopped.home, forge)
    assert found_by_all(stopped.home) == {"signature"}


def test_a_ledger_sealed_anew_by_another_key_is_found(stopped: Stopped) -> None:
    """Who owns every file of this machine can make new keys; what nodes hold is by the old one."""
    other = Home(stopped.home.root.parent / "other")
    Authority.create(other, MESH, ME)
    signer = load_signer(other.ca / "ledger.key")
    shutil.rmtree(stopped.home.ca)
    shutil.copytree(other.ca, stopped.home.ca)

    def seal_anew(database: sqlite3.Connection) -> None:
        change_entry(database)
        recompute(database)
        for number, size in database.execute("SELECT number, size FROM seals").fetchall():
            rows = database.execute("SELECT entry FROM entries WHERE n <= ? ORDER BY n", (size,))
            root = merkle.root_of(merkle.leaf_hash(row[0]) for row in rows)
            new = write_seal(Seal(MESH, size, root, 1), signer.key_id, signer.sign)
            database.execute(
                "UPDATE seals SET root = ?, seal = ? WHERE number = ?", (root, new, number)
            )

    tamper(stopped.home, seal_anew)
    assert found_by_all(stopped.home) == {"signature"}


def test_columns_that_say_something_else_are_found(stopped: Stopped) -> None:
    tamper(
        stopped.home, lambda database: database.execute("UPDATE entries SET actor = 'me'") and None
    )
    _, verdict = verified(stopped.home.root, home=True)
    assert {finding["what"] for finding in verdict["findings"]} == {"words"}


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ("UPDATE entries SET entry = 'hello' WHERE n = 5", "entry"),
        ("UPDATE entries SET entry = 7 WHERE n = 5", "entry"),
        ("UPDATE entries SET actor = CAST(x'ff00fe' AS TEXT) WHERE n = 5", "words"),
        ("UPDATE entries SET subject = x'ff00' WHERE n = 5", "words"),
        ("UPDATE payloads SET salt = 5, payload = 'hello' WHERE n = 5", "payload"),
        ("UPDATE hashes SET hash = 'hello' WHERE level = 0 AND at = 4", "hash"),
        ("UPDATE seals SET seal = 'hello' WHERE number = 1", "signature"),
        ("UPDATE seals SET size = x'ff00' WHERE number = 1", "signature"),
    ],
)
def test_what_is_no_bytes_any_more_is_found_and_ends_no_verifier(
    stopped: Stopped, changed: str, finding: str
) -> None:
    tamper(stopped.home, lambda database: database.execute(changed) and None)
    assert finding in verified_words(stopped.home.root)
    code, lines = independent(exported(stopped.home))
    # an export has no columns and no tree; for which size a seal lies there is not signed
    in_export = finding not in ("words", "hash") and "size" not in changed
    assert (code, lines[-1]) == ((1, "NOT WHOLE") if in_export else (0, "whole"))


def verified_words(root: Path) -> set[str]:
    code, verdict = verified(root, home=True)
    assert code == 1
    return {each["what"] for each in verdict["findings"]}


def test_an_export_that_was_changed_is_found(stopped: Stopped) -> None:
    folder = exported(stopped.home)
    entries = folder / "entries.jsonl"
    lines = entries.read_text().splitlines()
    first = json.loads(lines[0])
    first["told"]["actor"] = "me"
    entries.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    assert independent(folder)[0] == verified(folder, home=False)[0] == 1
    entries.write_text("\n".join(lines[:-2]) + "\n")
    code, found = independent(folder)
    assert (code, found[0].partition(":")[0]) == (1, "cut")
    entries.write_text("{}\n")
    code, found = independent_error(folder)
    assert (code, "not an export" in found) == (2, True)


def independent_error(folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-I", str(VERIFIER), str(folder)],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_seal_by_another_key_does_not_count(stopped: Stopped) -> None:
    folder = exported(stopped.home)
    [key] = json.loads((folder / "keys.json").read_text())["ledger"]
    assert independent(folder, "--key", key)[0] == 0
    code, lines = independent(folder, "--key", "11" * 32)
    assert (code, {line.partition(":")[0] for line in lines[:-2]}) == (1, {"signature"})


def test_the_independent_verifier_is_short_and_uses_nothing_of_ours() -> None:
    text = VERIFIER.read_text()
    assert len(text.splitlines()) <= 200
    imports = {
        line.split()[1].partition(".")[0]
        for line in text.splitlines()
        if line.lstrip().startswith(("import ", "from "))
    }
    assert not any(name.startswith("imlmesh") for name in imports)
    assert imports - sys.stdlib_module_names == {"nacl"}


def test_no_changed_byte_of_an_export_is_overlooked(stopped: Stopped) -> None:
    folder = exported(stopped.home)
    place = importlib.util.spec_from_file_location("verify_ledger", VERIFIER)
    assert place is not None
    assert place.loader is not None
    other = importlib.util.module_from_spec(place)
    place.loader.exec_module(other)

    def found_by_other() -> bool:
        findings: list[str] = []
        try:
            other.check(folder, None, lambda *found: findings.append(found[0]))
        except (OSError, ValueError, KeyError, TypeError):
            return True
        return bool(findings)

    def found_by_us() -> bool:
        try:
            return bool(verify(book_of(folder)).findings)
        except InputError:
            return True

    def decoded(path: Path) -> object:
        """What the file says; None when it says nothing of use."""
        try:
            return [
                {
                    name: base64.b64decode(value)
                    if name in ("entry", "salt", "payload", "seal") and value is not None
                    else value
                    for name, value in json.loads(line).items()
                }
                for line in path.read_text(encoding="utf-8").splitlines()
            ]
        except (ValueError, AttributeError):
            return None

    dice = random.Random(3)
    assert not found_by_us()
    assert not found_by_other()
    changed = 0
    for file in (folder / "entries.jsonl", folder / "seals.jsonl", folder / "witnessed.jsonl"):
        good = file.read_bytes()
        said = decoded(file)
        for _ in range(60):
            at = dice.randrange(len(good))
            file.write_bytes(
                good[:at] + bytes([good[at] ^ 1 << dice.randrange(8)]) + good[at + 1 :]
            )
            if decoded(file) == said:
                continue  # another way to write the same
            changed += 1
            # who witnessed, and for which size a seal lies there, is not signed: ours looks at the size
            if file.name == "entries.jsonl" or _is_signed(good, at):
                assert found_by_us(), (file.name, at)
                assert found_by_other(), (file.name, at)
            else:
                found_by_us(), found_by_other()
        file.write_bytes(good)
    assert changed > 120


def _is_signed(text: bytes, at: int) -> bool:
    """Whether this byte of a line lies in the value of "seal"."""
    line_at = text.rfind(b"\n", 0, at) + 1
    line = text[line_at : text.find(b"\n", at)]
    begin = line.index(b'"seal": "') + len(b'"seal": "')
    return begin <= at - line_at < line.rindex(b'"')
