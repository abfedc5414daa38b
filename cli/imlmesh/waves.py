"""A run as lines: one per wave, what runs in it, what is undone, what waits for a person.

The one rule: pure; a run as the API tells it and the time go in, lines of text come out, so that
the live view and `run show` cannot disagree. Deliberately absent: terminals, and how a run ended
(`ending`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from imlmesh.fleet import name_of
from imlmesh.render import MARKS, clock, duration, mark, try_line

_ENDED_WELL = {"completed", "skipped", "rolled_back"}
_ENDED = _ENDED_WELL | {"failed", "cancelled"}
_NAMED = 4
Record = Mapping[str, Any]


def head_line(run: Record, now_ms: int) -> Text:
    """Id, plan, state, time, and what the run waits for."""
    end_ms = run["ended_at_ms"] or now_ms
    line = Text.assemble((run["run"], "bold"), f" {run['plan_id'] or ''}   ", mark(run["state"]))
    line.append(f"  {duration(end_ms - run['submitted_at_ms'])}")
    if run["of"]:
        line.append(f"   retries {run['of']}", style="dim")
    if run["ended_at_ms"]:
        return line
    if (run["starts_at_ms"] or 0) > now_ms:
        line.append(f"   starts in {duration(run['starts_at_ms'] - now_ms)}", style="yellow")
    if run["waits_for"]:
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


def undo_lines(run: Record) -> list[Text]:
    """One line on what is being undone, or none."""
    undone = compensations(run)
    if not undone:
        return []
    done = sum(each["state"] == "completed" for each in undone)
    states = {each["state"] for each in undone}
    shape, style = MARKS[_gathered(states)]
    line = Text.assemble("undo ", (shape, style), f" {done}/{len(undone)}")
    left = [each for each in undone if each["state"] not in ("completed", "pending")]
    if left:
        line.append("  " + " · ".join(_compensation(each) for each in left[:_NAMED]))
    return [line]


def compensations(run: Record) -> list[Record]:
    """All of a run, as the actions that they undo list them; `undoes` is the action's id."""
    return [
        {**each, "undoes": action["id"]}
        for action in run["actions"]
        for each in action["compensations"]
    ]


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


def event_line(data: Record) -> Text:
    """One event as a line that begins with its time."""
    return Text(f"{clock(data['at_ms'])}  {data.get('text') or data.get('message') or ''}")


def node_of(record: Record) -> str:
    """The alias of the node that did it, else its id."""
    return str(record["node_alias"] or record["node"])


def _is_over(wave: Sequence[Record]) -> bool:
    return all(action["state"] in _ENDED for action in wave)


def _gathered(states: set[str]) -> str:
    """One state for many."""
    if states <= _ENDED:
        ended = ("failed", "cancelled", "completed", "rolled_back")
        return next((state for state in ended if state in states), "skipped")
    for state in ("unknown", "awaiting_approval", "running", "waiting"):
        if state in states:
            return state
    return "pending" if states <= {"pending"} else "running"


def _wave_line(
    number: int, total: int, wave: Sequence[Record], now_ms: int, progress: Mapping[str, float]
) -> Text:
    shape, style = MARKS[_gathered({action["state"] for action in wave})]
    well = sum(action["state"] in _ENDED_WELL for action in wave)
    line = Text.assemble(f"wave {number}/{total} ", (shape, style), f" {well}/{len(wave)}")
    begun = [action["planned_at_ms"] for action in wave if action["planned_at_ms"]]
    if begun:
        ended = [action["ended_at_ms"] or now_ms for action in wave]
        last = max(ended) if _is_over(wave) else now_ms
        line.append(f"  {duration(last - min(begun)):>5}")
    notes = [_note(a, now_ms, progress) for a in wave if a["state"] not in _ENDED_WELL]
    quiet = all(action["state"] == "pending" for action in wave)
    if notes and not quiet:
        line.append("  " + " · ".join(notes))
    elif notes or not begun:
        line.append("  " + ", ".join(action["id"] for action in wave), style="dim")
    return line


def _note(action: Record, now_ms: int, progress: Mapping[str, float]) -> str:
    text = str(action["id"])
    state = action["state"]
    if state == "pending":
        return text
    if state == "awaiting_approval":
        return f"{text}: waits for approval {action['approval'] or ''}".rstrip()
    if action["members"]:
        return _members_note(text, action)
    if action["node"]:
        text += f" on {node_of(action)}"
    if state == "running":
        share = progress.get(action["id"])
        moved = f" (attempt {action['attempt']})" if action["attempt"] > 1 else ""
        return text + moved + (f" {share:.0%}" if share else "")
    if state == "waiting" and action["retry_at_ms"]:
        again = f"{action['id']}: try {action['tries'] + 1}"
        return f"{again} in {duration(action['retry_at_ms'] - now_ms)}" + _code(
            (action["error"] or {}).get("code")
        )
    if state == "waiting" and action["reasons"]:
        codes = sorted(set(action["reasons"].values()))
        return f"{text}: waiting ({', '.join(codes)})"
    return f"{text}: {state.replace('_', ' ')}"


def _members_note(text: str, action: Record) -> str:
    """`read 2/5 nodes: pi-c running, pi-d failed (driver.busy)`."""
    members = action["members"]
    done = sum(member["state"] == "completed" for member in members)
    left = [member for member in members if member["state"] not in ("completed", "pending")]
    text += f" {done}/{len(members)} nodes"
    if not left:
        return text
    named = [
        f"{name_of(member)} {member['state'].replace('_', ' ')}" + _code(member["code"])
        for member in left[:_NAMED]
    ]
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return f"{text}: {', '.join(named)}{more}"


def _compensation(each: Record) -> str:
    text = f"{each['undoes']} on {name_of(each)}: {each['state'].replace('_', ' ')}"
    return text + _code(each["code"])


def _code(code: str | None) -> str:
    return f" ({code})" if code else ""
