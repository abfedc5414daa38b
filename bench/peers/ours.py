"""imlmesh measured as the peers are: two nodes, `fake.noop` as a pure action, runs of one plan each.

Nothing is made cheaper than in a mesh of a user: real Mosquitto with mTLS, every message signed,
every commit durable.
"""

import asyncio
from importlib.metadata import version

from bench.core import layered
from bench.mesh import Stopwatch, independent, one_action, run_plan
from bench.peers.measures import FLOOD, TRIPS, WAVES, WIDTH, Measure
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol.iml.digest import plan_digest

_CAUGHT_UP_S = 60


class Ours:
    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._watch = Stopwatch(shell)
        plans = {
            Measure.TRIPS: one_action("pure"),
            Measure.FLOOD: independent(FLOOD),
            Measure.WAVES: layered(WAVES * WIDTH),
        }
        self._plans = {measure: (plan, plan_digest(plan)) for measure, plan in plans.items()}
        self.version = version("imlmesh")

    async def measure(self, measure: Measure) -> list[float]:
        """Seconds from handing a plan to the engine to the stored change that ends its run."""
        plan, digest = self._plans[measure]
        times = TRIPS if measure is Measure.TRIPS else 1
        taken = [await run_plan(self._shell, plan, digest, self._watch) for _ in range(times)]
        await self._caught_up()
        return taken

    async def _caught_up(self) -> None:
        """The copies into other files belong to no turn: least of all to the peer's next one."""
        lifecycle, clock = self._shell.lifecycle, self._shell.clock
        async with asyncio.timeout(_CAUGHT_UP_S):
            while lifecycle.outflow(clock.now_ms())[0]:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)
