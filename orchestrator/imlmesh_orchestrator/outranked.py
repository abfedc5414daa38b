"""Nodes that obey a higher epoch than ours, and so refuse all that we say.

The one rule: it is told and nothing else. Whoever raised its epoch by the word of a node could take the mesh back
from the orchestrator that replaced it, or be led by one node to an epoch that no later start can exceed. Deliberately
absent: which of the two it is, a newer orchestrator or a clock that is behind; a person knows.
"""

import logging

log = logging.getLogger(__name__)


class Outranked:
    """`epoch` is ours; `nodes` the higher ones by node id, as each said it last."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self.nodes: dict[str, int] = {}
        self._logged: set[str] = set()

    def asked(self, node: str, alias: str, obeys: int) -> None:
        """A node asks for the time and names the epoch that it obeys, or 0: it refused nobody."""
        if obeys <= self._epoch:
            self.nodes.pop(node, None)
            return
        self.nodes[node] = obeys
        if node not in self._logged:
            # once: a node may ask, and name another, as often as it likes
            self._logged.add(node)
            log.error(
                "node %s obeys epoch %d and refuses ours, %d: a newer orchestrator runs, or the store is "
                "older and the clock behind",
                alias,
                obeys,
                self._epoch,
                extra={"code": "epoch.behind"},
            )
