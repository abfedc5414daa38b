"""Changes about who may get work, and what speaks against a node.

The one rule: as of `changes`, of which these are a part: plain values, one row each.
"""

from dataclasses import dataclass

from imlmesh_orchestrator.core.changes import Change
from imlmesh_protocol.states import Admission


@dataclass(slots=True)
class AdmissionChanged(Change):
    """Whether the node may get work from now on; it need not have been born.

    `by` is a person, or imlmesh for what the mesh decided itself. With `until_ms` 0 it stays so
    until somebody changes it.
    """

    node: str
    admission: Admission
    reason: str
    by: str
    until_ms: int


@dataclass(slots=True)
class EvidenceKept(Change):
    """Something that the node signed speaks against it; `evidence` is one of evidence.KINDS, or foreign.

    `verdict` is what it led to: counted, quarantined, prolonged, or alarm when so many nodes are
    quarantined that it is no longer about single ones; kept when it counts for nothing.
    """

    node: str
    evidence: str
    detail: str
    verdict: str
