"""What many actions of a run ask for in the same words: their call.

The one rule: equal calls of a run are one object, so what follows from a call alone is worked out
once and not with each of 100,000 actions. Deliberately absent: ids, params and dependencies, in
which actions differ.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.iml.plan import Action
from imlmesh_protocol.manifest import ActionSpec
from imlmesh_protocol.states import Effect

#: module, action, version wanted of the module, way of targeting, and what it names
PoolKey = tuple[str, str, str, str, str | tuple[str, ...]]

#: what of an action decides anything that a `Call` or its `Terms` hold
_words = itemgetter(
    "module",
    "action",
    "timeout",
    "on_error",
    "requires_approval",
    "impact",
    "memory",
    "effect",
    "claims",
    "on_busy",
    "lease_seconds",
    "on_node_loss",
    "target_node",
    "target_group",
    "target_selector",
    "target_mode",
    "fallback_nodes",
)


@dataclass(slots=True)
class Terms:
    """What a call comes to on a node, as that was when it was `described` so often."""

    described: int
    spec: ActionSpec
    effect: Effect
    on_loss: str
    timeout_ms: int
    lease_ms: int
    #: what its dispatches have in common, unless they claim something
    shared: bytes = b""


@dataclass(slots=True)
class Call:
    #: whether the plan itself wants a person asked
    asks: bool
    #: whether several nodes do it, each on its own
    member_wise: bool
    #: whether its end writes to the memory, or a failure of it undoes what was done
    remembers: bool
    undoes: bool
    claims: tuple[str, ...]
    group: str | None
    #: once it is known: the pool of its actions, and its terms by node
    pool: PoolKey | None = field(default=None, compare=False)
    terms: dict[str, Terms] = field(default_factory=dict, compare=False)


class Calls:
    """The calls of one run, as its actions are looked at."""

    __slots__ = ("_call", "_known", "_words")

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Call] = {}
        #: the last that was asked for
        self._words: tuple[Any, ...] = ()
        self._call: Call

    def of(self, action: Action) -> Call:
        """The call of an action: one that was met before, or a new one."""
        words = _words(vars(action))
        # actions that follow each other mostly ask for the same, and to compare costs half of a hash
        if words != self._words:
            call = self._known.get(words)
            if call is None:
                call = self._known[words] = _new_call(action)
            self._call, self._words = call, words
        return self._call

    def __iter__(self) -> Iterator[Call]:
        """Those that were met."""
        return iter(self._known.values())


def _new_call(action: Action) -> Call:
    return Call(
        action.requires_approval or (action.impact or 0.0) > limits.IMPACT_WITHOUT_APPROVAL,
        action.target_mode != "any",
        action.memory is not None and action.memory.write_key is not None,
        action.on_error == "rollback",
        action.claims,
        action.target_group,
    )
