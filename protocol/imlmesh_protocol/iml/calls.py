"""The params that each action of a plan is called with, and where each of them is written.

The one rule: what only undoes others is called once for each of them, its own params overlaid by
those of the rollback; everything else is called with its own. Deliberately absent: templates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.graph import Graph
from imlmesh_protocol.iml.plan import Action


@dataclass(frozen=True, slots=True)
class CallParams:
    """Params of one call; `pointer` is that of the action's own, `overlay_pointer` the rollback's."""

    own: Mapping[str, Any]
    pointer: str
    overlay: Mapping[str, Any] = field(default_factory=dict)
    overlay_pointer: str = ""

    @property
    def merged(self) -> dict[str, Any]:
        """What the driver gets."""
        return {**self.own, **self.overlay}

    def place(self, path: Sequence[str | int]) -> str:
        """The pointer of a part of the params."""
        overlaid = bool(path) and path[0] in self.overlay
        return (self.overlay_pointer if overlaid else self.pointer) + pointer_of(*path)


def calls_of(index: int, actions: Mapping[int, Action], graph: Graph) -> list[CallParams]:
    """The calls of one action. `actions` are those whose fields are right, by index.

    Empty when what it undoes is not among them: then nothing is known of its calls.
    """
    own, pointer = actions[index].params, pointer_of("actions", index, "params")
    undone = [other for other, undoing in graph.undone_by.items() if undoing == index]
    if not undone:
        return [CallParams(own, pointer)]
    return [
        CallParams(
            own, pointer, rollback.params, pointer_of("actions", other, "rollback", "params")
        )
        for other in undone
        if other in actions and (rollback := actions[other].rollback) is not None
    ]
