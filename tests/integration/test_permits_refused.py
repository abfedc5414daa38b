"""What a permit cannot hold is refused over the API, and the orchestrator goes on."""

import json

from orchestrator_mesh import ME, Mesh, action, plan

NODES = ("pi-1",)
TEXT = plan(action("a", "echo", params={"value": "x"}))
MANY = plan(*(action(name, "echo", params={"value": [0] * 10_500}) for name in ("a", "b")))


def asked(text: str, value: str) -> str:
    """A request whose rule waits for this value, as it stands in JSON."""
    rule = f'{{"kind": "on", "source": "gpio-17", "value": {value}}}'
    return f'{{"text": {json.dumps(text)}, "node": "pi-1", "rule": {rule}}}'


async def test_what_a_permit_cannot_hold_is_refused_and_the_next_one_is_granted(mesh: Mesh) -> None:
    wrong = {
        asked(TEXT, "NaN"): "permit.rule",
        asked(TEXT, "-Infinity"): "permit.rule",
        asked(TEXT, "1180591620717411303424"): "permit.rule",
        asked(TEXT, '"\\ud800"'): "permit.rule",
        asked(MANY, "1"): "permit.too_large",
    }
    for body, code in wrong.items():
        answer = await mesh.http.post("permits", content=body)
        assert answer.json()["code"] == code, answer.text
    assert (await mesh.get("permits"))["permits"] == []
    granted = await mesh.http.post("permits", content=asked(TEXT, "1"))
    assert granted.status_code == 201, granted.text
    assert mesh.processes[ME].returncode is None
