"""`plan fmt`: a plan in the one form that everybody's plans have.

The one rule: the data and every YAML comment stay, and a file is written whole or not at all.
Deliberately absent: whether the plan is right; `plan check` says that.
"""

from pathlib import Path
from typing import Any

from imlmesh.checking import write_text
from imlmesh.exits import ExitCode
from imlmesh.plan_files import STDIN, name_of, read_plan, write_plan
from imlmesh.render import counted, emit, say, try_line
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.iml.document import Document, parse
from imlmesh_protocol.iml.writing import Form, plan_text
from imlmesh_protocol.iml.yaml_comments import comments_of


def format_file(file: Path, form: Form | None, *, write: bool, check: bool) -> int:
    """Print, or write, or check the tidy form of a plan; FAILED when `check` finds another."""
    document = parse(read_plan(file), name_of(file))
    if not isinstance(document.data, dict):
        place = document.place("")
        raise InputError("plan.field", "a plan is an object of fields", place=place)
    form = form or ("json" if document.format == "json" else "yaml")
    if write and (form != document.format or file == STDIN):
        hint = "print it into another file: imlmesh plan fmt FILE --to FORM > NEW"
        raise InputError("usage", "--write keeps a file and its form", hint=hint)
    record, text = _tidied(document, form)
    changed = record["changed"]
    if write and changed:
        write_plan(file, text, overwrite=True)
    _show(record, None if write or check else text)
    if check and changed:
        say(f"{file} is not tidy:  " + try_line(f"plan fmt {file} --write"))
        return ExitCode.FAILED
    if write or check:
        say(f"wrote {file}" if changed else f"{file} is tidy")
    return ExitCode.DONE


def _tidied(document: Document, form: Form) -> tuple[dict[str, Any], str]:
    comments = comments_of(document) if document.format == "yaml" else None
    text = plan_text(document.data, form, comments)
    if form == "yaml" and len(text.encode()) > limits.PLAN_YAML_BYTES:
        limit = f"{limits.PLAN_YAML_BYTES:,}"
        raise InputError("plan.too_large", f"as YAML the plan has more than {limit} bytes")
    lost = comments.count if comments and form == "json" else 0
    record = {
        "schema": "imlmesh.fmt/1",
        "format": form,
        "changed": text != document.text.content,
        "comments_lost": lost,
    }
    return record, text


def _show(record: dict[str, Any], text: str | None) -> None:
    if emit(record if text is None else {**record, "text": text}):
        return
    if record["comments_lost"]:
        say(f"{counted(record['comments_lost'], 'comment')} left out: JSON has none")
    if text is not None:
        write_text(text)
