"""Manifests, facts, results and variables that nobody in good faith sends: coded ends, no more."""

from dataclasses import replace
from typing import Any

import pytest

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.manifest import Manifest
from imlmesh_protocol.states import Effect
from scheduler_stage import HEARTBEAT_MS, LOST_MS, TOY, Stage, action, plan, spec


def fault_code(run: Any, name: str) -> str | None:
    fault = run.actions[name].fault
    return fault.code if fault else None


def test_a_claim_made_of_a_large_result_fails_the_action() -> None:
    stage = Stage("pi")
    push = action("b", "a", do="push", params={"pin": "{{result.a}}"})
    run = stage.submit(plan(action("a"), push))
    stage.end(run, "a", result="x" * 140_000)
    assert (run.state, fault_code(run, "b")) == ("failed", "action.params")


def test_a_manifest_whose_claims_swell_fails_the_action() -> None:
    module = TOY.modules["toy"]
    look = spec("look", Effect.PURE, claims=("{pin}" * 1_000,))
    stage = Stage()
    swelling = Manifest({"toy": replace(module, actions={**module.actions, "look": look})})
    stage.birth("pi", manifest=swelling)
    run = stage.submit(plan(action("a", params={"pin": "x" * 1_000})))
    assert not [command for command in stage.commands if isinstance(command, k.SendDispatch)]
    assert (run.state, fault_code(run, "a")) == ("failed", "action.params")


def test_a_module_version_that_is_none_satisfies_nothing() -> None:
    stage = Stage()
    nonsense = replace(TOY.modules["toy"], version="not a version")
    stage.birth("pi", manifest=Manifest({"toy": nonsense}))
    run = stage.submit(plan(action("a"), module_requirements={"toy": ">=1"}))
    assert stage.states(run) == {"a": "waiting"}


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (None, "waiting"),
        ([1], "running"),
        ({"a": 1}, "waiting"),
        ("text", "waiting"),
        (b"x", "waiting"),
        (1.5, "waiting"),
        (2.5, "running"),
        (True, "waiting"),
        ("a" * 100_000, "running"),
    ],
)
def test_selectors_read_facts_of_any_type(value: Any, state: str) -> None:
    stage = Stage()
    stage.birth("pi", zone=value)
    selector = 'zone >= 2 or zone < "b" or zone in [1, "x"]'
    run = stage.submit(plan(action("a", target_selector=selector)))
    assert stage.states(run) == {"a": state}


def test_a_variable_that_is_not_utf_8_fails_the_action() -> None:
    scheduler = Scheduler({"IML_X": "caf\udce9"})
    scheduler.handle(e.Restarted(1, "r", 1))
    scheduler.handle(e.BusOpened(1, "o"))
    born = e.NodeBirth(1, "b", "pi", "pi", 1, 1, TOY, {}, "unrestricted", HEARTBEAT_MS, LOST_MS)
    scheduler.handle(born)
    what = plan(action("a", params={"v": "{{env.IML_X}}"}))
    scheduler.handle(e.PlanSubmitted(2, "s", 1, what, "d", "eve"))
    (run,) = scheduler.state.runs.values()
    assert (run.state, scheduler.state.dispatches) == ("failed", {})


def test_one_large_value_does_not_wipe_the_memory() -> None:
    nodes = tuple(f"n-{n}" for n in range(10))
    stage = Stage(*nodes)
    stage.post(e.MemorySet, session="other", key="k", value=1, by="eve")
    run = stage.submit(plan(action("a", target_mode="all", memory={"write_key": "big"})))
    for node in nodes:
        stage.end(run, f"a@{node}", result="x" * 190_000)
    assert run.state == "completed"
    assert stage.state.memory == {("other", "k"): 1}
    assert stage.state.memory_bytes <= limits.MEMORY_BYTES


def test_a_node_that_refuses_what_it_has_started_gets_no_second_of_its_kind() -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", do="send")))
    dispatch = stage.dispatch_of(run, "a")
    pairs = ((dispatch.dispatch, dispatch.hash),)
    started = (dispatch.dispatch,)
    stage.post(e.AcceptArrived, node=dispatch.node, dispatches=pairs, started=started)
    refusals = ((dispatch.dispatch, Fault("policy.path", "no")),)
    stage.post(e.RejectArrived, node=dispatch.node, refusals=refusals)
    assert run.dispatches == [dispatch.dispatch]
    assert stage.running(run) == ["a"]
