"""What a plan would do now, as `imlmesh plan preview` tells it.

The one rule: it is shown where each action would go and which nodes are left out, each with its
reason, before anything happens. Pure lines and tables; deliberately absent: working it out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from imlmesh.fleet import name_of
from imlmesh.render import Column, counted, duration, write, write_table

Record = Mapping[str, Any]
_NAMED = 5
_VALUE_CHARS = 60


def print_preview(found: Record) -> None:
    """Head, the table of actions, who is left out, questions, memory, what changed."""
    actions = [action for wave in found["waves"] for action in wave]
    shape, style = ("✔", "green") if found["placeable"] else ("✖", "red")
    head = Text.assemble((f"{shape} {found['plan_id']}", style))
    head.append(f"   {counted(len(actions), 'action')} · {counted(len(found['waves']), 'wave')}")
    head.append(f" · fingerprint {found['fingerprint']}")
    write(head)
    if found["not_before"]:
        write(f"  starts at {found['not_before']}")
    _action_table(found["waves"], found["compensations"])
    for line in [
        *_left_out(actions),
        *_too_few(actions),
        *_questions(actions),
        *_undoing(found["undoing"]),
        *_memory(found["memory"]),
        *change_lines(found["changes"]),
    ]:
        write(line)


def changed(found: Record) -> bool:
    """Whether anything differs from the last run of this plan_id."""
    changes = found["changes"]
    return changes is not None and any(changes[name] for name in _DIFFERENCES)


_DIFFERENCES = ("added", "removed", "changed", "nodes_changed")


def _action_table(waves: Sequence[Sequence[Record]], compensations: Sequence[Record]) -> None:
    columns = [
        Column("WAVE", right=True),
        Column("ACTION"),
        Column("NODE"),
        Column("WHAT", 3),
        Column("EFFECT", 1),
        Column("NEEDS", 2),
        Column("ASKS", 1),
        Column("CLAIMS", 4),
        Column("IF LOST", 5),
    ]
    rows = [[str(n), *_row(action)] for n, wave in enumerate(waves, 1) for action in wave]
    for action in compensations:
        name, _, *rest = _row(action)
        rows.append(["undo", name, f"where {_names(action['undoes'])} ran", *rest])
    write_table(columns, rows)


def _row(action: Record) -> list[str]:
    return [
        action["action"],
        _where(action),
        action["call"],
        action["effect"] + (", vouched" if action["vouched"] else ""),
        action["permission"],
        "approval" if action["approval"] else "-",
        ", ".join(action["claims"]) or "-",
        action["on_node_loss"] or "-",
    ]


def _where(action: Record) -> str:
    if action["mode"] == "any":
        return str(action["chosen"] or "nobody")
    return f"{action['mode']}: {_names(_eligible(action)) or 'nobody'}"


def _eligible(action: Record) -> list[str]:
    return [name_of(node) for node in action["nodes"] if node["state"] == "eligible"]


def _left_out(actions: Sequence[Record]) -> Iterator[Text]:
    """Nodes that may not run an action, with reasons; actions with the same ones share a line."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for action in actions:
        refused = tuple(
            f"{name_of(node)} {', '.join(node['reasons'])}"
            for node in action["nodes"]
            if node["state"] == "refused"
        )
        groups.setdefault(refused, []).append(action["action"])
    for refused, names in groups.items():
        if refused:
            yield Text(f"left out of {_names(names)}:  {_names(refused, '  ·  ')}", style="yellow")


def _too_few(actions: Sequence[Record]) -> Iterator[Text]:
    """Actions on many nodes that would fail with action.partial."""
    for action in actions:
        few, enough = len(_eligible(action)), action["nodes_needed"] or 0
        if few < enough:
            text = (
                f"{action['action']} would fail now: it needs {counted(enough, 'node')}, {few} can"
            )
            yield Text(text, style="red")


def _questions(actions: Sequence[Record]) -> Iterator[Text]:
    for action in actions:
        asked = action["approval"]
        if asked:
            left = duration(asked["timeout_seconds"] * 1_000)
            risk = f", risk {asked['risk']}" if asked["risk"] else ""
            text = f"asks before {action['action']} ({asked['why']}{risk}, within {left})"
            yield Text(f"{text}:  {asked['message']}", style="yellow")


def _undoing(undoing: Record) -> Iterator[Text]:
    """What a rollback would do to actions that the plan names no undoing for."""
    by_driver = [f"{each['action']} ({each['call']})" for each in undoing["by_driver"]]
    if by_driver:
        yield Text(f"a rollback undoes by its driver {_names(by_driver)}")
    if undoing["stays"]:
        yield Text(f"a rollback leaves as it is {_names(undoing['stays'])}", style="yellow")


def _memory(memory: Record) -> Iterator[Text]:
    for word in ("reads", "writes"):
        if memory[word]:
            yield Text(f"{word} memory {', '.join(memory[word])}")


def change_lines(changes: Record | None) -> Iterator[Text]:
    """The difference to the last run of the plan_id, a line each."""
    if changes is None:
        return
    if not any(changes[name] for name in _DIFFERENCES):
        yield Text(f"since last run {changes['last_run']}:  no change", style="dim")
        return
    yield Text(f"since last run {changes['last_run']}:")
    for name in changes["added"]:
        yield Text(f"  + {name}", style="green")
    for name in changes["removed"]:
        yield Text(f"  - {name}", style="red")
    for each in changes["changed"]:
        name = f"{each['action']}.{each['field']}"
        for path, before, after in _differences(name, each["before"], each["after"]):
            yield Text(f"  ~ {path}  {_value(before)} → {_value(after)}", style="yellow")
    for name in changes["nodes_changed"]:
        yield Text(f"  ~ the nodes of {name}", style="yellow")


def _differences(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """(path, before, after) of the innermost fields that differ; None for one that is not there."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        yield path, before, after
        return
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            yield from _differences(f"{path}.{name}", before.get(name), after.get(name))


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE_CHARS else text[: _VALUE_CHARS - 1] + "…"


def _names(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return separator.join(names[:_NAMED]) + more
