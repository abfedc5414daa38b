"""The digest of a plan: what it is stored by, and what an approval is bound to.

The one rule: plans that mean the same have the same digest, whatever their format, key order and
written-out defaults. Deliberately absent: signatures.
"""

import hashlib

import rfc8785

from imlmesh_protocol.iml.plan import Plan


def plan_digest(plan: Plan) -> str:
    """SHA-256 (hex) of the plan's canonical JSON (RFC 8785), fields at their default left out."""
    content = plan.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(rfc8785.dumps(content)).hexdigest()
