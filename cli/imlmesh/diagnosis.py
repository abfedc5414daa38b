"""How an error looks: code, what is wrong, file:line:column, the marked line, what to try.

The one rule: all errors are shown at once, and each has a JSON twin with the same content. A
traceback is for -v alone. Deliberately absent: which errors there are.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from imlmesh.foreign import as_json, as_yaml, printable
from imlmesh.settings import settings
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CODES, InputErrors, MeshError

_BOLD, _RED, _YELLOW, _BLUE, _OFF = "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[34m", "\x1b[0m"


def show_error(exc: MeshError) -> None:
    """Show one error, or all of InputErrors."""
    errors = exc.errors if isinstance(exc, InputErrors) else (exc,)
    show_records([error.as_record() for error in errors], getattr(exc, "warnings", ()))
    if settings.verbose:
        traceback.print_exception(exc)


def show_records(
    errors: Sequence[Mapping[str, Any]], warnings: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Show error records (`MeshError.as_record`) on stderr, warnings first."""
    if settings.output != "table":
        twin = {"schema": "imlmesh.error/1", "errors": list(errors), "warnings": list(warnings)}
        text = as_yaml(twin) if settings.output == "yaml" else as_json(twin) + "\n"
        _print(text)
        return
    shown = [("warning", record) for record in warnings if not settings.quiet]
    shown += [("error", record) for record in errors]
    width = shutil.get_terminal_size((100, 24)).columns
    blocks = ["\n".join(format_record(level, record, width)) for level, record in shown]
    _print("\n\n".join(blocks) + "\n")


def _print(text: str) -> None:
    # the exit code says it too, when nobody reads any more
    with contextlib.suppress(BrokenPipeError):
        print(text, end="", file=sys.stderr)


def format_record(level: str, record: Mapping[str, Any], width: int) -> list[str]:
    """The lines of one error or warning for a window of `width` columns."""
    colour = _RED if level == "error" else _YELLOW
    label = _styled(f"{level}[{record['code']}]", _BOLD + colour)
    lines = [f"{label}: {printable(record['message'])}"]
    file, line = record.get("file"), record.get("line")
    if line is not None:
        lines.append(f"  --> {printable(file or '<plan>')}:{line}:{record.get('column', 1)}")
        lines += _source(record, width)
    elif file or record.get("pointer"):
        lines.append(printable(f"  --> {file or ''}{record.get('pointer', '')}"))
    if record.get("hint"):
        lines.append(f"  try: {printable(record['hint'])}")
    return lines


def write_report(exc: BaseException) -> Path:
    """A file with the traceback of an error of our own, and what it needs to be understood."""
    from importlib.metadata import version

    text = "".join(traceback.format_exception(exc))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    # The words of the command may hold what is private: they are not written.
    head = f"imlmesh {version('imlmesh')}\npython {sys.version}\n\n"
    descriptor, name = tempfile.mkstemp(prefix=f"imlmesh-report-{stamp}-", suffix=".txt")
    with os.fdopen(descriptor, "w") as file:
        file.write(head + text)
    return Path(name)


def error_of(record: Mapping[str, Any]) -> MeshError:
    """The error that a record from the API tells of; a code of a newer version becomes `internal`."""
    from imlmesh_protocol.errors import Place

    code = str(record.get("code"))
    known = code if code in CODES else "internal"
    place = Place(**{name: record[name] for name in Place.__slots__ if name in record})
    text = str(record.get("message", code))
    hint = record.get("hint")
    return MeshError(known, text, place=place if place != Place() else None, hint=hint)


@cache
def _file_lines(file: str) -> tuple[str, ...]:
    path = Path(file)
    try:
        if path.stat().st_size > limits.PLAN_BYTES:
            return ()
        return tuple(path.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return ()


def _source(record: Mapping[str, Any], width: int) -> list[str]:
    lines = _file_lines(str(record.get("file"))) if record.get("file") else ()
    number = record["line"]
    if not 0 < number <= len(lines):
        return []
    # Everything that is not one column wide would move the caret.
    text = printable(lines[number - 1].replace("\t", " "))
    start = min(record.get("column", 1) - 1, len(text))
    same_line = record.get("end_line") == number
    end = record.get("end_column", start + 2) - 1 if same_line else len(text)
    margin = f"{number} | "
    room = max(20, width - len(margin) - 1)
    if end > room:
        # A long line is shown around its marked place.
        cut = max(0, start - 10)
        text, start, end = "…" + text[cut + 1 :], start - cut, end - cut
    text, end = text[:room], min(end, room)
    caret = "^" * max(1, end - start)
    empty = " " * (len(margin) - 2) + "| "
    return [
        _styled(margin, _BLUE) + text,
        _styled(empty, _BLUE) + " " * start + _styled(caret, _BOLD + _RED),
    ]


def _styled(text: str, style: str) -> str:
    forced = bool(os.environ.get("FORCE_COLOR"))
    plain = settings.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or not (forced or sys.stderr.isatty()):
        return text
    return f"{style}{text}{_OFF}"
