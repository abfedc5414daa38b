"""`plan check` on this computer: what is wrong with a plan, and what repair can do about it.

The one rule: the repaired plan goes through the same checks as any other, and everything that
was changed is shown. Deliberately absent: the orchestrator; --mesh asks it.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imlmesh.exits import ExitCode, exit_code_of
from imlmesh.plan_files import STDIN, name_of, read_plan, read_plan_text, write_plan
from imlmesh.settings import settings
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, MeshError
from imlmesh_protocol.iml.document import parse
from imlmesh_protocol.iml.validate import Report, validate
from imlmesh_runtime.paths import find_home

#: repairs of one kind that are listed; a plan in other quotes has thousands
_SHOWN_OF_A_KIND = 5


def check_file(file: Path) -> dict[str, Any]:
    """The record of a check: plan_id, digest, waves, errors, warnings."""
    from imlmesh_drivers.registry import shipped_manifest

    try:
        document = parse(read_plan(file), name_of(file))
        report = validate(document, [shipped_manifest()], max_actions=_most_actions())
    except InputErrors as exc:
        report = Report(None, list(exc.errors), [])
    except InputError as exc:
        report = Report(None, [exc], [])
    return _record(report)


def check_repaired(file: Path) -> tuple[dict[str, Any], str | None]:
    """The record with `repairs` and `correction`, and the repaired text, if there is one.

    `correction` is a text for the plan's author; None when nothing is wrong.
    """
    from imlmesh_drivers.registry import shipped_manifest
    from imlmesh_protocol.iml.correction import correction
    from imlmesh_protocol.iml.repair import repair

    text, manifests = read_plan_text(file), [shipped_manifest()]
    repaired = None
    losses: Sequence[MeshError] = ()
    try:
        repaired = repair(text, name_of(file))
        losses = repaired.losses
        report = validate(repaired.document, manifests, max_actions=_most_actions())
    except InputErrors as exc:
        report = Report(None, list(exc.errors), [])
    except InputError as exc:
        report = Report(None, [exc], [])
    record = _record(report, losses)
    record["repairs"] = [one.as_record() for one in repaired.repairs] if repaired else []
    record["correction"] = None
    if report.errors or losses:
        # a field that is ignored may be one that asks a person first
        ignored = [one for one in report.warnings if one.code == "plan.unknown_field"]
        document = repaired.document if repaired else None
        wrong = [*report.errors, *ignored]
        record["correction"] = correction(text, wrong, losses, document, manifests)
    return record, repaired.text if repaired else None


def _most_actions() -> int:
    """How many actions a plan may have: what the mesh of the home was told, if there is one.

    InputErrors `config.invalid`, as its orchestrator would say.
    """
    path = find_home(settings.home, os.environ).config
    if not os.access(path, os.R_OK):
        return limits.PLAN_ACTIONS
    # it takes 30 ms, and nearly no home has one
    from imlmesh_orchestrator.config import load_config

    return load_config(path).max_actions


def repair_file(file: Path, out: Path | None, *, force: bool) -> dict[str, Any]:
    """Check with repair, write the result, and show both; the record."""
    from imlmesh.render import emit, say, try_line

    if out == STDIN and settings.output != "table":
        raise InputError("usage", f"--out - and -o {settings.output} both want stdout")
    record, text = check_repaired(file)
    if text is not None and out not in (None, STDIN):
        write_plan(out, text, overwrite=force)
    if emit(record):
        return record
    _show_repairs(record["repairs"], refused=text is None)
    show_check(record, quiet=out == STDIN)
    if text is not None:
        if out == STDIN:
            write_text(text)
        elif out is not None:
            say(f"wrote {out}")
        elif record["repairs"]:
            say("write it:  " + try_line(f"plan check {file} --repair --out FILE"))
    if record["correction"]:
        _show_correction(record["correction"], aside=out == STDIN)
    return record


def show_check(found: dict[str, Any], *, quiet: bool = False) -> None:
    """Errors and warnings on stderr; of a plan without errors the waves, unless `quiet`."""
    from imlmesh.diagnosis import show_records

    if found["errors"] or found["warnings"]:
        show_records(found["errors"], found["warnings"])
    if not found["errors"] and not quiet:
        _print_waves(found)


def exit_code(found: dict[str, Any]) -> ExitCode:
    """INVALID for errors and for a plan that was cut off; NO_NODE when nothing else is wrong."""
    codes = {exit_code_of(error["code"]) for error in found["errors"]}
    if codes:
        return ExitCode.NO_NODE if codes == {ExitCode.NO_NODE} else ExitCode.INVALID
    cut = any(warning["code"] == "plan.truncated" for warning in found["warnings"])
    return ExitCode.INVALID if cut else ExitCode.DONE


def _record(report: Report, losses: Sequence[MeshError] = ()) -> dict[str, Any]:
    from imlmesh_protocol.iml.compensation import compensation_only
    from imlmesh_protocol.iml.digest import plan_digest

    found: dict[str, Any] = {"schema": "imlmesh.check/1", "plan_id": None, "digest": None}
    found |= {"actions": 0, "waves": []}
    if report.plan is not None:
        found["plan_id"], found["digest"] = report.plan.plan_id, plan_digest(report.plan)
        found["actions"] = len(report.plan.actions)
        undoing = compensation_only(report.plan)
        planned = [action for action in report.plan.actions if action.id not in undoing]
        found["waves"] = _waves({action.id: set(action.depends_on) for action in planned})
    found["errors"] = [error.as_record() for error in report.errors]
    found["warnings"] = [warning.as_record() for warning in (*losses, *report.warnings)]
    return found


def _waves(depends_on: dict[str, set[str]]) -> list[list[str]]:
    """The ids by dependency depth, in the plan's order."""
    depth: dict[str, int] = {}
    waves: list[list[str]] = []
    while len(depth) < len(depends_on):
        ready = [n for n, needs in depends_on.items() if n not in depth and needs <= depth.keys()]
        depth |= dict.fromkeys(ready, len(waves))
        waves.append(ready)
    return waves


def _print_waves(found: dict[str, Any]) -> None:
    from imlmesh.render import counted, say, write

    write(
        f"✔ {found['plan_id']}   {counted(found['actions'], 'action')}"
        f" · {counted(len(found['waves']), 'wave')} · digest {found['digest'][:12]}"
    )
    if not settings.quiet:
        for number, wave in enumerate(found["waves"], 1):
            say(f"  wave {number}  {', '.join(wave)}")


def _show_repairs(repairs: Sequence[dict[str, Any]], *, refused: bool) -> None:
    from imlmesh.render import counted, say

    otherwise = "this cannot be repaired" if refused else "nothing to repair"
    say(f"repaired {counted(len(repairs), 'place')}" if repairs else otherwise)
    total = Counter(one["kind"] for one in repairs)
    seen: Counter[str] = Counter()
    for one in repairs:
        kind = one["kind"]
        seen[kind] += 1
        if seen[kind] <= _SHOWN_OF_A_KIND:
            say(f"  {one['line']}:{one['column']}  {one['message']}")
    for kind, count in total.items():
        if count > _SHOWN_OF_A_KIND:
            say(f"  and {count - _SHOWN_OF_A_KIND} more of the kind {kind}   all of them: -o json")
    say()


def _show_correction(text: str, *, aside: bool) -> None:
    """On stdout, so that it can be piped; on stderr when the plan itself goes to stdout."""
    from imlmesh.render import say, write

    say("\nto its author:\n")
    (say if aside else write)(text.rstrip("\n"))


def write_text(text: str) -> None:
    from imlmesh.foreign import printable

    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
