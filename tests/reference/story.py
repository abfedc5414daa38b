"""What the interpreter keeps while it reads the rules, and the story that two runs are compared by.

The one rule: a `Story` holds plain values only, so that two of them can be compared and printed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from case import Call

_LEFT_ALONE = (("skipped", "action.dependency"), ("skipped", "run.expired"))


class UnclearError(Exception):
    """The rules do not say what happens in this case; it proves nothing."""


@dataclass
class Unit:
    """An action, a member (`ID@NODE`) or a compensation (`ID~NODE`); `node` is fixed for the last two."""

    key: str
    action: Mapping[str, Any]
    params: Any
    node: str = ""
    #: key of what this compensation undoes
    undoes: str = ""
    state: str = "pending"
    fault: str = ""
    result: Any = None
    #: node and script of the last call, how many calls and reported failures there were
    on: str = ""
    call: Call | None = None
    tries: int = 0
    reports: int = 0
    retry_at: int = 0
    #: nodes that refused it with their codes, and nodes that were lost with it
    refused: dict[str, str] = field(default_factory=dict)
    lost_on: set[str] = field(default_factory=set)
    #: node of the last call that started, and the place of its end among all ends
    worked_on: str = ""
    order: int = 0
    #: what its gate was approved for
    approved: str = ""
    #: skipped by its own on_error or that of an ancestor: the run may still complete
    forgiven: bool = False
    members: list["Unit"] = field(default_factory=list)

    @property
    def member_wise(self) -> bool:
        return not self.node and self.action.get("target_mode", "any") != "any"


@dataclass
class Question:
    """Something that a person is asked; `outcome` is an option, expired, superseded, or "" (open)."""

    kind: str
    key: str
    outcome: str = ""

    @property
    def open(self) -> bool:
        return not self.outcome


@dataclass
class Story:
    """How one run went: everything that the rules decide."""

    run: tuple[str, str]
    flags: dict[str, bool]
    units: dict[str, tuple[str, str]]
    #: per key the calls in order: (node, params)
    calls: dict[str, list[tuple[str, Any]]]
    compensations: list[str]
    questions: list[tuple[str, str, str]]
    memory: dict[str, Any]

    def __post_init__(self) -> None:
        # whether members were fixed in the very moment that ended the run is nobody's business
        for key in [key for key in self.units if "@" in key and key not in self.calls]:
            if self.units[key] in _LEFT_ALONE:
                del self.units[key]

    def differences(self, other: "Story") -> list[str]:
        """One line for each thing that is not the same: what, here, there."""
        found: list[str] = []
        for name in ("run", "flags", "units", "calls", "compensations", "questions", "memory"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                found += [
                    f"{name} {key}: {mine.get(key)} | {theirs.get(key)}"
                    for key in sorted(mine.keys() | theirs.keys())
                    if mine.get(key) != theirs.get(key)
                ]
            elif mine != theirs:
                found.append(f"{name}: {mine} | {theirs}")
        return found
