"""Checks a plan as a whole, and says everything that is wrong with it at once.

The one rule: the same function answers `plan check` offline and the orchestrator at submission;
only the manifests and the fleet differ. Deliberately absent: changing the plan, but for the name
that a nameless one gets from its content.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.iml.calls import calls_of
from imlmesh_protocol.iml.choices import check_choices
from imlmesh_protocol.iml.digest import plan_digest
from imlmesh_protocol.iml.document import Document
from imlmesh_protocol.iml.fields import read_fields
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.iml.graph import check_graph
from imlmesh_protocol.iml.no_effect import warn_of_no_effect
from imlmesh_protocol.iml.params import Catalogue, check_action, effect_of
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.iml.requirements import check_requirements
from imlmesh_protocol.iml.targets import Fleet, check_targets
from imlmesh_protocol.iml.unsupported import refuse_unsupported
from imlmesh_protocol.iml.uses import check_templates
from imlmesh_protocol.manifest import Manifest

__all__ = ["Fleet", "Report", "effect_of", "validate"]


@dataclass(frozen=True, slots=True)
class Report:
    """The plan, when there are no errors; errors and warnings in the order of the document."""

    plan: Plan | None
    errors: list[MeshError]
    warnings: list[MeshError]


def validate(
    document: Document,
    manifests: Sequence[Manifest],
    fleet: Fleet | None = None,
    *,
    max_actions: int = limits.PLAN_ACTIONS,
) -> Report:
    """Check fields, dependencies, templates, params and targets; never raises for a bad plan.

    Without a fleet (offline) an unknown module is a warning and names of nodes are not checked.
    """
    findings = Findings(document)
    data = document.data
    if not isinstance(data, dict):
        findings.error(
            "plan.field", "", "a plan is an object of fields, beginning with its actions"
        )
        return Report(None, findings.errors, findings.warnings)
    written = data.get("actions")
    count = len(written) if isinstance(written, list) else 0
    if count > max_actions:
        # each action may be wrong in many ways; all that would only hide what is to be done
        message = f"the plan has {count:,} actions; at most {max_actions:,}"
        findings.error("plan.too_many_actions", "/actions", message, key=True)
        return Report(None, findings.errors, findings.warnings)
    plan, actions = read_fields(document, findings)
    raw_actions = written if isinstance(written, list) else []
    refuse_unsupported(data, raw_actions, findings)
    graph = check_graph(raw_actions, findings)
    catalogue = Catalogue(manifests, check_requirements(data, manifests, findings))
    check_templates(raw_actions, graph, catalogue, fleet, findings)
    for index, action in actions.items():
        if findings.full:
            break
        calls = calls_of(index, actions, graph)
        check_action(index, action, calls, catalogue, fleet is not None, findings)
        check_targets(index, action, fleet, findings)
        check_choices(index, action, findings)
    if plan is not None:
        warn_of_no_effect(plan, catalogue, findings)
    if plan is None or findings.errors:
        return Report(None, findings.errors, findings.warnings)
    return Report(_named(plan), [], findings.warnings)


def _named(plan: Plan) -> Plan:
    if plan.plan_id:
        return plan
    return plan.model_copy(update={"plan_id": f"plan-{plan_digest(plan)[:8]}"})
