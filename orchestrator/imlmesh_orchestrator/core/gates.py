"""When a person must agree before something runs, and what exactly was agreed to.

The one rule: an approval is bound to a digest of plan, params and nodes; whoever would run
something else than was approved must ask again. Deliberately absent: asking; `asking` does.
"""

import hashlib
from collections.abc import Mapping

from imlmesh_orchestrator.core.placement import candidates, matching, pool_key, why_not
from imlmesh_orchestrator.core.rendering import params_of
from imlmesh_orchestrator.core.state import ActionRecord, RunRecord, State
from imlmesh_protocol.limits import IMPACT_WITHOUT_APPROVAL
from imlmesh_protocol.wire.codec import pack

#: stands for the node in what is approved: which of them runs it is decided later
_ANY_NODE = "{{node.id}}"


def reason_for(state: State, run: RunRecord, record: ActionRecord) -> str | None:
    """Why a person must be asked, in words; None when nobody need be."""
    action = record.action
    if record.key in run.again:
        return f"it already ran in the run that this one retries: {run.again[record.key]}"
    if action.requires_approval:
        return "the plan requires approval"
    impact = action.impact or 0.0
    if (action.module, action.action) in state.risky:
        impact = max(impact, driver_impact(state, record))
    if impact > IMPACT_WITHOUT_APPROVAL:
        return f"its impact is {impact:g}"
    return None


def may_ask(state: State, run: RunRecord, record: ActionRecord) -> bool:
    """Whether `reason_for` need be asked at all: nearly never."""
    if record.call.asks or run.again:
        return True
    action = record.action
    return bool(state.risky) and (action.module, action.action) in state.risky


def driver_impact(state: State, record: ActionRecord) -> float:
    """The highest that any known node's driver declares."""
    module, action = record.action.module, record.action.action
    found = (node.manifest.find(module, action) for node in state.nodes.values())
    return max((spec.impact for spec in found if spec is not None), default=0.0)


def digest_of(state: State, env: Mapping[str, str], run: RunRecord, record: ActionRecord) -> str:
    """SHA-256 (hex) of what would be approved; InputError when a template cannot be filled."""
    params = params_of(state, env, run, record, _ANY_NODE)
    packed = pack([run.digest, record.action.action, params, _nodes(state, run, record)])
    return hashlib.sha256(packed).hexdigest()


def _nodes(state: State, run: RunRecord, record: ActionRecord) -> list[str]:
    """Ids of the nodes that may run it, whoever of them is here now."""
    whole = record.parent or record
    if whole.members is not None:
        return [member.node for member in whole.members.values()]
    if whole.member_wise:
        return sorted(node.node for node in matching(state, run, whole))
    key = pool_key(run, record)
    module, action, version = key[:3]
    able = (n for n in candidates(state, key) if why_not(n, module, action, version) is None)
    return sorted(node.node for node in able)


def approved(record: ActionRecord, digest: str) -> bool:
    """Whether a person agreed to exactly this, for the unit itself or for all members."""
    return digest in (record.approved, record.parent.approved if record.parent else "")
