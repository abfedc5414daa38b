"""What a person may choose at a gate besides yes and no, and that none of it is taken for a no.

The one rule: every choice lets the action run, so a word that means the gate's own answers is an
error in any spelling, and one that sounds like a refusal is a warning. Deliberately absent: what
an answer may be made of; the model knows.
"""

from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.iml.plan import ANSWERS, Action

_REFUSALS = frozenset(
    {"no", "n", "nope", "never", "reject", "refuse", "decline", "cancel", "abort", "stop", "false"}
)


def check_choices(index: int, action: Action, findings: Findings) -> None:
    """plan.field and plan.no_effect, each at its choice."""
    options = action.approval.clarification_options if action.approval is not None else ()
    for entry, option in enumerate(options):
        pointer = pointer_of("actions", index, "approval", "clarification_options", entry)
        meant = option.strip().casefold()
        if meant in ANSWERS:
            message = f'action "{action.id}": the choice "{option}" is the gate\'s own "{meant}"'
            findings.error("plan.field", pointer, message)
        elif meant in _REFUSALS:
            message = (
                f'action "{action.id}": "{option}" lets it run, as every choice does; '
                f'"deny" can always be answered'
            )
            findings.warning("plan.no_effect", pointer, message)
