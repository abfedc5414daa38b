"""What a person agreed to is what runs, and an effect is never less careful than its driver."""

from typing import Any

from imlmesh_orchestrator.core import events as e
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import Effect
from scheduler_stage import TOY, Stage, action, plan, spec

READS: dict[str, Any] = {"params": {"v": "{{memory.k}}"}, "memory": {"read_keys": ["k"]}}


def toy(changed: ActionSpec) -> Manifest:
    module = TOY.modules["toy"]
    return Manifest({"toy": Module(module.version, {**module.actions, changed.action: changed})})


def remember(stage: Stage, value: str) -> None:
    stage.post(e.MemorySet, session="default", key="k", value=value, by="eve")


def test_a_gate_that_another_node_s_driver_asked_for_binds_on_every_node() -> None:
    harmless = toy(spec("blast", Effect.ONCE, impact=0.1))
    stage = Stage("pi-1")
    stage.birth("pi-2", manifest=harmless)
    remember(stage, "agreed")
    run = stage.submit(plan(action("a", do="blast", **READS)))
    stage.live(for_ms=12_000)
    stage.answer("approve")
    assert stage.states(run)["a"] == "waiting"
    remember(stage, "something else")
    stage.birth("pi-2", boot=2, manifest=harmless)
    assert stage.states(run)["a"] == "awaiting_approval"


def test_the_effect_is_never_less_careful_than_the_node_s_own_driver_now() -> None:
    stage = Stage("pi")
    what = plan(action("a", effect="idempotent"))
    run = stage.submit(what, starts_at_ms=stage.now_ms + 1_000)
    stage.birth("pi", boot=2, manifest=toy(spec("look", Effect.PHYSICAL)))
    stage.pass_time(1_000)
    assert stage.dispatch_of(run, "a").effect is Effect.PHYSICAL
