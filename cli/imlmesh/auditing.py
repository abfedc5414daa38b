"""The ledger on the command line: which one is meant, and how entries and a verdict are told.

The one rule: verifying reads files and asks nobody, so it needs no orchestrator and believes none.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imlmesh.foreign import as_json
from imlmesh.render import Column, counted, say, write, write_table
from imlmesh.settings import settings
from imlmesh.spans import at_ms_of
from imlmesh_orchestrator.audit.book import Book, book_of, book_of_home
from imlmesh_orchestrator.audit.verify import Verdict
from imlmesh_runtime.paths import SERVICE_HOME, Home, find_home

_TOLD_CHARS = 200


def since_ms_of(text: str | None) -> int:
    """`--since` in ms; 0 without."""
    return 0 if text is None else at_ms_of(text, time.time_ns() // 1_000_000)


def opened_book(place: Path | None) -> Book:
    """The ledger at `place`, else that of the home, else that of the machine's service."""
    if place is not None:
        return book_of(place)
    home = find_home(settings.home, os.environ)
    is_named = settings.home or os.environ.get("IMLMESH_HOME")
    if not is_named and not home.ca.is_dir() and (SERVICE_HOME / "ca").is_dir():
        home = Home(SERVICE_HOME)
    return book_of_home(home)


def print_entries(entries: Sequence[Mapping[str, Any]]) -> None:
    """A table, one line for each entry."""
    if not entries:
        say("no such entries")
        return
    columns = [
        Column("N", right=True),
        Column("TIME"),
        Column("KIND"),
        Column("ACTOR", 1),
        Column("SUBJECT", 1),
        Column("TELLS", 2),
    ]
    rows = [
        [str(e["n"]), _time(e["at_ms"]), e["kind"], e["actor"], e["subject"], _told(e)]
        for e in entries
    ]
    write_table(columns, rows)


def print_entry(entry: Mapping[str, Any]) -> None:
    """Everything of one entry."""
    write(f"entry      {entry['n']}   {entry['kind']}   {_time(entry['at_ms'])}")
    write(f"actor      {entry['actor']}")
    write(f"subject    {entry['subject']}")
    write(f"cause      {entry['cause'] or '-'}")
    write(
        f"sealed     {'by the seal of ' + str(entry['sealed_by']) if entry['sealed_by'] else 'not yet'}"
    )
    for name in ("prev", "commitment", "leaf"):
        write(f"{name:<10} {entry[name]}")
    if entry["erased"]:
        write("its payload was erased")
        return
    for told in entry["told"]:
        write(as_json(told, 2))


def _told(entry: Mapping[str, Any]) -> str:
    if entry["erased"]:
        return "(erased)"
    first, *more = entry["told"]
    text = " ".join(f"{name}={as_json(value)}" for name, value in first.items())
    return f"{text[:_TOLD_CHARS]}{f' and {len(more)} more' if more else ''}"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def record_of(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON."""
    return {
        "schema": "imlmesh.audit-verdict/1",
        "mesh": verdict.mesh,
        "intact": not verdict.findings,
        "entries": verdict.entries,
        "root": verdict.root.hex(),
        "sealed": verdict.sealed,
        "erased": verdict.erased,
        "witnesses": verdict.witnesses,
        "findings": [asdict(finding) for finding in verdict.findings],
        "more": verdict.more,
        "notes": verdict.notes,
    }


def print_verdict(verdict: Verdict) -> None:
    """What is wrong first, then how much was looked at."""
    for finding in verdict.findings:
        write(f"✖ {finding.what}: {finding.text}")
    if verdict.more:
        write(f"✖ and {verdict.more} more")
    if not verdict.findings:
        write("✔ the ledger is whole")
    write(f"mesh       {verdict.mesh}")
    write(
        f"entries    {verdict.entries}   sealed {verdict.sealed}   root {verdict.root.hex()[:16]}"
    )
    held = ", ".join(f"{who} ({size})" for who, size in sorted(verdict.witnesses.items()))
    write(f"witnesses  {held or 'none'}")
    for note in verdict.notes:
        say(f"note: {note}")
    if verdict.findings:
        found = counted(len(verdict.findings) + verdict.more, "finding")
        say(f"{found}: keep these files as evidence, and compare with an export or a backup")
