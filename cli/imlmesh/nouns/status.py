"""`imlmesh status`: how the mesh does."""

from typing import Any

from imlmesh.grammar import lone_verb, verb
from imlmesh.settings import settings

app = lone_verb()

# what was refused before is no problem of now; `event tail` and the log have it
_RECENT_MS = 600_000
_NAMED = 5


@verb(app, "imlmesh status\nimlmesh status --json")
def status() -> None:
    """Show how the mesh does: problems first, each with the command to try."""
    from imlmesh.client import Client
    from imlmesh.render import emit

    client = Client.connect(settings.home)
    health = client.get("health")
    nodes = client.get("nodes")["nodes"]
    approvals = client.get("approvals", state="pending")["approvals"]
    problems = _problems(health, nodes, approvals)
    if not emit({**health, "schema": "imlmesh.status/1", "problems": problems}):
        _print(health, problems)


def _problems(
    health: dict[str, Any], nodes: list[dict[str, Any]], approvals: list[dict[str, Any]]
) -> list[dict[str, str]]:
    """What needs a person: {text, try}, the most urgent first."""
    from imlmesh.fleet import by_trouble, decision_text, name_of
    from imlmesh.render import counted, try_line

    found = []
    broker = health["broker"]
    if not broker["connected"]:
        text = (
            f"broker {broker['address']} is not connected: {broker['error'] or 'no reason known'}"
        )
        found.append({"text": text, "try": "look at logs/broker.log in the home folder"})
    found += _no_verdicts(health["verdicts"])
    found += _outranked(health)
    for doubt in health["ledger"]["doubts"]:
        text = (
            f"read-only: {doubt['witness']} holds a seal of {doubt['size']} ledger entries that "
            "ours does not contain"
        )
        found.append({"text": text, "try": try_line("audit verify")})
    for approval in approvals:
        words = f"approval show {approval['approval']}"
        text = f"run {approval['run']} waits for you: {approval['message']}"
        found.append({"text": text, "try": try_line(words)})
    if waiting := health.get("join", {}).get("waiting"):
        text = f"{counted(waiting, 'node')} waiting to be let in"
        found.append({"text": text, "try": try_line("node discover")})
    found += _of_store(health["store"])
    found += _losses(health)
    if health["access"]["problem"]:
        text = f"not shut out at the broker yet: {health['access']['problem']}"
        found.append({"text": text, "try": try_line("docs broker.behind")})
    for node in by_trouble(nodes):
        name = name_of(node)
        if node["admission"] == "revoked":
            continue
        if node["admission"] != "open":
            text = f"node {name} is {node['admission']} {decision_text(node)}"
            found.append({"text": text, "try": try_line(f"node release {name}")})
        if node["liveness"] in ("lost", "suspect"):
            why = f" ({node['reason']})" if node["reason"] else ""
            text = f"node {name} is {node['liveness']}{why}"
            found.append({"text": text, "try": try_line(f"node show {name}")})
        for problem in node["problems"]:
            text = f"node {name}: {problem}"
            found.append({"text": text, "try": try_line(f"node show {name}")})
    return found


def _outranked(health: dict[str, Any]) -> list[dict[str, str]]:
    """Which nodes obey a later start of an orchestrator than this one."""
    from imlmesh.render import counted, duration, try_line

    above = health["outranked"]
    if not above:
        return []
    names = ", ".join(each["node"] for each in above[:_NAMED]) + (
        " ..." if len(above) > _NAMED else ""
    )
    highest = max(each["epoch"] for each in above)
    ahead_ms = highest - health["now_ms"]
    ahead = f" ({duration(ahead_ms)} ahead of our clock)" if ahead_ms > 0 else ""
    text = (
        f"our epoch {health['epoch']} is refused by {counted(len(above), 'node')} that heard of "
        f"{highest}{ahead}: {names}; a newer orchestrator runs, or the store is older and the clock behind"
    )
    return [{"text": text, "try": try_line("docs epoch.behind")}]


def _no_verdicts(verdicts: dict[str, Any]) -> list[dict[str, str]]:
    """Why silent nodes are not called lost."""
    from imlmesh.render import counted, try_line

    found = []
    if not verdicts["hears"]:
        text = "the broker does not carry our own messages: no node is judged"
        found.append({"text": text, "try": "look at logs/broker.log in the home folder"})
    if verdicts["frozen"]:
        silent = verdicts["silent"]
        text = f"{counted(len(silent), 'node')} fell silent together, none is called lost: " + (
            ", ".join(silent[:_NAMED]) + (" ..." if len(silent) > _NAMED else "")
        )
        found.append({"text": text, "try": try_line("node judge --reason 'they are gone'")})
    return found


def _of_store(store: dict[str, Any]) -> list[dict[str, str]]:
    """Whether its disk holds up what people want."""
    from imlmesh.render import try_line

    if store["waits"]:
        text = "the disk of the stores is full: a commit waits for room, and nothing is heard meanwhile"
        return [{"text": text, "try": try_line("docs store.full")}]
    if store["low"]:
        text = "the disk of the stores is full: no new plan is taken, and telemetry is dropped"
        return [{"text": text, "try": try_line("docs store.full")}]
    if store["behind"]:
        text = f"the store is behind: {store['outflow_rows']} rows wait to be copied"
        return [{"text": text, "try": "look at the disk of the home folder"}]
    return []


def _losses(health: dict[str, Any]) -> list[dict[str, str]]:
    """What was refused or dropped not long ago."""
    from imlmesh.render import duration, try_line

    found = []
    recent_ms = health["now_ms"] - _RECENT_MS
    refused_at_ms = health["messages"]["refused_at_ms"]
    for code, count in sorted(health["messages"]["refused"].items()):
        at_ms = refused_at_ms[code]
        if at_ms >= recent_ms:
            ago = duration(health["now_ms"] - at_ms)
            what = f"{count} messages or readings were" if count > 1 else "1 message or reading was"
            text = f"{what} refused: {code}, the last one {ago} ago"
            found.append({"text": text, "try": try_line("event tail --kind refusal")})
    telemetry = health["telemetry"]
    if (telemetry["dropped_at_ms"] or 0) >= recent_ms:
        text = f"telemetry is dropped: {telemetry['dropped']} readings since the start"
        found.append({"text": text, "try": "look at the disk of the home folder"})
    return found


def _print(health: dict[str, Any], problems: list[dict[str, str]]) -> None:
    import time

    from rich.text import Text

    from imlmesh.fleet import count_line
    from imlmesh.foreign import one_line
    from imlmesh.render import counted, duration, write

    for problem in problems:
        write(Text(f"! {one_line(problem['text'])}", style="yellow"))
        write(f"    try: {problem['try']}")
    if not problems:
        write(Text("✔ nothing needs attention", style="green"))
    now_ms = time.time_ns() // 1_000_000
    broker = health["broker"]
    write(f"mesh       {health['mesh']}   imlmesh {health['version']}   epoch {health['epoch']}")
    write(f"running    {duration(now_ms - health['started_at_ms'])}   process {health['pid']}")
    write(
        f"broker     {broker['address']} {'connected' if broker['connected'] else 'not connected'}"
    )
    write(Text("nodes      ") + count_line(health["nodes"]))
    waiting = health["approvals"]["pending"]
    questions = f"   {counted(waiting, 'question')} to you" if waiting else ""
    write(f"runs       {health['runs']['active']} active{questions}")
    ledger = health["ledger"]
    write(f"ledger     {ledger['entries']} entries   {ledger['witnesses']} witnesses")
    write(f"telemetry  {health['telemetry']['written']} readings since the start")
