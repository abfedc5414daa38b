"""Golden scenarios of nodes that work by themselves: what was permitted is done, and told once."""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import permit_changes as p
from imlmesh_protocol.permits import Rule
from permits import withdraw
from scenario import scenario
from stage import Stage, does

MINUTE_MS = 60_000


def reported(stage: Stage) -> list[int]:
    """The numbers of runs by permit, as they were reported."""
    return [change.number for change in stage.changes(p.PermitRunReported)]


@scenario("25-permits-of-a-day-away")
def a_day_away() -> Stage:
    """A node is cut off for a day and restarts meanwhile. It does what was permitted, as often as the budget
    says, also after the restart, and tells of each run once when it is back. A permit whose time was over
    before its rule applied is discarded, with the reason."""
    stage = Stage(1)
    hour_ms = 60 * MINUTE_MS
    water = (does("water", do="send", ms=3_000), does("note", "water", do="write"))
    stage.permit("n0", Rule("every", 6 * hour_ms), *water, budget=3, for_ms=48 * hour_ms)
    late = does("close", do="push")
    stage.permit("n0", Rule("cut_off", 20 * hour_ms), late, for_ms=10 * hour_ms)
    stage.fault(1_000, "cut", "n0", 24 * hour_ms)
    stage.do(8 * hour_ms, "the power goes at n0", stage.nodes["n0"].kill)
    stage.do(8 * hour_ms + 5_000, "and is back", stage.nodes["n0"].start)
    stage.until(24 * hour_ms + MINUTE_MS)
    stage.must("three runs are told, each once", reported(stage) == [1, 2, 3])
    stage.must("all of them completed", len(stage.changes(c.RunEnded, state="completed")) == 3)
    stage.must("each watering began once", stage.began("water") == 3)
    stage.must("nothing ran after its time", stage.began("close") == 0)
    said = [line for line in stage.story if "n0: permit.expired" in line]
    stage.must("the other was discarded with its reason", len(said) == 1)
    return stage


@scenario("25-a-power-cut-in-a-permitted-run")
def cut_short() -> Stage:
    """The power goes while a once action of a run by permit is under way. Nobody can say whether it
    happened: that run ends failed and it is not done again; what only reads is. The next run is a new one."""
    stage = Stage()
    actions = (does("look", ms=3_000), does("send", "look", do="send", ms=3_000))
    stage.permit("n0", Rule("every", 20_000), *actions, budget=2)
    stage.fault(1_000, "cut", "n0", 2 * MINUTE_MS)
    stage.do(22_000, "the power goes while it looks", stage.nodes["n0"].kill)
    stage.do(23_000, "and is back", stage.nodes["n0"].start)
    stage.do(28_000, "the power goes while it sends", stage.nodes["n0"].kill)
    stage.do(29_000, "and is back", stage.nodes["n0"].start)
    stage.until(3 * MINUTE_MS)
    stage.must("both runs are told, each once", reported(stage) == [1, 2])
    ended = [str(change.state) for change in stage.changes(c.RunEnded)]
    stage.must("the first failed, the second completed", ended == ["failed", "completed"])
    sends = stage.checks.effects
    stage.must(
        "each sending began once", {n for (_, unit), n in sends.items() if unit == "send"} == {1}
    )
    looked = stage.changes(c.DispatchPlanned, action="look")
    stage.must("what only looks was done again", [one.attempt for one in looked] == [1, 2, 1])
    return stage


@scenario("25-a-permit-withdrawn-too-late")
def withdrawn() -> Stage:
    """A permit is withdrawn while its node is cut off and cannot hear it. What it did meanwhile happened,
    and is told; when it hears of the withdrawal, it begins nothing more."""
    stage = Stage()
    stage.permit("n0", Rule("every", 10_000), does("send", do="send"), budget=9)
    permit = next(iter(stage.orchestrator.core.state.permits))
    stage.fault(1_000, "cut", "n0", 30_000)
    stage.do(5_000, "a person withdraws it", lambda: withdraw(stage, permit))
    stage.fault(60_000, "cut", "n0", 60_000)
    stage.until(3 * MINUTE_MS)
    told = stage.changes(p.PermitRunReported)
    stage.must("what it did is told", bool(told) and all(one.at_ms > 5_000 for one in told))
    stage.must("nothing was begun after it heard", stage.began("send") == len(told))
    stage.must(
        "the withdrawal stands before", stage.when(p.PermitEnded) < stage.when(p.PermitRunReported)
    )
    return stage
