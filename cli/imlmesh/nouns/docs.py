"""`imlmesh docs`: what an error code means and what to do about it."""

from typing import Annotated, Any

import typer

from imlmesh.grammar import lone_verb, verb

app = lone_verb()
_FAULT = {
    "input": "what was said or written",
    "peer": "the sender of a message",
    "here": "this machine or that of the action",
    "mesh": "the connections between machines",
}
_EXITS = "exit-codes"


@verb(
    app,
    """\
imlmesh docs                  the topics
imlmesh docs plan.cycle       one error code
imlmesh docs plan             all codes that begin so
imlmesh docs exit-codes""",
)
def docs(
    topic: Annotated[
        str | None, typer.Argument(metavar="[CODE]", help="An error code, or a topic.")
    ] = None,
) -> None:
    """Explain an error code: what it means, whose fault it is, whether to try again, what to do."""
    from imlmesh.render import emit
    from imlmesh_protocol.errors import CODES

    if topic is None:
        _print_topics()
    elif topic == _EXITS:
        _print_exits()
    elif topic in CODES:
        record = _record(topic)
        if not emit({"schema": "imlmesh.code/1", **record}):
            _print_code(record)
    else:
        _print_family(topic)


def _record(code: str) -> dict[str, Any]:
    from imlmesh.explained import EXAMPLES, MEANS
    from imlmesh_protocol.errors import CODES

    known = CODES[code]
    return {
        "code": code,
        "means": MEANS[code],
        "fault": known.blame,
        "retry": known.retry,
        "try": known.hint,
        "matches": known.builtin,
        "example": EXAMPLES.get(code),
    }


def _print_code(record: dict[str, Any]) -> None:
    from rich.text import Text

    from imlmesh.exits import exit_code_of
    from imlmesh.render import write

    write(Text(record["code"], style="bold"))
    write(f"  {record['means']}")
    write(f"  fault of   {_FAULT[record['fault']]}")
    write(f"  again      {'the same may work later' if record['retry'] else 'the same will fail'}")
    write(f"  try        {record['try'] or '-'}")
    write(f"  retry_on   {record['matches']}")
    write(f"  exit code  {int(exit_code_of(record['code']))}")
    if record["example"]:
        write()
        for line in record["example"].splitlines():
            write(f"    {line}")


def _families() -> dict[str, list[str]]:
    from imlmesh_protocol.errors import CODES

    found: dict[str, list[str]] = {}
    for code in CODES:
        found.setdefault(code.partition(".")[0], []).append(code)
    return found


def _print_topics() -> None:
    from imlmesh.render import Column, emit, say, try_line, write_table

    families = _families()
    topics = [{"topic": family, "codes": codes} for family, codes in families.items()]
    topics.append({"topic": _EXITS, "codes": []})
    if emit({"schema": "imlmesh.topic-list/1", "topics": topics}, "topics"):
        return
    rows = [[str(t["topic"]), ", ".join(t["codes"]) or "what the shell is told"] for t in topics]
    write_table([Column("TOPIC"), Column("CODES", 1)], rows)
    say("one of them: " + try_line("docs plan.cycle"))


def _print_family(topic: str) -> None:
    from difflib import get_close_matches

    from imlmesh.render import Column, emit, write_table
    from imlmesh_protocol.errors import CODES, InputError

    families = _families()
    if topic not in families:
        near = get_close_matches(topic, [*CODES, *families, _EXITS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "imlmesh docs lists the topics"
        raise InputError("usage", f"no topic {topic!r}", hint=hint)
    records = [_record(code) for code in families[topic]]
    if emit({"schema": "imlmesh.code-list/1", "codes": records}, "codes"):
        return
    columns = [Column("CODE"), Column("MEANS"), Column("TRY", 1)]
    write_table(columns, [[r["code"], r["means"], r["try"] or "-"] for r in records])


def _print_exits() -> None:
    from imlmesh.exits import MEANING
    from imlmesh.render import Column, emit, write_table

    codes = [{"exit_code": int(code), "means": text} for code, text in MEANING.items()]
    if not emit({"schema": "imlmesh.exit-code-list/1", "codes": codes}, "codes"):
        rows = [[str(each["exit_code"]), str(each["means"])] for each in codes]
        write_table([Column("EXIT", right=True), Column("MEANS")], rows)
