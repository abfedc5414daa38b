"""Questions to people as tables and pages.

The one rule: what an answer needs stands beside the question: what would be done, with which
params, on which nodes, what each option does, and what silence chooses. Deliberately absent:
answering.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from imlmesh.foreign import as_json
from imlmesh.render import Column, duration, mark, say, try_line, write, write_table

Record = Mapping[str, Any]
#: what an option does, by kind of question
_DOES = {
    "gate": {"approve": "it runs", "deny": "it does not run: the action fails"},
    "lost_effect": {
        "rerun": "do it again on an eligible node",
        "done": "it happened: go on as if it had completed",
        "fail": "the action failed",
    },
    "compensation": {
        "rerun": "try to undo it again",
        "done": "it is undone: go on as if it had completed",
        "fail": "leave it as it is; the run says that not all was undone",
    },
}
#: of a member, whose part nobody else can do
_RERUN_HERE = "do it again on this node; it fails when the node is still away"


def print_questions(approvals: Sequence[Record]) -> None:
    """The table of questions, what waits first, the most urgent first of these."""
    now_ms = time.time_ns() // 1_000_000
    ordered = sorted(approvals, key=lambda a: (a["state"] != "pending", a["expires_at_ms"]))
    columns = [
        Column("ID"),
        Column("STATE", 2),
        Column("LEFT", 3, right=True),
        Column("OPTIONS"),
        Column("KIND", 6),
        Column("RISK", 5),
        Column("RUN", 2),
        Column("ACTION", 1),
        Column("QUESTION", 4),
    ]
    rows = [
        [
            a["approval"],
            mark(a["state"]),
            duration(a["expires_at_ms"] - now_ms) if a["state"] == "pending" else "-",
            "|".join(a["options"]) if a["state"] == "pending" else (a["option"] or "-"),
            a["kind"],
            a["risk"] or "-",
            a["run"],
            a["action"],
            a["message"],
        ]
        for a in ordered
    ]
    write_table(columns, rows)
    pending = [a for a in ordered if a["state"] == "pending"]
    if pending:
        say("answer: " + _answer_words(pending[0]))


def print_question(approval: Record) -> None:
    """One question as a page."""
    write(Text.assemble((approval["approval"], "bold"), "  ", mark(approval["state"])))
    write(f"  {approval['message']}")
    where = f" on {approval['node']}" if approval["node"] else ""
    risk = f", risk {approval['risk']}" if approval["risk"] else ""
    write(f"  run {approval['run']}, action {approval['action']}{where}{risk}")
    if approval["params"] is not None:
        write(f"  params  {as_json(approval['params'])}")
    if approval["nodes"]:
        write(f"  nodes   {', '.join(approval['nodes'])}")
    if approval["state"] != "pending":
        write(f"  answered: {approval['option'] or '-'} by {approval['by'] or '-'}")
        return
    does = _DOES[approval["kind"]]
    if approval["kind"] == "lost_effect" and "@" in approval["unit"]:
        does = {**does, "rerun": _RERUN_HERE}
    for option in approval["options"]:
        # what stands beside approve and deny is a choice that also lets it run
        write(f"  {option:<7} {does.get(option, 'it runs; the choice is recorded')}")
    left_ms = approval["expires_at_ms"] - time.time_ns() // 1_000_000
    write(f"  {duration(left_ms)} left, then: {approval['on_expiry']}")
    if approval["four_eyes"]:
        write("  who submitted the run may not answer")
    write("  " + _answer_words(approval))


def _answer_words(approval: Record) -> str:
    if approval["kind"] == "gate":
        return try_line(f"approval approve {approval['approval']}")
    return try_line(f"approval answer {approval['approval']} OPTION")
