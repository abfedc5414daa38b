"""Many rows in few statements: what is stored is what one statement for each row would have stored."""

import random
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest

from imlmesh_node import journal
from imlmesh_orchestrator.store import projections
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_runtime.rows import Many, write_rows

COUNTS = (0, 1, 2, 7, 8, 9, 31, 33, 128, 171, 512, 1_305)
LIFECYCLE = migrations("lifecycle")
TABLE = "CREATE TABLE row (id INTEGER PRIMARY KEY, word TEXT, part REAL)"
INSERT = Many("INSERT INTO row (id, word, part) VALUES")
UPDATE = Many(
    "WITH new (word, part, place) AS (VALUES",
    ") UPDATE row SET word = new.word, part = new.part FROM new WHERE id = new.place",
    one="UPDATE row SET word = ?, part = ? WHERE id = ?",
)
DELETE = Many("DELETE FROM row WHERE id IN (VALUES", ")", one="DELETE FROM row WHERE id = ?")


def filled(count: int) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute(TABLE)
    rows = [(number, f"w{number}", number / 3) for number in range(count)]
    write_rows(database, INSERT, rows)
    return database


def held(database: sqlite3.Connection) -> list[Any]:
    return database.execute("SELECT * FROM row ORDER BY id").fetchall()


@pytest.mark.parametrize("count", COUNTS)
def test_all_rows_are_inserted_and_none_twice(count: int) -> None:
    assert held(filled(count)) == [(number, f"w{number}", number / 3) for number in range(count)]


@pytest.mark.parametrize("count", COUNTS)
def test_rows_are_changed_and_deleted_as_one_by_one(count: int) -> None:
    many, single = filled(2_000), filled(2_000)
    places = random.Random(count).sample(range(2_500), count)  # some of them are not there
    for statement, rows in (
        (UPDATE, [(f"new{place}", None if place % 3 else 0.5, place) for place in places]),
        (DELETE, [(place,) for place in places[::2]]),
    ):
        write_rows(many, statement, rows)
        single.executemany(statement.one, rows)
        assert held(many) == held(single)


def test_rows_may_come_from_anywhere() -> None:
    database = filled(0)
    write_rows(database, INSERT, ((number, "x", None) for number in range(40)))
    write_rows(database, INSERT, {1: (100, "y", 2.5)}.values())
    assert len(held(database)) == 41


def test_a_row_that_does_not_fit_is_an_error_and_the_caller_rolls_back() -> None:
    database = filled(20)
    database.execute("BEGIN")
    with pytest.raises(sqlite3.IntegrityError):
        write_rows(database, INSERT, [(number, "again", None) for number in range(30, 9, -1)])
    database.execute("ROLLBACK")
    assert held(database) == held(filled(20))


@pytest.mark.parametrize("count", [2, 8, 512])
@pytest.mark.parametrize(
    ("statement", "columns", "scripts"),
    [
        (projections._DISPATCH_HELD, 2, LIFECYCLE),
        (projections._DISPATCH_ENDED, 8, LIFECYCLE),
        (journal._SETTLE, 1, journal.MIGRATIONS),
        (journal._START, 1, journal.MIGRATIONS),
        (journal._RESULT, 2, journal.MIGRATIONS),
    ],
)
def test_each_row_is_found_by_its_key(
    statement: Many, columns: int, scripts: Sequence[str], count: int
) -> None:
    database = sqlite3.connect(":memory:", isolation_level=None)
    for script in scripts:
        database.executescript(script)
    marks = ",".join([f"({','.join('?' * columns)})"] * count)
    sql = f"EXPLAIN QUERY PLAN {statement.head} {marks}{statement.tail}"
    plan = [row[3] for row in database.execute(sql, [None] * columns * count)]
    assert any(step.startswith("SEARCH dispatches USING") for step in plan), plan
    assert not any(step.startswith("SCAN dispatches") for step in plan), plan
