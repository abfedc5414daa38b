"""The scheduler's core alone: plan and run of layered plans, no I/O at all."""

import gc
import time
from statistics import median

from bench.figures import line
from bench.reference import message_round_us
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import Effect

SIZES = (100, 1_000, 10_000, 100_000)
WIDTH = 100
BATCH = 128
REPEATS = 3

NOOP = ActionSpec("fake", "noop", {"type": "object"}, (), Effect.PURE, "readonly", 0.0)
FAKE = Manifest({"fake": Module("1", {"noop": NOOP})})


def layered(actions: int) -> Plan:
    """Waves of 100, each action behind the whole wave before it."""
    rows = []
    before: tuple[str, ...] = ()
    for wave in range(actions // WIDTH):
        names = tuple(f"a{wave}-{index}" for index in range(WIDTH))
        rows += [
            {"id": name, "module": "fake", "action": "noop", "depends_on": before} for name in names
        ]
        before = names
    return Plan.model_validate(
        {
            "protocol_version": "2.0",
            "description": "",
            "execution_mode": "parallel",
            "actions": rows,
        }
    )


def measure(actions: int) -> float:
    """CPU microseconds for each action, from the plan's submission to the run's end."""
    plan = layered(actions)
    scheduler = Scheduler({})
    scheduler.handle(e.Restarted(0, "start", 1))
    scheduler.handle(e.BusOpened(0, "bus"))
    for name in ("n1", "n2"):
        scheduler.handle(e.NodeBirth(0, name, name, name, 1, 1, FAKE, {}, "readonly", 2_000, 6_000))
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)
    spent = 0.0
    event: e.Event = e.PlanSubmitted(1, "plan", 12_345, plan, "digest", "bench")
    events = [event]
    ended = False
    while events:
        coming: list[e.Event] = []
        for event in events:
            began = time.process_time()
            changes, commands = scheduler.handle(event)
            spent += time.process_time() - began
            ended = ended or any(type(change) is c.RunEnded for change in changes)
            coming += _results(scheduler, commands)
        events = coming
    if not ended:
        raise RuntimeError("the plan did not end")
    return spent / actions * 1e6


def _results(scheduler: Scheduler, commands: list[k.Command]) -> list[e.Event]:
    """What the nodes would answer: everything completed, in messages of up to 128."""
    by_node: dict[str, list[e.Result]] = {}
    for command in commands:
        if type(command) is k.SendDispatch:
            digest = scheduler.state.dispatches[command.dispatch].hash
            by_node.setdefault(command.node, []).append(
                e.Result(command.dispatch, digest, "completed", 0)
            )
    return [
        e.ResultsArrived(2, "results", node, tuple(results[first : first + BATCH]))
        for node, results in by_node.items()
        for first in range(0, len(results), BATCH)
    ]


def run() -> list[dict[str, object]]:
    found = []
    for actions in SIZES:
        # before and after: the machine's pace changes within seconds
        before_us, us = message_round_us(), median(measure(actions) for _ in range(REPEATS))
        round_us = (before_us + message_round_us()) / 2
        found.append(
            line(
                "core",
                actions=actions,
                us_per_action=round(us, 2),
                message_round_us=round(round_us, 2),
                ratio=round(us / round_us, 2),
            )
        )
    return found
