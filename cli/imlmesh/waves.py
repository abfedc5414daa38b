"""A run as lines: one per wave, what runs in it, what waits for a person, and how it ended.

The one rule: pure; a run as the API tells it and the time go in, lines of text come out, so that
the live view and `run show` cannot disagree. Deliberately absent: terminals.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from imlmesh.render import MARKS, clock, duration, mark, try_line

_ENDED_WELL = {"completed", "skipped", "rolled_back"}
_ENDED = _ENDED_WELL | {"failed", "cancelled"}
Record = Mapping[str, Any]


def head_line(run: Record, now_ms: int) -> Text:
    """Id, plan, state, time."""
    end_ms = run["ended_at_ms"] or now_ms
    line = Text.assemble((run["run"], "bold"), f" {run['plan_id'] or ''}   ", mark(run["state"]))
    line.append(f"  {duration(end_ms - run['submitted_at_ms'])}")
    if run["waits_for"] and not run["ended_at_ms"]:
        line.append(f"   waits for {', '.join(run['waits_for'])}", style="yellow")
    return line


def wave_lines(
    run: Record, now_ms: int, progress: Mapping[str, float], room: int = 1_000
) -> list[Text]:
    """A line per wave; of more than `room` waves the ended and the far ones share a line."""
    actions = {action["id"]: action for action in run["actions"]}
    waves = [[actions[name] for name in names] for names in run["waves"]]
    first = 0
    if len(waves) > room:
        open_at = next((i for i, wave in enumerate(waves) if not _is_over(wave)), len(waves))
        first = max(0, min(open_at - 1, len(waves) - room))
    lines = []
    if first:
        count = sum(len(wave) for wave in waves[:first])
        lines.append(Text(f"waves 1 to {first}: {count} actions ended", style="dim"))
    for number, wave in enumerate(waves[first : first + room], first + 1):
        lines.append(_wave_line(number, len(waves), wave, now_ms, progress))
    left = len(waves) - first - room
    if left > 0:
        lines.append(Text(f"{left} more waves", style="dim"))
    return lines


def question_lines(approvals: Sequence[Record], now_ms: int) -> list[Text]:
    """Each pending question, its options, and the command that answers it."""
    lines = []
    for approval in approvals:
        if approval["state"] != "pending":
            continue
        left = duration(approval["expires_at_ms"] - now_ms)
        lines.append(Text(f"? {approval['message']}", style="bold yellow"))
        words = try_line(f"approval answer {approval['approval']} OPTION")
        lines.append(Text(f"  answer: {words}   ({', '.join(approval['options'])})"))
        lines.append(Text(f"  {left} left, then: {approval['on_expiry']}", style="dim"))
    return lines


def end_lines(run: Record) -> list[Text]:
    """How the run ended: counts, each failure with its node, reason and line of the plan."""
    took = duration(run["ended_at_ms"] - run["submitted_at_ms"]) if run["ended_at_ms"] else "-"
    counts = " · ".join(f"{count} {state.replace('_', ' ')}" for state, count in _counts(run))
    shape, style = MARKS.get(run["state"], ("·", ""))
    lines = [
        Text.assemble((f"{shape} {run['run']} {run['state']}", style), f" after {took}   {counts}")
    ]
    if run["unconfirmed"]:
        lines.append(Text("  a node has not confirmed the cancel", style="yellow"))
    failed = [action for action in run["actions"] if action["state"] == "failed"]
    for action in failed:
        error = action["error"] or {}
        where = f"  {run['file']}:{action['line']}" if run["file"] and action["line"] else ""
        node = f" on {_node(action)}" if action["node"] else ""
        text = f"  {action['id']}{node}: {error.get('message', 'failed')}"
        lines.append(Text(f"{text} [{error.get('code', '-')}]{where}"))
    if run["error"] and not failed:
        lines.append(Text(f"  {run['error']['message']} [{run['error']['code']}]"))
    if run["state"] != "completed":
        lines.append(Text("  why:  " + try_line(f"run story {run['run']}"), style="dim"))
        lines.append(Text("  logs: " + try_line(f"run logs {run['run']}"), style="dim"))
    return lines


def event_line(data: Record) -> Text:
    """One event as a line that begins with its time."""
    return Text(f"{clock(data['at_ms'])}  {data.get('text') or data.get('message') or ''}")


def _counts(run: Record) -> list[tuple[str, int]]:
    return [(state, count) for state, count in run["counts"].items() if count]


def _is_over(wave: Sequence[Record]) -> bool:
    return all(action["state"] in _ENDED for action in wave)


def _wave_state(wave: Sequence[Record]) -> str:
    states = {action["state"] for action in wave}
    if states <= _ENDED:
        return next((s for s in ("failed", "cancelled") if s in states), "completed")
    for state in ("unknown", "awaiting_approval", "running", "waiting"):
        if state in states:
            return state
    return "pending" if states <= {"pending"} else "running"


def _wave_line(
    number: int, total: int, wave: Sequence[Record], now_ms: int, progress: Mapping[str, float]
) -> Text:
    state = _wave_state(wave)
    shape, style = MARKS[state]
    well = sum(action["state"] in _ENDED_WELL for action in wave)
    line = Text.assemble(f"wave {number}/{total} ", (shape, style), f" {well}/{len(wave)}")
    begun = [action["planned_at_ms"] for action in wave if action["planned_at_ms"]]
    if begun:
        ended = [action["ended_at_ms"] or now_ms for action in wave]
        last = max(ended) if _is_over(wave) else now_ms
        line.append(f"  {duration(last - min(begun)):>5}")
    notes = [_note(action, progress) for action in wave if action["state"] not in _ENDED_WELL]
    if begun and notes:
        line.append("  " + " · ".join(notes))
    elif notes or not begun:
        line.append("  " + ", ".join(action["id"] for action in wave), style="dim")
    return line


def _note(action: Record, progress: Mapping[str, float]) -> str:
    text = str(action["id"])
    state = action["state"]
    if state == "pending":
        return text
    if action["node"]:
        text += f" on {_node(action)}"
    if state == "running":
        share = progress.get(action["id"])
        moved = f" (attempt {action['attempt']})" if action["attempt"] > 1 else ""
        return text + moved + (f" {share:.0%}" if share else "")
    if state == "waiting" and action["reasons"]:
        codes = sorted(set(action["reasons"].values()))
        return f"{text}: waiting ({', '.join(codes)})"
    return f"{text}: {state.replace('_', ' ')}"


def _node(action: Record) -> str:
    return str(action["node_alias"] or action["node"])
