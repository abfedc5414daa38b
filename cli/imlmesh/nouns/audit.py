"""`imlmesh audit`: the ledger of what was decided, and whether it is whole."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "Read the ledger, and find out whether anybody changed it.",
    """\
imlmesh audit list --since 1d --subject r-1042
imlmesh audit verify
imlmesh audit export ledger-2026-03""",
)
Place = Annotated[
    Path | None,
    typer.Argument(
        metavar="PLACE", help="An exported folder, or the home of a stopped orchestrator."
    ),
]


@verb(
    app,
    """\
imlmesh audit list                              the newest entries
imlmesh audit list --since 7d --kind approval-closed
imlmesh audit list --actor pi-garden --limit 200 -o jsonl""",
    "list",
)
def list_ledger(
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From when: 1h (ago), 14:05, 2026-03-01.")
    ] = None,
    kind: Annotated[str, typer.Option(metavar="KIND", help="Such as run-created.")] = "",
    actor: Annotated[str, typer.Option(metavar="NAME", help="Who did it: a person, a node.")] = "",
    subject: Annotated[
        str, typer.Option(metavar="NAME", help="What it is about: a run, or how its id begins.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")] = 50,
) -> None:
    """List entries, the newest last."""
    from imlmesh.auditing import print_entries, since_ms_of
    from imlmesh.client import Client
    from imlmesh.render import emit

    asked: dict[str, Any] = {"since_ms": since_ms_of(since), "limit": limit}
    asked |= {"kind": kind, "actor": actor, "subject": subject}
    found = Client.connect(settings.home).get("audit", **asked)
    if not emit(found, "entries"):
        print_entries(found["entries"])


@verb(app, "imlmesh audit show 17\nimlmesh audit show 17 -o json")
def show(
    n: Annotated[int, typer.Argument(min=1, metavar="N", help="Its number in `audit list`.")],
) -> None:
    """Show one entry with all that it tells, and its hashes."""
    from imlmesh.auditing import print_entry
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit

    found = Client.connect(settings.home).get(path_of("audit", str(n)))
    if not emit(found):
        print_entry(found)


@verb(
    app,
    """\
imlmesh audit verify                 the ledger of this home; exit code 1 when it was changed
imlmesh audit verify ledger-2026-03  an exported one, anywhere
imlmesh audit verify -o json""",
)
def verify(place: Place = None) -> Any:
    """Recompute every hash and compare with all seals and with what nodes witnessed."""
    from imlmesh.auditing import opened_book, print_verdict, record_of
    from imlmesh.exits import ExitCode
    from imlmesh.render import emit
    from imlmesh_orchestrator.audit.verify import verify as verified

    verdict = verified(opened_book(place))
    if not emit(record_of(verdict), "findings"):
        print_verdict(verdict)
    return ExitCode.FAILED if verdict.findings else ExitCode.DONE


@verb(app, "imlmesh audit export ledger-2026-03\npython docs/verify_ledger.py ledger-2026-03")
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new one.")],
    place: Place = None,
) -> None:
    """Write entries, seals and public keys into a folder that anybody can verify."""
    from imlmesh.auditing import opened_book
    from imlmesh.render import emit, write
    from imlmesh_orchestrator.audit.book import write_export

    count = write_export(opened_book(place), folder)
    record = {"schema": "imlmesh.audit-export/1", "folder": str(folder), "entries": count}
    if not emit(record):
        write(f"{folder}: {count} entries")


@verb(app, "imlmesh audit acknowledge --reason 'restored the backup of 3 March; a disk died'")
def acknowledge(
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; it stands in the ledger.")
    ],
) -> None:
    """Go on although entries are lost that nodes have witnessed; ends the read-only mode."""
    from imlmesh.client import Client
    from imlmesh.render import counted, emit, write

    found = Client.connect(settings.home).post("audit/acknowledge", {"reason": reason})
    if not emit(found):
        write(f"{counted(found['doubts'], 'doubt')} acknowledged: plans are taken again")
