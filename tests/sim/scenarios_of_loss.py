"""Golden scenarios of things that fail: the broker, the orchestrator, nodes and what lies between."""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.admission_changes import AdmissionChanged, EvidenceKept
from imlmesh_runtime.link.memory import Faults
from scenario import completed, none_lost, scenario
from script import Cut
from stage import Stage, does


@scenario("01-broker-restarts")
def broker_restarts() -> Stage:
    """The broker restarts in the middle of a wave. Running actions go on, clients come back, the
    wave completes, nothing is lost or done twice, no node is lost for the gap."""
    stage = Stage()
    wave = [does(f"a{i}", do="send", ms=3_000, target_node=f"n{i}") for i in range(3)]
    stage.plan(*wave, does("after", "a0", "a1", "a2"))
    stage.fault(1_000, "broker", pause_ms=3_000)
    stage.until(20_000)
    completed(stage)
    none_lost(stage)
    stage.must("each effect began once", all(stage.began(f"a{i}") == 1 for i in range(3)))
    return stage


@scenario("02-broker-comes-back-empty")
def broker_comes_back_empty() -> Stage:
    """The broker dies with dispatches under way that no node has heard, and comes back with nothing.
    They are sent again, nodes announce themselves again; it ends as without the fault."""
    stage = Stage()
    stage.hub.faults = Faults(delay_ms=20)
    stage.plan(does("a", do="send", ms=50, target_node="n0"), does("b", "a"))
    stage.fault(10, "broker", pause_ms=1_000)
    stage.until(20_000)
    completed(stage)
    stage.must("the lost dispatch kept its name", stage.attempts("a") == 1)
    stage.must("its effect began once", stage.began("a") == 1)
    return stage


@scenario("03-orchestrator-is-killed")
def orchestrator_is_killed() -> Stage:
    """kill -9 of the orchestrator in the middle of a wave. It replays, adopts what runs from the
    nodes' inventories, sends only what was never received; it dispatches again within 5 s."""
    stage = Stage()
    wave = [does(f"a{i}", do="send", ms=8_000, target_node=f"n{i}") for i in range(3)]
    stage.plan(*wave, does("quick", ms=1_500, target_node="n0"), does("next", "quick"))
    stage.fault(1_000, "orchestrator", pause_ms=2_000)
    stage.until(30_000)
    completed(stage)
    stage.must("each effect began once", all(stage.began(f"a{i}") == 1 for i in range(3)))
    stage.must(
        "nothing was sent under a second name", all(stage.attempts(f"a{i}") == 1 for i in range(3))
    )
    again_ms = stage.when(c.DispatchPlanned, action="next") - 3_000
    stage.must("it dispatches within 5 s of its start", 0 <= again_ms <= 5_000)
    return stage


def _at_commit(before: bool) -> Stage:
    first = Stage().commits["orchestrator"] + 1
    stage = Stage(cuts=(Cut("orchestrator", first, before, 2_000),))
    stage.plan(does("a", do="send"), does("b", "a", do="send"))
    stage.until(20_000)
    completed(stage)
    stage.must("each effect began once", stage.began("a") == stage.began("b") == 1)
    stage.must("one run came of one plan", len(stage.changes(c.RunCreated)) == 1)
    return stage


@scenario("04a-crash-before-the-commit")
def crash_before_commit() -> Stage:
    """The orchestrator dies just before it stored a plan: nobody was told that it was accepted, and
    the plan is submitted again. Nothing had left."""
    return _at_commit(True)


@scenario("04b-crash-after-the-commit")
def crash_after_commit() -> Stage:
    """It dies between the commit and the sending: the dispatch is in the store and goes out later,
    under its own name; a node that had it would answer from its journal."""
    return _at_commit(False)


@scenario("05-everything-comes-twice-and-late")
def twice_and_late() -> Stage:
    """Every message comes twice and many overtake each other. Each action is done once, a repeat is
    answered by the journal, each result counts once."""
    stage = Stage()
    stage.hub.faults = Faults(repeat=1.0, jitter_ms=200)
    stage.plan(*(does(f"a{i}", do="send", ms=100) for i in range(4)), execution_mode="sequential")
    stage.until(60_000)
    completed(stage)
    stage.must("each effect began once", all(stage.began(f"a{i}") == 1 for i in range(4)))
    taken = stage.changes(c.ResultTaken, action_state="completed")
    stage.must("each result counted once", len(taken) == 4)
    return stage


@scenario("06-power-cut-of-a-node")
def power_cut_of_a_node() -> Stage:
    """The power of a node goes while it works. It is lost after 6 s; what may be repeated moves within
    a second of 1.1 x its lease, what must happen once becomes a question. The node's journal is asked
    when it comes back and does not know either, so a person decides."""
    stage = Stage()
    stage.plan(
        does("moves", ms=15_000, target_selector="node == 'n0' or node == 'n1'"),
        does("asks", do="send", ms=15_000, target_node="n0"),
    )
    stage.fault(1_000, "kill", "n0", 20_000)
    stage.do(25_000, "a person says that the effect did happen", stage.answer("done"))
    stage.until(50_000)
    lost_ms = stage.when(c.LivenessChanged, node="n0", liveness="lost")
    moved = [d for d in stage.changes(c.DispatchPlanned, action="moves") if d.node == "n1"]
    moved_ms = moved[0].at_ms - stage.begin_ms if moved else 0
    stage.must("n0 was lost within 6.5 s of its end", 0 < lost_ms - 1_000 <= 6_500)
    stage.must(
        "the repeatable work moved within 1.1 leases and a second", moved_ms - 1_000 <= 7_600
    )
    stage.must("the once effect began once", stage.began("asks") == 1)
    completed(stage)
    return stage


@scenario("07-partition-and-a-late-result")
def late_result() -> Stage:
    """A node is cut off, works on, and its result comes when the work has been done elsewhere. The late
    result is kept as evidence and changes nothing; both are in the store."""
    stage = Stage()
    stage.plan(does("a", do="write", ms=3_000, target_selector="node == 'n0' or node == 'n1'"))
    stage.fault(500, "cut", "n0", 15_000)
    stage.until(40_000)
    completed(stage)
    kept = stage.changes(c.ResultKept)
    stage.must("the late result is evidence", [k.outcome for k in kept] == ["completed"])
    taken = stage.changes(c.ResultTaken)
    stage.must(
        "the result of the second attempt counts", len(taken) == 1 and "/n1/2" in taken[0].dispatch
    )
    return stage


@scenario("08a-a-node-that-cannot-be-heard")
def mute_node() -> Stage:
    """One way only: the node hears and cannot be heard. No answered heartbeat, so its lease ends there
    before the work begins elsewhere."""
    stage = Stage()
    stage.plan(does("a", ms=15_000, target_selector="node == 'n0' or node == 'n1'"))
    stage.fault(500, "half mute", "n0", 30_000)
    stage.until(60_000)
    completed(stage)
    stopped = next(line for line in stage.story if "n0: stops" in line)
    begun = next(line for line in stage.story if "n1: runs" in line)
    stage.must("it ended there before it began elsewhere", int(stopped[:8]) < int(begun[:8]))
    return stage


@scenario("08b-a-node-that-cannot-hear")
def deaf_node() -> Stage:
    """The reverse: it is heard and hears nothing. Its beats are answered, but no answer arrives: the
    work that others may do ends on the node, and is not done twice at once."""
    stage = Stage()
    stage.plan(does("a", ms=15_000, target_selector="node == 'n0' or node == 'n1'"))
    stage.fault(500, "half deaf", "n0", 20_000)
    stage.until(90_000)
    completed(stage)
    stage.must("the node ended it itself", any("n0: stops" in line for line in stage.story))
    return stage


@scenario("09-the-orchestrator-alone-loses-the-bus")
def alone() -> Stage:
    """The orchestrator alone loses the broker. Nobody is declared lost, nothing moves; it goes on when
    it is back."""
    stage = Stage()
    stage.plan(does("a", ms=15_000), does("b", do="send", ms=3_000), does("c", "b"))
    stage.fault(1_000, "alone", pause_ms=12_000)
    stage.until(60_000)
    completed(stage)
    none_lost(stage)
    stage.must("the once effect began once", stage.began("b") == 1)
    return stage


@scenario("10-a-flapping-node")
def flapping_node() -> Stage:
    """A node is up for 5 s and down for 5 s, again and again. It is suspect each time, and from the
    third return on held down for longer each time; after six of those it is quarantined, with
    evidence. Its work moves once at most; the wave is not held up."""
    stage = Stage()
    either = {"target_selector": "node == 'n0' or node == 'n1'"}
    stage.plan(
        does("a", ms=8_000, **either),
        does("b", do="write", ms=3_000, **either),
        does("c", "a", "b", do="send", ms=8_000, target_node="n1"),
    )
    for start_ms in range(1_000, 91_000, 10_000):
        stage.do(start_ms, "n0 goes down", stage.nodes["n0"].kill)
        stage.do(start_ms + 5_000, "n0 comes up", stage.nodes["n0"].start)
    stage.do(
        27_500,
        "a plan while n0 is up, and held down",
        lambda: stage.plan(*(does(f"d{i}", **either) for i in range(4))),
    )
    stage.until(100_000)
    completed(stage)
    stage.must("each action moved once at most", all(stage.attempts(name) <= 2 for name in "abc"))
    ended_ms = stage.when(c.RunEnded)
    stage.must("the wave was not held up", 0 < ended_ms < 30_000)
    later = {d.node for d in stage.changes(c.DispatchPlanned) if d.action.startswith("d")}
    stage.must("what came later went to n1 alone", later == {"n1"})
    rows = stage.changes(EvidenceKept, node="n0")[:6]
    holds = [int(row.detail.split()[-2]) for row in rows]
    stage.must(
        "it was held down for longer each time", holds == [6_000 << n for n in range(5)] + [96_000]
    )
    stage.must("all of that is evidence", [row.verdict for row in rows][-1] == "quarantined")
    quarantined = stage.changes(AdmissionChanged, node="n0")
    stage.must(
        "it was quarantined for that", ["soon after" in q.reason for q in quarantined] == [True]
    )
    return stage


@scenario("11-a-slow-node")
def slow_node() -> Stage:
    """One node takes ten times as long as the others. It is alive, so nothing is ended or called lost; its
    pure work gets one copy elsewhere once it took three times the usual, and the first result counts.
    What must happen once is left to it."""
    stage = Stage()
    stage.nodes["n0"].slowness = 10
    stage.plan(
        *(does(f"a{i}", ms=400) for i in range(9)),
        does("once", do="send", ms=800, target_node="n0"),
    )
    stage.until(20_000)
    completed(stage)
    none_lost(stage)
    slow = [d.action for d in stage.changes(c.DispatchPlanned, node="n0") if d.action != "once"]
    twice = [name for name in slow if stage.attempts(name) == 2]
    stage.must("its pure work had one copy each", bool(slow) and twice == slow)
    taken = [change for change in stage.changes(c.ResultTaken) if change.action in slow]
    stage.must("the copy counted", all("/n0/" not in change.dispatch for change in taken))
    reasons = {
        change.fault.code for change in stage.changes(c.DispatchEnded) if change.fault is not None
    }
    stage.must("the reason is recorded", reasons == {"action.straggler"})
    stage.must("the once effect began once", stage.began("once") == stage.attempts("once") == 1)
    stage.must("nobody waited for the slow node's pure work", 0 < _ended(stage, slow) < 4_000)
    return stage


def _ended(stage: Stage, actions: list[str]) -> int:
    """When the last of these actions completed."""
    return max(stage.when(c.ResultTaken, action=name, action_state="completed") for name in actions)


@scenario("12-a-machine-sleeps")
def a_machine_sleeps() -> Stage:
    """A laptop is closed while it works. It is lost after the window, the work moves; when it wakes it
    finds its lease over and stops before any further effect."""
    stage = Stage()
    stage.plan(does("a", do="write", ms=15_000, target_selector="node == 'n0' or node == 'n1'"))
    stage.fault(1_000, "suspend", "n0", 20_000)
    stage.until(60_000)
    completed(stage)
    woke = next(int(line[:8]) for line in stage.story if "n0 wakes" in line)
    stopped = next(int(line[:8]) for line in stage.story if "n0: stops" in line)
    stage.must("it stopped in the moment that it woke", woke == stopped)
    stage.must("the work was done by n1", "/n1/2" in stage.changes(c.ResultTaken)[0].dispatch)
    return stage
