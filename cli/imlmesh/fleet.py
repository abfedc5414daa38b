"""Nodes as tables and pages for people.

The one rule: what needs attention comes first, with the reason beside it. Deliberately absent:
asking the API.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from imlmesh.foreign import as_json, one_line
from imlmesh.render import (
    MARKS,
    Column,
    bars,
    clock,
    duration,
    mark,
    percent,
    say,
    try_line,
    write,
    write_table,
)

Record = Mapping[str, Any]
_ORDER = {"lost": 0, "suspect": 1, "offline": 3, "online": 4}
_WITH_PROBLEMS = 2
_EVIDENCE = 5
_SHOWN_APART = {"modules", "version"}


def by_trouble(nodes: Sequence[Record]) -> list[Record]:
    """Lost, suspect, quarantined or with problems, offline (said goodbye), the rest, and who was
    removed; then by name."""

    def rank(node: Record) -> tuple[int, str]:
        if node["admission"] == "revoked":
            return len(_ORDER) + 1, name_of(node)
        order = _ORDER[node["liveness"]]
        if order > _WITH_PROBLEMS and (node["problems"] or node["admission"] == "quarantined"):
            order = _WITH_PROBLEMS
        return order, name_of(node)

    return sorted(nodes, key=rank)


def name_of(node: Record) -> str:
    """The alias, else the id."""
    return str(node["alias"] or node["node"])


def print_nodes(nodes: Sequence[Record]) -> None:
    """The table of nodes, and below it what needs attention."""
    now_ms = time.time_ns() // 1_000_000
    columns = [
        Column("NODE"),
        Column("GROUP", 2),
        Column("STATE"),
        Column("BEAT", 1, right=True),
        Column("LAST 30 MIN", 6),
        Column("RUNS", 5, right=True),
        Column("CPU", 3, right=True),
        Column("TEMP", 4, right=True),
        Column("DISK", 3, right=True),
        Column("VERSION", 7),
    ]
    ordered = by_trouble(nodes)
    write_table(columns, [_row(node, now_ms) for node in ordered])
    troubled = [(name_of(node), reasons) for node in ordered if (reasons := _reasons(node))]
    if troubled:
        listed = "  ·  ".join(f"{name} {', '.join(reasons)}" for name, reasons in troubled)
        write(Text(f"{len(troubled)} need attention:  {one_line(listed)}", style="yellow"))
        say("see: " + try_line(f"node show {troubled[0][0]}"))


def _row(node: Record, now_ms: int) -> list[str | Text]:
    health = node["health"] or {}
    heard = node["last_heard_ms"]
    temperature = health.get("temperature_c")
    return [
        name_of(node),
        ",".join(node["groups"]) or "-",
        _state(node),
        duration(now_ms - heard) if heard else "-",
        bars(node["beats"]),
        str(node["live_dispatches"]),
        percent(health.get("cpu_percent")),
        "-" if temperature is None else f"{temperature:.0f} °C",
        percent(health.get("disk_percent")),
        node["version"] or "-",
    ]


def _state(node: Record) -> Text:
    """What was decided of it, else how it is; who was removed or is away is only that."""
    decided, liveness = node["admission"], node["liveness"]
    if decided == "open" or (decided in ("cordoned", "draining") and liveness != "online"):
        return mark(liveness)
    return mark(decided)


def admission_line(node: Record) -> Text:
    """What was decided of a node, by whom, since when, until when, and why."""
    decision = node["decision"]
    line = Text.assemble((name_of(node), "bold"), "  ", mark(node["admission"]))
    if decision is not None:
        line.append(f"  {decision_text(node)}", style="dim")
    return line


def decision_text(node: Record) -> str:
    """`by eve since 09:12, until 11:12: why`."""
    decision = node["decision"]
    text = f"by {decision['by']} since {_moment(decision['since_ms'])}"
    if decision["until_ms"]:
        text += f", until {_moment(decision['until_ms'])}"
    if decision["probation"]:
        text += ", on probation"
    if node["admission"] == "draining" and decision["drained"]:
        text += ", all done"
    return f"{text}: {one_line(decision['reason'])}"


def _moment(at_ms: int) -> str:
    """Local time of day, with the date when that is not today."""
    day = time.strftime("%Y-%m-%d", time.localtime(at_ms / 1_000))
    today = day == time.strftime("%Y-%m-%d")
    return clock(at_ms) if today else f"{day} {clock(at_ms)}"


def _reasons(node: Record) -> list[str]:
    if node["admission"] == "revoked":
        return []
    reasons = list(node["problems"])
    if node["admission"] == "quarantined":
        release = try_line(f"node release {name_of(node)}")
        reasons.insert(0, f"quarantined {decision_text(node)} ({release})")
    if node["liveness"] in ("lost", "suspect") and not reasons:
        reasons.append(node["liveness"] + (f" ({node['reason']})" if node["reason"] else ""))
    return reasons


def print_node(node: Record) -> None:
    """One node as a page."""
    now_ms = time.time_ns() // 1_000_000
    head = Text.assemble((name_of(node), "bold"), "  ", mark(node["liveness"]))
    if node["reason"] and node["liveness"] != "online":
        head.append(f"  {one_line(node['reason'])}", style="dim")
    write(head)
    if node["decision"] is not None:
        write(Text.assemble("  ", mark(node["admission"]), f"  {decision_text(node)}"))
        if node["admission"] != "revoked":
            say("  end that: " + try_line(f"node release {name_of(node)}"))
    for seen in node["evidence"][:_EVIDENCE]:
        text = one_line(f"{seen['kind']}: {seen['text']} ({seen['verdict']})")
        write(f"  {_moment(seen['at_ms'])}  {text}")
    for problem in node["problems"]:
        write(Text(f"  ! {one_line(problem)}", style="yellow"))
    health = node["health"] or {}
    temperature = health.get("temperature_c")
    heard_ms = node["last_heard_ms"]
    facts = {
        "id": node["node"],
        "heard": f"{duration(now_ms - heard_ms)} ago" if heard_ms else "not since the last start",
        "since": f"{duration(now_ms - node['since_ms'])} in this state",
        "profile": node["profile"],
        "version": node["version"],
        "groups": ", ".join(node["groups"]) or "-",
        "labels": _pairs(node["labels"]),
        "facts": _pairs({n: v for n, v in node["facts"].items() if n not in _SHOWN_APART}),
        "health": f"cpu {percent(health.get('cpu_percent'))}, memory "
        f"{percent(health.get('memory_percent'))}, disk {percent(health.get('disk_percent'))}, "
        + ("no temperature" if temperature is None else f"{temperature:.0f} °C"),
        "beats": bars(node["beats"]).strip() or "-",
        "dispatches": f"{node['live_dispatches']} live",
        "spool": f"{node['spool']['records']:,} records on their way",
        "modules": ", ".join(node["modules"]) or "-",
        "refused": _refused(node["refused"]),
    }
    for name, value in facts.items():
        write(f"  {name:<10}  {one_line(value)}")


def _refused(refused: Record) -> str:
    """What it refused of others, and what others refused of it."""
    told = (("of what came to it", "received"), ("of what it sent", "sent"))
    parts = (
        f"{text}: {', '.join(f'{count} {code}' for code, count in sorted(refused[name].items()))}"
        for text, name in told
        if refused[name]
    )
    return "; ".join(parts) or "-"


def print_actions(actions: Sequence[Record]) -> None:
    """What a node, or the mesh, can do, with the parameters of each action."""
    rows = [
        [
            f"{action['module']}.{action['action']}",
            " ".join(_params(action)),
            action["effect"],
            action["permission"],
            action["description"],
        ]
        for action in actions
    ]
    columns = [
        Column("ACTION"),
        Column("PARAMETERS", 1),
        Column("EFFECT", 2),
        Column("NEEDS", 3),
        Column("WHAT IT DOES", 4),
    ]
    write_table(columns, rows)


def print_action(action: Record) -> None:
    """One action as a page, with a command that calls it."""
    name = f"{action['module']}.{action['action']}"
    write(Text.assemble((name, "bold"), f"   {action['description']}"))
    facts = {
        "effect": action["effect"] + (" (a plan may vouch for less)" if action["vouch"] else ""),
        "impact": f"{action['impact']:g}",
        "needs": action["permission"],
        "claims": ", ".join(action["claims"]) or "-",
        "undone by": action["undo"]["action"] if action["undo"] else "-",
        "returns": ", ".join(action["returns"]) or "nothing that is fixed",
        "nodes": ", ".join(action["nodes"]) or "-",
    }
    for title, value in facts.items():
        write(f"  {title:<9}  {value}")
    properties = action["params"].get("properties", {})
    wanted = set(action["params"].get("required", ()))
    columns = [Column("PARAM"), Column("TYPE"), Column("DEFAULT", 1), Column("WHAT IT IS", 2)]
    rows = [
        [
            param,
            schema_text(properties[param]),
            "required" if param in wanted else as_json(properties[param].get("default")),
            properties[param].get("description", "-"),
        ]
        for param in sorted(properties, key=lambda param: param not in wanted)
    ]
    if rows:
        write()
        write_table(columns, rows)
    words = " ".join([f"action call {name}", *(f"{param}=…" for param in sorted(wanted))])
    say("call it: " + try_line(words))


def schema_text(schema: Record) -> str:
    """A JSON Schema in a few words: `integer 0..27`, `one of 0, 1`, `list of string or null`."""
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return f"one of {schema['const']}"
    parts = schema.get("anyOf") or schema.get("oneOf")
    if parts:
        return " or ".join(map(schema_text, parts))
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {schema_text(schema.get('items', {}))}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return kind
    return f"{kind} {'' if low is None else low}..{'' if high is None else high}"


def _params(action: Record) -> list[str]:
    wanted = set(action["params"].get("required", ()))
    names = sorted(action["params"].get("properties", {}), key=lambda name: name not in wanted)
    return [name if name in wanted else f"[{name}]" for name in names]


def count_line(counts: Mapping[str, int]) -> Text:
    """`✔ 2 online  ▲ 1 suspect`, without zeros."""
    line = Text()
    for state in ("lost", "suspect", "offline", "online"):
        if counts.get(state):
            shape, style = MARKS[state]
            line.append(f"{shape} {counts[state]} {state}  ", style=style)
    return line if line.plain else Text("none yet")


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(values.items())) or "-"
