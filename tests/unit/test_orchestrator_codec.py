"""Every change class as a row and back, and in words."""

import types
import typing
from dataclasses import fields
from typing import Any

import pytest

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.codec import FORMS, decode, encode, kind_of
from imlmesh_orchestrator.views.telling import event_data, sentence, story_entry
from imlmesh_protocol.errors import Fault, StoreError
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import (
    ActionState,
    Admission,
    ApprovalState,
    DispatchState,
    Effect,
    Liveness,
    RunState,
)

SPEC = ActionSpec("toy", "look", {"type": "object"}, ("x",), Effect.PURE, "readonly", 0.5)
SAMPLES: dict[Any, Any] = {
    int: 7,
    bool: True,
    bytes: b"\x00\xff",
    Any: {"deep": [1, None, 2.5, "ü", b"raw"]},
    Fault: Fault("node.lost", "silent", {"since": 4}),
    Manifest: Manifest({"toy": Module("1.0", {"look": SPEC})}),
    Plan: Plan.model_validate(
        {
            "plan_id": "p",
            "actions": [
                {
                    "id": "a",
                    "module": "toy",
                    "action": "look",
                    "params": {"n": 1, "t": "{{env.IML_X}}"},
                    "effect": "once",
                    "target_selector": "cpu >= 2",
                },
                {"id": "b", "module": "toy", "action": "look", "depends_on": ["a"]},
            ],
        }
    ),
    Effect: Effect.PHYSICAL,
    ActionState: ActionState.FAILED,
    Admission: Admission.DRAINING,
    ApprovalState: ApprovalState.DENIED,
    DispatchState: DispatchState.TIMED_OUT,
    Liveness: Liveness.LOST,
    RunState: RunState.CANCELLED,
}


def sample(name: str, hint: Any) -> Any:
    if name == "dispatch":
        return "r-1-bcdf/a/pi-1/2"
    if hint is str:
        return f"a {name}"
    if isinstance(hint, types.UnionType):
        return sample(name, typing.get_args(hint)[0])
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = typing.get_args(hint)
        if typing.get_origin(inner[0]) is tuple:
            row = tuple(sample(name, part) for part in typing.get_args(inner[0]))
            return (row, (*row[:-1], None))
        return ("x", "y")
    if origin is not None:
        return {"x": "y"}
    return SAMPLES[hint]


def made(kind: type[c.Change], *, empty: bool = False) -> c.Change:
    hints = typing.get_type_hints(kind)
    values = {field.name: sample(field.name, hints[field.name]) for field in fields(kind)}
    if empty:
        for name, hint in hints.items():
            if isinstance(hint, types.UnionType):
                values[name] = None
    return kind(**values)


@pytest.mark.parametrize("kind", FORMS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("empty", [False, True])
def test_every_change_survives_its_row(kind, empty):
    change = made(kind, empty=empty)
    row = encode(change)
    back = decode(*row)
    assert back == change
    for field in fields(kind):
        assert type(getattr(back, field.name)) is type(getattr(change, field.name)), field.name


def test_all_changes_have_a_form_and_a_kind_of_their_own():
    def below(kind: type) -> set[type]:
        return {kind, *(each for sub in kind.__subclasses__() for each in below(sub))}

    # by name: what slots make anew stays among the subclasses until it is collected
    names = {kind.__name__ for kind in below(c.Change) - {c.Change, c.RunChange}}
    assert {form.__name__ for form in FORMS} == names
    assert len({form.kind for form in FORMS.values()}) == len(FORMS)
    assert kind_of(made(c.DispatchPlanned)) == "dispatch-planned"


@pytest.mark.parametrize(
    "damage",
    [
        {3: "no-such-kind"},
        {4: 2},
        {5: b"\xc1"},
        {5: b"\x91\x01"},
    ],
)
def test_a_damaged_row_is_corrupt(damage):
    row = list(encode(made(c.DispatchEnded)))
    for place, value in damage.items():
        row[place] = value
    with pytest.raises(StoreError) as caught:
        decode(*row)
    assert caught.value.code == "store.corrupt"


@pytest.mark.parametrize("kind", FORMS, ids=lambda kind: kind.__name__)
def test_every_change_is_told(kind):
    change = made(kind)
    text = sentence(change, lambda node: f"<{node}>")
    assert text
    assert "\n" not in text
    data = event_data(5, change, str)
    assert (data["seq"], data["kind"], data["cause"]) == (5, kind_of(change), "a cause")
    assert not {"bin", "hash", "plan", "manifest", "result"} & data.keys()
    assert story_entry(5, change, str)["text"] == sentence(change, str)


def test_a_told_dispatch_names_action_and_node():
    data = event_data(1, made(c.DispatchAccepted), str)
    assert (data["action"], data["node"], data["dispatch"]) == ("a", "pi-1", "r-1-bcdf/a/pi-1/2")
    failed = event_data(1, made(c.ResultTaken), str)
    assert (failed["code"], failed["state"], failed["action_state"]) == (
        "node.lost",
        "timed_out",
        "failed",
    )
    assert event_data(1, made(c.ApprovalAsked), str)["approval_kind"] == "a kind"


def test_a_told_unit_names_its_action_and_its_node():
    fault = Fault("node.lost", "silent")
    member = c.ActionEnded(1, "m", "r-1-x", "read@pi-1", ActionState.FAILED, fault)
    data = event_data(1, member, str.upper)
    assert (data["unit"], data["action"], data["node"]) == ("read@pi-1", "read", "pi-1")
    assert data["text"] == "read on PI-1 failed: node.lost: silent"
    undoing = c.ActionWaiting(1, "m", "r-1-x", "read~pi-1", {})
    assert sentence(undoing, str.upper) == "undoing read on PI-1 waits for a node"
    rows = (
        ("read~pi-1", "read", "pi-1", "note", None),
        ("read~pi-2", "read@pi-2", "pi-2", "n", {}),
    )
    planned = c.CompensationsPlanned(1, "m", "r-1-x", rows)
    assert event_data(1, planned, str)["compensations"] == ["read~pi-1", "read~pi-2"]
    assert sentence(planned, str) == "what is undone, in this order: read, read on pi-2"


def test_states_are_told_as_words():
    ended = c.ActionEnded(1, "m", "r-1-x", "read", ActionState.ROLLED_BACK, None)
    assert sentence(ended, str) == "read rolled back"
    assert " timed out after " in sentence(made(c.ResultTaken), str)


def test_a_retry_says_how_often_it_failed_and_when_it_goes_on():
    fault = Fault("driver.timeout", "too slow")
    change = c.RetryPlanned(1_000, "m", "r-1-x", "read", 2, fault, 3_500)
    assert sentence(change, str) == (
        "read failed 2 times, is tried again in 2.5 s: driver.timeout: too slow"
    )


def test_values_of_memory_are_not_told():
    data = event_data(1, c.MemoryWritten(1, "m", "s", "k", "secret" * 99, 594, "me"), str)
    assert "value" not in data
    assert (data["key"], data["size"], data["unit"]) == ("k", 594, None)


def test_a_watcher_gets_no_result_however_small_its_type():
    taken = c.ResultTaken(
        1,
        "m",
        "r-1-x",
        "r-1-x/a/pi/1",
        "a",
        DispatchState.COMPLETED,
        ActionState.COMPLETED,
        "text" * 1_000,
        None,
        5,
    )
    data = event_data(7, taken, str)
    assert "result" not in data
    assert (data["action"], data["duration_ms"]) == ("a", 5)


@pytest.mark.parametrize(
    ("state", "option", "by", "text"),
    [
        ("approved", "softly", "ann", "a-3 is approved: ann chose softly"),
        ("denied", "deny", "ann", "a-3 is denied: ann chose deny"),
        ("expired", "skip", "imlmesh", "a-3 is expired: nobody answered in time, which means skip"),
        (
            "superseded",
            None,
            "imlmesh",
            "a-3 is superseded: what it asked about ended or changed before anybody answered",
        ),
    ],
)
def test_a_closed_question_tells_how_it_ended(state, option, by, text):
    change = c.ApprovalClosed(1, "m", "r-1-x", "a-3", ApprovalState(state), option, by)
    assert sentence(change, str) == text
