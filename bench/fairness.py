"""Fifty runs at once in virtual time: who waits how long for a node, and what the scheduler costs.

Two nodes with four slots each take ten virtual milliseconds for an action. A wait is the time from
the end of an action's last dependency (or its run's submission) to its dispatch.
"""

import gc
import heapq
import itertools
import statistics
import time
from collections import deque
from typing import Any

from bench.core import FAKE, layered
from bench.figures import line
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.limits import NODE_SLOTS

ACTIONS = 500
RUNS = 50
NODES = ("n1", "n2")
TAKES_MS = 10
ROUNDS = 5


class Stage:
    """A scheduler, its nodes and a clock that jumps from end to end."""

    def __init__(self) -> None:
        self._scheduler = Scheduler({})
        self.now_ms = 1
        self.cpu_s = 0.0
        self.waits_ms: list[int] = []
        self.ended = 0
        self._ready_ms: dict[tuple[str, str], int] = {}
        self._waiting: dict[str, deque[str]] = {node: deque() for node in NODES}
        self._busy = dict.fromkeys(NODES, 0)
        self._ends: list[tuple[int, int, str, str]] = []
        self._count = itertools.count()
        self._handle(e.Restarted(0, "start", 1))
        self._handle(e.BusOpened(0, "bus"))
        for name in NODES:
            self._handle(
                # so long a silence is allowed that nobody need beat
                e.NodeBirth(0, name, name, name, 1, 1, FAKE, {}, "readonly", 2_000, 1 << 40)
            )
        self.cpu_s = 0.0

    def submit(self, plan: Plan, number: int) -> None:
        self._handle(e.PlanSubmitted(self.now_ms, f"q{number}", number, plan, "digest", "bench"))

    def play(self) -> None:
        """Until nothing is under way; what a node ends in one moment it tells in one message."""
        while self._ends:
            self.now_ms, _, node, dispatch = heapq.heappop(self._ends)
            ended = [dispatch]
            while self._ends and self._ends[0][0] == self.now_ms and self._ends[0][2] == node:
                ended.append(heapq.heappop(self._ends)[3])
            self._busy[node] -= len(ended)
            self._start(node)
            hashes = [self._scheduler.state.dispatches[name].hash for name in ended]
            results = tuple(
                e.Result(name, digest, "completed", TAKES_MS)
                for name, digest in zip(ended, hashes, strict=True)
            )
            self._handle(e.ResultsArrived(self.now_ms, "r", node, results))

    def _handle(self, event: e.Event) -> None:
        began = time.process_time()
        changes, commands = self._scheduler.handle(event)
        self.cpu_s += time.process_time() - began
        for change in changes:
            self._look(change)
        for command in commands:
            if type(command) is k.SendDispatch:
                self._waiting[command.node].append(command.dispatch)
                self._start(command.node)

    def _look(self, change: c.Change) -> None:
        if type(change) is c.RunCreated:
            for action in change.plan.actions:
                self._ready_ms[change.run, action.id] = change.at_ms
        elif type(change) is c.DispatchPlanned:
            self.waits_ms.append(change.at_ms - self._ready_ms[change.run, change.action])
        elif type(change) is c.ResultTaken:
            for gate in self._scheduler.state.runs[change.run].actions[change.action].opens:
                for name in gate.members if not gate.remaining else ():
                    self._ready_ms[change.run, name] = change.at_ms
        elif type(change) is c.RunEnded:
            self.ended += 1

    def _start(self, node: str) -> None:
        while self._waiting[node] and self._busy[node] < NODE_SLOTS:
            dispatch = self._waiting[node].popleft()
            self._busy[node] += 1
            end_ms = self.now_ms + TAKES_MS
            heapq.heappush(self._ends, (end_ms, next(self._count), node, dispatch))


def measure(plan: Plan) -> tuple[float, float, list[int]]:
    """CPU of the scheduler for each action (µs): runs that are alone, one after the other, then as
    many at once in the same process; and the waits (ms) of the latter."""
    gc.collect()
    stage = Stage()
    for number in range(RUNS):
        stage.submit(plan, number)
        stage.play()
    alone_s = stage.cpu_s
    stage.cpu_s = 0.0
    stage.waits_ms.clear()
    for number in range(RUNS, 2 * RUNS):
        stage.submit(plan, number)
    stage.play()
    if stage.ended != 2 * RUNS:
        raise RuntimeError(f"{stage.ended} of {2 * RUNS} runs ended")
    each = ACTIONS * RUNS
    return alone_s / each * 1e6, stage.cpu_s / each * 1e6, stage.waits_ms


def run() -> list[dict[str, Any]]:
    """Medians over rounds; the waits are the same in each."""
    plan = layered(ACTIONS)
    gc.set_threshold(50_000)
    rounds = [measure(plan) for _ in range(ROUNDS)]
    waits_ms = rounds[0][2]
    median_ms, max_ms = statistics.median(waits_ms), max(waits_ms)
    one_us = statistics.median(row[0] for row in rounds)
    many_us = statistics.median(row[1] for row in rounds)
    return [
        line(
            "fairness",
            runs=RUNS,
            actions=ACTIONS,
            wait_median_ms=median_ms,
            wait_max_ms=max_ms,
            wait_ratio=round(max_ms / median_ms, 2),
            us_per_action=round(many_us, 2),
            us_per_action_alone=round(one_us, 2),
            cost_ratio=round(statistics.median(row[1] / row[0] for row in rounds), 2),
        )
    ]
