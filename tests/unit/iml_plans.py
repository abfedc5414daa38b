"""Plans for the tests of checking: a module `m`, a small fleet, and short ways to check."""

from imlmesh_protocol.iml.document import document_of
from imlmesh_protocol.iml.validate import Fleet, validate
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import Effect


def spec(
    action, properties, required=(), *, effect=Effect.PURE, impact=0.1, vouch=False, returns=()
):
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
    return ActionSpec("m", action, schema, returns, effect, "readonly", impact, vouch=vouch)


SPECS = {
    "read": spec(
        "read",
        {
            "path": {"type": "string", "maxLength": 20},
            "max_bytes": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
            "mode": {"enum": ["fast", "slow"]},
            "lines": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        },
        ["path"],
        returns=("path", "content"),
    ),
    "set": spec("set", {"n": {"type": "integer"}}, effect=Effect.IDEMPOTENT, impact=0.3),
    "run": spec("run", {}, effect=Effect.ONCE, impact=0.6, vouch=True),
    "append": spec("append", {}, effect=Effect.ONCE, impact=0.5),
    "pin": spec("pin", {}, effect=Effect.PHYSICAL, impact=0.5),
    "any": ActionSpec("m", "any", {"type": "object"}, (), Effect.ONCE, "readonly", 0.1),
    "wipe": spec("wipe", {}, effect=Effect.ONCE, impact=0.75),
}
MANIFEST = Manifest({"m": Module("1", SPECS)})
FLEET = Fleet(
    {"pi-garden": "pi-garden", "pi-attic": "n2", "n2": "n2"}, {"soil-probes": ("n2",), "empty": ()}
)


def act(id="a", action="read", **fields):
    params = {"path": "x"} if action == "read" else {}
    return {"id": id, "module": "m", "action": action, "params": params, **fields}


def plan_of(*actions, **fields):
    return {"protocol_version": "2.0", "description": "d", "actions": list(actions), **fields}


def checked(plan, fleet=None, **limit):
    report = validate(document_of(plan), [MANIFEST], fleet, **limit)
    assert (report.plan is None) == bool(report.errors)
    return report


def found(plan, fleet=None, **limit):
    return [(e.code, e.place.pointer) for e in checked(plan, fleet, **limit).errors]


def warned(plan, fleet=None):
    """(code, pointer) of every warning of a plan without errors."""
    report = checked(plan, fleet)
    assert report.errors == []
    return [(w.code, w.place.pointer) for w in report.warnings]
