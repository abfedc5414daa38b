"""Permits as words that both sides share: the document, the course of a run, values that are filled in."""

from dataclasses import replace
from typing import Any

import pytest
from nacl.signing import SigningKey

from imlmesh_protocol.errors import Fault, MeshError
from imlmesh_protocol.limits import PERMIT_ACTIONS, PERMIT_BUDGET, PERMIT_TRIES
from imlmesh_protocol.permits import (
    EVERY,
    ON,
    End,
    Filling,
    Permit,
    PermitAction,
    Rule,
    course,
    filled,
    permit_id,
    permit_run,
    split_permit_run,
)
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.permits import own_permit, pack_permit, read_permit, sign_permit

KEY, KEY_ID = SigningKey(b"k" * 32), b"12345678"


def act(name: str, *after: str, effect: Effect = Effect.ONCE, **more: Any) -> PermitAction:
    return PermitAction(name, "fake", "act", {}, effect, 60_000, after, **more)


def permit(*actions: PermitAction, **more: Any) -> Permit:
    told = {"plan": "water", "digest": "d" * 64, "budget": 3, "from_ms": 1_000, "to_ms": 9_000}
    told |= {"rule": Rule(EVERY, 60_000), "actions": actions or (act("a"),)}
    return Permit(**{"mesh": "home", "id": "p-3-kq7x", "node": "pi", **told, **more})


def sign(data: bytes) -> bytes:
    return KEY.sign(data).signature


def signed(body: bytes) -> bytes:
    return sign_permit(body, sign, KEY_ID)


def test_a_document_gives_the_permit_back_to_who_knows_the_key() -> None:
    filling = Filling(("to", 0), ("at ", ("a", "x", "1")))
    params = {"to": ["at {{result.a.x.1}}"], "n": 1.5}
    made = permit(
        act("a", claims=("pin:1",)), replace(act("b", "a"), params=params, fillings=(filling,))
    )
    document = signed(pack_permit(made))
    assert read_permit(document, lambda key_id: KEY.verify_key) == made
    assert own_permit(document) == made
    with pytest.raises(MeshError) as unknown:
        read_permit(document, lambda key_id: None)
    assert unknown.value.code == "signature.unknown_key"
    with pytest.raises(MeshError) as forged:
        read_permit(document, lambda key_id: SigningKey(b"x" * 32).verify_key)
    assert forged.value.code == "signature.invalid"


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": 0},
        {"budget": PERMIT_BUDGET + 1},
        {"budget": True},
        {"to_ms": 1_000},
        {"id": "r-3-kq7x"},
        {"id": 7},
        {"node": "../pi"},
        {"mesh": ""},
        {"rule": Rule("sometimes", 60_000)},
        {"rule": Rule(EVERY, 10)},
        {"rule": Rule(ON)},
        {"actions": ()},
        {"actions": tuple(act(f"a{n}") for n in range(PERMIT_ACTIONS + 1))},
        {"actions": (act("a"), act("a"))},
        {"actions": (act("b", "a"), act("a"))},
        {"actions": (act("a/b"),)},
        {"actions": (act(""),)},
        {"actions": (act("a" * 65),)},
        {"actions": (replace(act("a"), effect=["once"]),)},
        {"actions": (act("a", fillings=(Filling((), ((["b"], "x"),)),)),)},
        {"actions": (act("a", on_error="retry"),)},
        {"actions": (act("a", on_busy="hope"),)},
        {"actions": (act("a", fillings=(Filling(("nowhere",), ("x",)),)),)},
        {"actions": (act("a", fillings=(Filling((), (("b", "x"),)),)),)},
    ],
)
def test_a_body_of_wrong_values_is_refused_although_it_is_signed(wrong: dict[str, Any]) -> None:
    with pytest.raises(MeshError) as refused:
        read_permit(signed(pack_permit(permit(**wrong))), lambda key_id: KEY.verify_key)
    assert refused.value.code == "message.invalid"


@pytest.mark.parametrize("place", ["body", "rule", "action"])
def test_a_field_that_nobody_knows_may_be_a_restriction(place: str) -> None:
    body = unpack(pack_permit(permit()))
    changed = {"body": body, "rule": body["rule"], "action": body["actions"][0]}[place]
    changed["only_by_night"] = True
    with pytest.raises(MeshError) as refused:
        read_permit(signed(pack(body)), lambda key_id: KEY.verify_key)
    assert refused.value.code == "message.invalid"


def test_a_run_names_its_permit_and_nothing_else_does() -> None:
    name = permit_id(3, 7)
    assert split_permit_run(permit_run(name, 12)) == (name, 12)
    for other in ("r-3-kq7x", name, f"{name}-x", f"{name}-12-1", f"{name}-99999", ""):
        assert split_permit_run(other) is None


DONE = End(1, "completed")
FAILED = End(1, "failed", "driver.failed")


@pytest.mark.parametrize(
    ("ends", "following", "skipped", "failed"),
    [
        ({}, ("a", 1), (), ""),
        ({"a": DONE}, ("b", 1), (), ""),
        ({"a": DONE, "b": DONE}, ("c", 1), (), ""),
        ({"a": DONE, "b": DONE, "c": DONE}, None, (), ""),
        # a aborts: nothing more begins
        ({"a": FAILED}, None, ("b", "c"), "a"),
        # b skips, so does what rests on it
        ({"a": DONE, "b": FAILED}, None, ("c",), ""),
        # what never began is tried again, whatever its effect
        ({"a": End(1, "failed", "action.not_started")}, ("a", 2), (), ""),
        ({"a": End(PERMIT_TRIES, "failed", "action.not_started")}, None, ("b", "c"), "a"),
        # a once effect that was cut short is not
        ({"a": End(1, "unknown", "node.interrupted")}, None, ("b", "c"), "a"),
        ({"a": End(1, "failed", "node.interrupted")}, None, ("b", "c"), "a"),
        ({"a": DONE, "b": End(1, "failed", "node.interrupted")}, ("b", 2), (), ""),
        ({"a": DONE, "b": End(1, "failed", "driver.killed_along")}, ("b", 2), (), ""),
        ({"a": End(1, "unknown", "driver.killed_along")}, None, ("b", "c"), "a"),
        # nobody knows: nothing may rest on it, whatever its on_error
        ({"a": DONE, "b": End(1, "unknown", "node.interrupted")}, None, ("c",), "b"),
    ],
)
def test_what_follows_from_how_actions_ended(
    ends: dict[str, End], following: Any, skipped: tuple[str, ...], failed: str
) -> None:
    actions = (act("a"), act("b", "a", effect=Effect.PURE, on_error="skip"), act("c", "b"))
    found = course(actions, ends)
    assert (found.next and (found.next[0].id, found.next[1])) == following
    assert (found.skipped, found.failed) == (skipped, failed)


def test_a_failure_that_is_continued_lets_the_rest_pass() -> None:
    actions = (act("a", on_error="continue"), act("b", "a"), act("c"))
    found = course(actions, {"a": FAILED})
    assert found.next is not None
    assert found.next[0].id == "b"


def test_values_take_their_places_and_keep_their_type_when_alone() -> None:
    action = act(
        "b",
        fillings=(Filling(("v",), (("a", "x"),)), Filling(("t", 0), ("is ", ("a", "n", "1"), "!"))),
    )
    action = replace(action, params={"v": "{{result.a.x}}", "t": ["{{…}}", 2]})
    found = filled(action, {"a": {"x": {"deep": [1]}, "n": [0, True]}})
    assert found == {"v": {"deep": [1]}, "t": ["is true!", 2]}
    assert action.params["v"] == "{{result.a.x}}", "what was permitted stays"


@pytest.mark.parametrize(
    "results", [{}, {"a": None}, {"a": {"y": 1}}, {"a": {"x": [1]}}, {"a": {"x": b"1"}}]
)
def test_what_is_not_there_or_cannot_stand_in_text_is_a_fault(results: dict[str, Any]) -> None:
    action = replace(act("b", fillings=(Filling(("t",), ("=", ("a", "x"))),)), params={"t": "?"})
    found = filled(action, results)
    assert isinstance(found, Fault)
    assert found.code == "template.no_result"


def test_what_is_there_and_too_large_says_so() -> None:
    action = replace(act("b", fillings=(Filling(("t",), (("a", "x"),)),)), params={"t": "?"})
    found = filled(action, {}, {"a"})
    assert isinstance(found, Fault)
    assert (found.code, found.message) == (
        "template.too_large",
        "result.a.x: what a returned is too large to be filled in",
    )


def test_params_that_grow_too_large_are_a_fault() -> None:
    action = replace(act("b", fillings=(Filling(("t",), (("a", "x"),)),)), params={"t": "?"})
    found = filled(action, {"a": {"x": "x" * 200_000}})
    assert isinstance(found, Fault)
    assert found.code == "template.too_large"


@pytest.mark.parametrize(
    ("rule", "heard"),
    [
        (Rule(ON, source="gpio-17"), True),
        (Rule(ON, source="gpio-17", value="1"), True),
        (Rule(ON, source="gpio-17", value=0), False),
        (Rule(ON, source="gpio-18"), False),
        (Rule(EVERY, 60_000), False),
    ],
)
def test_a_rule_hears_its_source_and_value(rule: Rule, heard: bool) -> None:
    assert rule.hears("gpio-17", {"pin": 17, "value": 1}) is heard
