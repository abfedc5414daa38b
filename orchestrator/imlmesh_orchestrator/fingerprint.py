"""What a preview was true of: the plan, the nodes that may run each action, and their manifests.

The one rule: it depends on everything that decides what a plan would do, and not on who is here
now. Deliberately absent: keeping it; a fingerprint that nobody remembers still protects.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imlmesh_orchestrator.core.state import NodeRecord
from imlmesh_orchestrator.outlook import Outlook
from imlmesh_protocol import limits
from imlmesh_protocol.manifest import Manifest

_CHARS = 12
_NAMED = 3

_digests: OrderedDict[int, tuple[Manifest, str]] = OrderedDict()


@dataclass(frozen=True, slots=True)
class Basis:
    """The plan's digest, node ids by action id, and digests of manifests by node id."""

    digest: str
    nodes: Mapping[str, tuple[str, ...]]
    manifests: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """12 hex of SHA-256 over all of it."""
        groups: dict[tuple[str, ...], int] = {}
        resolved = [(name, groups.setdefault(ids, len(groups))) for name, ids in self.nodes.items()]
        manifests = sorted(self.manifests.items())
        content = json.dumps([self.digest, resolved, list(groups), manifests])
        return hashlib.sha256(content.encode()).hexdigest()[:_CHARS]

    def changed_since(self, before: "Basis") -> str:
        """What is different, in words."""
        if before.digest != self.digest:
            return "the plan changed"
        moved = [name for name, ids in self.nodes.items() if before.nodes[name] != ids]
        if moved:
            return f"the nodes that may run {_names(moved)} changed"
        renewed = [
            node for node, digest in self.manifests.items() if before.manifests[node] != digest
        ]
        return f"the drivers of {_names(renewed)} changed"


def basis_of(outlook: Outlook) -> Basis:
    """What the answers about this plan rest on."""
    nodes: dict[str, tuple[str, ...]] = {}
    records: dict[str, NodeRecord] = {}
    for action in outlook.plan.actions:
        answer = outlook.answer(action)
        # a member that cannot run it takes part all the same, and fails
        meant = answer.nodes if outlook.record(action).member_wise else answer.able
        nodes[action.id] = tuple(node.node for node in meant)
        records.update((node.node, node) for node in meant)
    manifests = {name: _digest_of(record.manifest) for name, record in records.items()}
    return Basis(outlook.digest, nodes, manifests)


class Previewed:
    """What the latest previews rested on, by fingerprint, so that a difference can be named."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Basis] = OrderedDict()

    def add(self, basis: Basis) -> None:
        self._known[basis.fingerprint] = basis
        if len(self._known) > limits.PREVIEWS:
            self._known.popitem(last=False)

    def why_not(self, expected: str, found: Basis) -> str:
        """Why a plan has another fingerprint than expected."""
        text = f"the plan's fingerprint is {found.fingerprint}, not {expected[:40]}"
        before = self._known.get(expected)
        return text if before is None else f"{text}: {found.changed_since(before)}"


def _digest_of(manifest: Manifest) -> str:
    """Remembered: a digest takes milliseconds, and a fleet keeps its manifests."""
    known = _digests.get(id(manifest))
    if known is None:
        # the manifest is kept beside it, so that its id cannot be another's
        known = _digests[id(manifest)] = (manifest, manifest.digest())
        if len(_digests) > limits.ENROLLED_NODES:
            _digests.popitem(last=False)
    return known[1]


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
