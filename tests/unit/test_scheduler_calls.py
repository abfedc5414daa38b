"""What equal actions of a run have in common, and when it no longer holds."""

from dataclasses import replace
from typing import Any

import pytest

from imlmesh_orchestrator.core.calls import Calls
from imlmesh_protocol.manifest import Manifest
from imlmesh_protocol.states import Effect
from scheduler_stage import TOY, Stage, action, plan


def test_actions_of_the_same_words_share_one_call_whatever_their_params() -> None:
    run = Stage().submit(plan(action("a", params={"v": 1}), action("b", "a"), action("c", "a")))
    assert run.actions["a"].call is run.actions["b"].call is run.actions["c"].call


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("action", "write"),
        ("module", "other"),
        ("timeout", 7),
        ("on_error", "rollback"),
        ("requires_approval", True),
        ("impact", 0.8),
        ("memory", {"write_key": "k"}),
        ("effect", "once"),
        ("claims", ("c",)),
        ("on_busy", "fail"),
        ("lease_seconds", 9),
        ("on_node_loss", "ask"),
        ("target_node", "pi"),
        ("target_group", "all"),
        ("target_selector", "os == 1"),
        ("target_mode", "all"),
        ("fallback_nodes", ("pi",)),
    ],
)
def test_every_word_that_decides_something_makes_another_call(word: str, value: Any) -> None:
    calls = Calls()
    first, other, third = plan(action("a"), action("b", **{word: value}), action("c")).actions
    of_first, of_other, of_third = map(calls.of, (first, other, third))
    assert of_first is of_third is not of_other
    assert [*calls] == [of_first, of_other]


def test_what_a_node_says_anew_counts_for_the_next_dispatch_of_an_equal_action() -> None:
    stage = Stage("pi")
    run = stage.submit(plan(action("a"), action("b", "a")))
    assert stage.sent(run, "a").effect is Effect.PURE
    module = TOY.modules["toy"]
    look = replace(module.actions["look"], effect=Effect.ONCE)
    changed = replace(module, actions={**module.actions, "look": look})
    stage.birth("pi", session=2, manifest=Manifest({"toy": changed}))
    stage.end(run, "a")
    sent = stage.sent(run, "b")
    assert (sent.effect, sent.when_cut_off) == (Effect.ONCE, "finish")
    assert stage.dispatch_of(run, "b").on_loss == "ask"


def test_a_claim_of_one_action_is_not_an_equal_ones() -> None:
    stage = Stage("pi")
    pins = [action(name, action="push", params={"pin": pin}) for name, pin in (("a", 1), ("b", 2))]
    run = stage.submit(plan(*pins))
    assert [stage.sent(run, name).claims for name in "ab"] == [("pin:1",), ("pin:2",)]
