"""The text of docs/cli.md, which `python docs/pages.py --write` writes.

The one rule: every word of it comes from the command line itself, and a test compares; so the page
cannot say anything else than `--help`.
"""

from typing import Any

from imlmesh.exits import MEANING
from imlmesh.main import NOUNS, build

_HEAD = """\
# The command line

Written from the code by `docs/pages.py`; `imlmesh NOUN VERB --help` says the same.

Data goes to stdout, everything else to stderr. `-o json` prints one object with a `schema`, `-o yaml` the same as YAML,
`-o jsonl` one object a line. Colour obeys `NO_COLOR`, `FORCE_COLOR` and `TERM=dumb`; a state always has a shape and a word beside its colour.
Errors have the form `error[CODE]: what is wrong`, with place and command to try, and the same as data on stderr
with `-o json` or `-o yaml`; `imlmesh docs CODE` explains each code. A time is written `90`, `90s`, `5m` or `1h30m`.

## Exit codes

| code | meaning |
|---|---|
"""


def page() -> str:
    """The whole page."""
    root = build()
    context = root.make_context("imlmesh", [], resilient_parsing=True)
    lines = [_HEAD + "".join(f"| {int(code)} | {text} |\n" for code, text in MEANING.items())]
    shared = [p.get_help_record(context) for p in root.params if p.name in _SHARED]
    lines.append("## Flags of every verb\n\n" + _table(shared))
    for name in NOUNS:
        command = root.get_command(context, name)
        lines.append(f"## imlmesh {name}\n\n{command.help.strip()}\n")
        verbs = getattr(command, "commands", None)
        if verbs is None:
            lines.append(_verb(command, f"imlmesh {name}"))
            continue
        for verb_name, verb in verbs.items():
            path = f"imlmesh {name} {verb_name}"
            lines.append(f"### {path}\n\n{verb.help.strip()}\n\n{_verb(verb, path)}")
    return "\n".join(lines)


def _verb(command: Any, path: str) -> str:
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    text = f"```console\n{command.epilog}\n```\n\nUsage: `{usage}`\n"
    own = [p for p in command.params if p.name not in _SHARED]
    records = [record for p in own if (record := p.get_help_record(context))]
    if records:
        text += "\n" + _table(records)
    return text


def _table(records: list[tuple[str, str]]) -> str:
    rows = (f"| `{_cell(names)}` | {_cell(what)} |\n" for names, what in records)
    return "| | |\n|---|---|\n" + "".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


_SHARED = {"output", "json", "quiet", "verbose", "no_color", "home", "help"}
