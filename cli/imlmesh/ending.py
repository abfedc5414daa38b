"""How a run ended, as lines: what failed where and why, its last log lines, what to try next.

The one rule: failures are grouped at the end, each with its node, its reason and its line of the
plan, and the command that runs only them again. Pure; deliberately absent: asking for anything.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from imlmesh.fleet import name_of
from imlmesh.render import MARKS, clock, duration, try_line
from imlmesh.waves import compensations, node_of
from imlmesh_protocol.errors import CODES

Record = Mapping[str, Any]
#: log lines shown of each failed action, and members named of one
_LINES = 3
_NAMED = 5
#: hints shown, each once; the log of an action has a line of its own
_HINTS = 3
_LOG = CODES["driver.failed"].hint
_FAILED = {"failed", "rolled_back", "unknown"}
#: of what was skipped: others failed, or nobody needed it
_OTHERS = {"action.dependency", "action.not_needed", "run.expired"}


def failures(run: Record) -> list[Record]:
    """The actions that went wrong, whatever became of them."""
    return [a for a in run["actions"] if a["error"] and (a["state"] in _FAILED or _passed_over(a))]


def _passed_over(action: Record) -> bool:
    """Whether it failed by itself and was skipped for that."""
    return action["state"] == "skipped" and action["error"]["code"] not in _OTHERS


def end_lines(run: Record, logs: Sequence[Record] = (), *, hints: bool = True) -> list[Text]:
    """Counts, each failure with node, reason, line of the plan and last log lines, what to try.

    `logs` are lines {at_ms, action, node, stream, line} of the run, the oldest first; `hints` False
    leaves out what to try: nobody would answer.
    """
    took = duration(run["ended_at_ms"] - run["submitted_at_ms"]) if run["ended_at_ms"] else "-"
    counts = " · ".join(f"{n} {state.replace('_', ' ')}" for state, n in run["counts"].items() if n)
    shape, style = MARKS.get(run["state"], ("·", ""))
    lines = [
        Text.assemble((f"{shape} {run['run']} {run['state']}", style), f" after {took}   {counts}")
    ]
    if run["unconfirmed"]:
        lines.append(Text("  a node has not confirmed the cancel", style="yellow"))
    failed = failures(run)
    for action in failed:
        lines += _failure(run, action)
        lines += _last_lines(action["id"], logs)
    if run["error"] and _said(run["error"]) not in [_said(action["error"]) for action in failed]:
        lines.append(Text(f"  {run['error']['message']} [{run['error']['code']}]"))
    lines += _left_undone(run)
    if hints and run["state"] != "completed":
        lines += _next(run, [action for action in failed if not _passed_over(action)])
    return lines


def _said(error: Record) -> tuple[str, str]:
    return error["code"], error["message"]


def _failure(run: Record, action: Record) -> list[Text]:
    error = action["error"]
    where = f"  {run['file']}:{action['line']}" if run["file"] and action["line"] else ""
    node = f" on {node_of(action)}" if action["node"] and not action["members"] else ""
    became = {"rolled_back": " (undone)", "skipped": " (skipped)"}.get(action["state"], "")
    lines = [Text(f"  {action['id']}{node}: {error['message']} [{error['code']}]{became}{where}")]
    wrong = [member for member in action["members"] if member["code"]]
    for member in wrong[:_NAMED]:
        lines.append(Text(f"    {name_of(member)}: {member['message']} [{member['code']}]"))
    if len(wrong) > _NAMED:
        lines.append(Text(f"    and {len(wrong) - _NAMED} more nodes", style="dim"))
    return lines


def _last_lines(action: str, logs: Sequence[Record]) -> list[Text]:
    own = [line for line in logs if line["action"] == action]
    return [Text(f"    | {clock(line['at_ms'])} {line['line']}") for line in own[-_LINES:]]


def _left_undone(run: Record) -> list[Text]:
    if not run["compensation_pending"]:
        return []
    lines = [Text("  not everything is undone:", style="yellow")]
    for each in compensations(run):
        if each["state"] != "completed":
            why = each["code"] or each["state"].replace("_", " ")
            lines.append(Text(f"    {each['undoes']} on {name_of(each)} [{why}]"))
    return lines


def _next(run: Record, failed: Sequence[Record]) -> list[Text]:
    name = run["run"]
    lines = _hints(failed)
    if failed:
        words = try_line(f"run retry {name} --failed")
        lines.append(Text(f"  retry only this: {words}", style="dim"))
        lines.append(Text("  log: " + try_line(f"run logs {name} {failed[0]['id']}"), style="dim"))
    lines.append(Text("  why: " + try_line(f"run story {name}"), style="dim"))
    return lines


def _hints(failed: Sequence[Record]) -> list[Text]:
    codes = [action["error"]["code"] for action in failed]
    hints = dict.fromkeys(CODES[code].hint for code in codes if code in CODES)
    return [Text(f"  try: {hint}") for hint in hints if hint not in ("", _LOG)][:_HINTS]
