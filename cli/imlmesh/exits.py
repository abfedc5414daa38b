"""Exit codes of the command line, and which error ends with which.

The one rule: a script can tell by the number alone what went wrong; the table is documented in
docs/cli.md and each number is tested.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    INVALID = 3
    NO_NODE = 4
    UNREACHABLE = 5
    NOT_ALLOWED = 6
    DENIED = 7
    TIMED_OUT = 8
    CANCELLED = 9
    CHANGES = 10
    INTERNAL = 70
    INTERRUPTED = 130


MEANING = {
    ExitCode.DONE: "done; a run completed, or was accepted with `--detach`",
    ExitCode.FAILED: "a run failed, or what was asked could not be done",
    ExitCode.USAGE: "wrong use of the command line",
    ExitCode.INVALID: "a plan, a configuration or a name in it is not valid",
    ExitCode.NO_NODE: "no eligible node for an action",
    ExitCode.UNREACHABLE: "orchestrator or broker unreachable",
    ExitCode.NOT_ALLOWED: "not allowed: identity, keys, rights of files",
    ExitCode.DENIED: "an approval was denied or expired",
    ExitCode.TIMED_OUT: "the wait was ended by `--timeout`; the run goes on",
    ExitCode.CANCELLED: "the run was cancelled",
    ExitCode.CHANGES: "only with `--detailed-exitcode`: preview shows changes",
    ExitCode.INTERNAL: "an error of imlmesh itself; a report file is named",
    ExitCode.INTERRUPTED: "Ctrl-C, or whoever read the output (`head`) left before its end",
}

_BY_CODE = {
    "usage": ExitCode.USAGE,
    "place.no_node": ExitCode.NO_NODE,
    "orchestrator.unreachable": ExitCode.UNREACHABLE,
    "access.denied": ExitCode.NOT_ALLOWED,
    **dict.fromkeys(("broker.unsafe", "broker.lists", "broker.access"), ExitCode.NOT_ALLOWED),
    "token.invalid": ExitCode.INVALID,
    "token.not_found": ExitCode.INVALID,
    "join.unreachable": ExitCode.UNREACHABLE,
    "join.busy": ExitCode.UNREACHABLE,
    "join.several": ExitCode.INVALID,
    "join.not_found": ExitCode.INVALID,
    "join.ambiguous": ExitCode.INVALID,
    "action.failed_by_person": ExitCode.DENIED,
    "approval.denied": ExitCode.DENIED,
    "approval.expired": ExitCode.DENIED,
    "approval.closed": ExitCode.FAILED,
    "approval.superseded": ExitCode.FAILED,
    "approval.four_eyes": ExitCode.NOT_ALLOWED,
    "run.ended": ExitCode.FAILED,
    "run.not_ended": ExitCode.FAILED,
    "run.retried": ExitCode.FAILED,
    "run.not_paused": ExitCode.FAILED,
    "orchestrator.running": ExitCode.FAILED,
}
_BY_FAMILY = {
    **dict.fromkeys(
        ("plan", "template", "selector", "action", "module", "place", "config", "name", "policy"),
        ExitCode.INVALID,
    ),
    **dict.fromkeys(
        ("run", "node", "approval", "home", "memory", "ledger", "permit"), ExitCode.INVALID
    ),
    **dict.fromkeys(("link", "broker", "discovery"), ExitCode.UNREACHABLE),
    **dict.fromkeys(("trust", "signature", "token", "join"), ExitCode.NOT_ALLOWED),
    "internal": ExitCode.INTERNAL,
}


def exit_code_of(code: str) -> ExitCode:
    """The exit code of an error code."""
    return _BY_CODE.get(code) or _BY_FAMILY.get(code.partition(".")[0], ExitCode.FAILED)


def exit_code_of_run(state: str, error_code: str | None) -> ExitCode:
    """The exit code of an ended run: a failed one tells a missing node and a denial apart."""
    if state == "completed":
        return ExitCode.DONE
    if state == "cancelled":
        return ExitCode.CANCELLED
    told = _BY_CODE.get(error_code or "")
    return told if told in (ExitCode.NO_NODE, ExitCode.DENIED) else ExitCode.FAILED
