"""The JSON Schema of a plan, for editors.

The one rule: it is generated from the models, so it cannot say anything else. Deliberately
absent: what only `validate` can see (dependencies, manifests, refused fields).
"""

from typing import Any

from imlmesh_protocol.iml.plan import Plan

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def plan_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of an IML v2 plan."""
    schema = Plan.model_json_schema()
    # a plan without a name gets one from its content; the empty default only stands for that
    del schema["properties"]["plan_id"]["default"]
    return {"$schema": DIALECT, **schema, "title": "IML v2 plan"}
