"""Golden scenarios of rules under stress: admissions, disks, clocks, replays, people, groups."""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.admission_changes import AdmissionChanged
from imlmesh_protocol.states import Admission
from plans import GROUP
from scenario import completed, none_lost, scenario
from stage import Stage, does
from world import START_MS


@scenario("13-a-poison-action")
def poison_action() -> Stage:
    """An action kills its driver wherever it runs. After three distinct nodes it has failed as poison,
    no node is quarantined, the agents live, and the rest of the plan follows its policy. What must
    happen once is given to nobody else because of a crash."""
    stage = Stage(5)
    stage.plan(
        does("bad", poison=True, on_error="skip"),
        does("after", "bad"),
        does("once", do="send", poison=True, on_error="continue"),
        does("free", "once", do="write", ms=500),
    )
    stage.until(10_000)
    completed(stage)
    nodes = [change.node for change in stage.changes(c.DispatchPlanned, action="bad")]
    stage.must("it was tried on three distinct nodes", len(nodes) == len(set(nodes)) == 3)
    ended = stage.changes(c.ActionEnded, action="bad")
    stage.must("it was called poison", [e.fault.code for e in ended] == ["action.poison"])
    stage.must("what came after it was skipped", stage.state("after") == "skipped")
    stage.must("the once action was tried on one node", stage.attempts("once") == 1)
    stage.must("the rest completed", stage.state("free") == "completed")
    stage.must("nobody was quarantined", not stage.changes(AdmissionChanged))
    stage.must("no agent ended", all(node.boot == 1 for node in stage.nodes.values()))
    none_lost(stage)
    return stage


@scenario("13b-killed-for-another")
def killed_for_another() -> Stage:
    """Call after call runs longer than it may, and each time the process is killed in which others run. They are no crashes: nothing is poison, nobody is quarantined, no retry is used up. What
    may be repeated runs again; of what must happen once a person is asked."""
    stage = Stage(1)
    late = {"ms": 15_000, "timeout": 2, "on_error": "continue"}
    stage.plan(
        does("slow1", **late),
        does("slow2", "slow1", **late),
        does("slow3", "slow2", **late),
        does("slow4", "slow3", **late),
        does("beside", do="write", ms=9_000, on_error="abort"),
        does("once", do="send", ms=9_000, on_error="continue"),
    )
    stage.do(30_000, "a person says that it did not happen", stage.answer("fail"))
    stage.until(40_000)
    stage.must("what took too long failed", stage.state("slow4") == "failed")
    stage.must("what may be repeated completed", stage.state("beside") == "completed")
    stage.must("it began once more each time", stage.attempts("beside") == 5)
    stage.must("no retry of it was planned", not stage.changes(c.RetryPlanned, action="beside"))
    stage.must("of the once action a person was asked", len(stage.changes(c.ApprovalAsked)) == 1)
    stage.must("it began once", stage.began("once") == 1)
    stage.must("nobody was quarantined", not stage.changes(AdmissionChanged))
    none_lost(stage)
    return stage


@scenario("14-bad-nodes")
def bad_nodes() -> Stage:
    """One node misbehaves: it is quarantined, with evidence, and its work moves. Then another does:
    at most 20 % of a fleet (one of five) is quarantined by the mesh itself, so there is an alarm
    instead."""
    stage = Stage(5)
    stage.plan(does("a", ms=3_000, target_selector="node == 'n0' or node == 'n1'"))
    stage.fault(500, "misbehave", "n0")
    stage.fault(1_000, "misbehave", "n1")
    stage.until(20_000)
    completed(stage)
    quarantined = [change.node for change in stage.changes(AdmissionChanged)]
    stage.must("n0 alone was quarantined", quarantined == ["n0"])
    stage.must("its work moved", stage.attempts("a") == 2)
    return stage


@scenario("15-cordon-drain-quarantine")
def admissions() -> Stage:
    """Nodes with running work are cordoned, drained and quarantined, the orchestrator is killed in
    between. No new work at once; running work of the first two ends there, that of the last is
    a question; what was decided survives the restart, and a release brings work again."""
    stage = Stage()
    work = [does(f"a{i}", do="send", ms=5_000, target_node=f"n{i}") for i in range(3)]
    stage.plan(*work, does("last", "a0", "a1", target_node="n0"))
    stage.do(1_000, "n0 is cordoned", stage.decide("n0", Admission.CORDONED))
    stage.do(1_000, "n1 is drained", stage.decide("n1", Admission.DRAINING))
    stage.do(1_000, "n2 is quarantined", stage.decide("n2", Admission.QUARANTINED))
    stage.fault(2_000, "orchestrator", pause_ms=1_000)
    stage.do(12_000, "a person says that a2 was done", stage.answer("done"))
    stage.do(15_000, "n0 is released", stage.decide("n0", Admission.OPEN))
    stage.until(30_000)
    completed(stage)
    stage.must(
        "nothing new came to n0 before", stage.when(c.DispatchPlanned, action="last") >= 15_000
    )
    stage.must("each effect began once", all(stage.began(f"a{i}") == 1 for i in range(3)))
    admissions = stage.orchestrator.core.state.admissions
    stage.must("n1 and n2 are as people left them", sorted(admissions) == ["n1", "n2"])
    return stage


@scenario("16-disk-full-on-the-orchestrator")
def store_full() -> Stage:
    """The disk of the orchestrator is full while a wave runs and a plan comes. The plan is refused and
    nothing new is dispatched; what runs is recorded when there is room. It goes on then, and never
    ended: a commit that finds no room waits for it."""
    stage = Stage()
    stage.plan(does("a", do="send", ms=3_000), does("b", "a", do="send"))
    stage.fault(1_000, "store full", pause_ms=8_000)
    stage.do(
        2_000,
        "a second plan; its author tries again each second",
        lambda: stage.plan(does("c", do="send")),
    )
    stage.until(40_000)
    completed(stage)
    none_lost(stage)
    refused = [line for line in stage.story if "a plan is refused: store.full" in line]
    stage.must("the second plan was refused", bool(refused))
    stage.must(
        "and ran once there was room",
        stage.when(c.RunCreated, run=stage.run_of(1).run) >= 9_000,
    )
    taken = next(line for line in stage.story if "ResultTaken" in line)
    stage.must(
        "what ran was recorded when there was room",
        int(taken[:8]) - stage.begin_ms + START_MS >= 9_000,
    )
    stage.must("each effect began once", all(stage.began(name) == 1 for name in "abc"))
    stage.must("the process never ended", not stage.changes(c.EpochRaised))
    return stage


@scenario("17-disk-full-on-a-node")
def journal_full() -> Stage:
    """The disk of a node is full. What it cannot write down it does not begin; what ran is unknown
    where it must happen once, and a person is asked."""
    stage = Stage()
    stage.plan(does("runs", do="send", ms=3_000, target_node="n0"))
    stage.fault(1_000, "journal full", "n0", 6_000)
    stage.do(2_000, "a second plan", lambda: stage.plan(does("new", do="send", target_node="n0")))
    stage.do(20_000, "a person says that it was done", stage.answer("done"))
    stage.until(40_000)
    completed(stage)
    stage.must("each effect began at most once", max(stage.began("runs"), stage.began("new")) == 1)
    stage.must("the second run completed", stage.run_of(1).state == "completed")
    return stage


@scenario("18-clocks-jump")
def clocks_jump() -> Stage:
    """Wall clocks jump by hours while work runs, and one node starts in 1970. Leases, order and
    timeouts do not care; after a restart the orchestrator's time never runs backwards."""
    stage = Stage()
    stage.plan(
        does("a", ms=15_000, timeout=20), does("b", do="send", ms=8_000), does("c", "a", "b")
    )
    n0, own = stage.nodes["n0"], stage.orchestrator
    stage.do(1_000, "n0's clock jumps an hour ahead", lambda: n0.machine.step_wall(3_600_000))
    stage.do(
        2_000, "n1's clock shows 1970", lambda: stage.nodes["n1"].machine.step_wall(-stage.now_ms)
    )
    stage.do(
        3_000,
        "the orchestrator's clock jumps back a day",
        lambda: own.machine.step_wall(-86_400_000),
    )
    stage.fault(4_000, "orchestrator", pause_ms=1_000)
    stage.until(40_000)
    completed(stage)
    none_lost(stage)
    times = [change.at_ms for change in own.stored]
    stage.must("stored times never run backwards", times == sorted(times))
    stage.must("each action had one attempt", all(stage.attempts(name) == 1 for name in "abc"))
    return stage


@scenario("20-replayed-messages")
def replayed() -> Stage:
    """Somebody at the broker sends again all that a node was sent, after it has done it, and once more
    after it and the orchestrator restarted. Nothing is done again."""
    stage = Stage()
    stage.plan(does("a", do="send", target_node="n0"), does("b", do="push", target_node="n0"))
    stage.fault(2_000, "replay", "n0")
    stage.fault(3_000, "kill", "n0", 1_000)
    stage.fault(4_500, "replay", "n0")
    stage.fault(5_000, "orchestrator", pause_ms=1_000)
    stage.fault(9_000, "replay", "n0")
    stage.until(20_000)
    completed(stage)
    stage.must("each effect began once", stage.began("a") == stage.began("b") == 1)
    return stage


@scenario("21-approvals")
def approvals() -> Stage:
    """A question is open while the orchestrator restarts: it stays open. It is answered once; a second
    answer changes nothing. Another expires, which is no consent. The rest of the plan goes on."""
    stage = Stage()
    gate = {"requires_approval": True, "on_error": "continue"}
    stage.plan(
        does("asked", do="send", **gate),
        does(
            "expires",
            do="send",
            **gate,
            approval={"timeout_seconds": 20, "timeout_behavior": "reject"},
        ),
        does("free"),
    )
    stage.fault(1_000, "orchestrator", pause_ms=2_000)
    stage.do(8_000, "a person approves the first", stage.answer("approve"))

    def again() -> None:
        stage.orchestrator.post(e.AnswerGiven, approval="a-1", option="deny", by="adam")

    stage.do(9_000, "another denies what was approved", again)
    stage.until(40_000)
    stage.must("free did not wait", 0 <= stage.when(c.ResultTaken, action="free") < 1_000)
    stage.must(
        "asked began once, after its answer", stage.when(c.DispatchPlanned, action="asked") >= 8_000
    )
    stage.must("the answer counted once", stage.began("asked") == 1)
    stage.must("what expired never began", stage.began("expires") == 0)
    stage.must("what expired failed", stage.state("expires") == "failed")
    return stage


@scenario("23-groups")
def groups() -> Stage:
    """A group is empty: an error, never a success. One of a group's nodes is gone: it counts as failed.
    A node joins while a run is under way: it is not silently included."""
    stage = Stage(4)
    own = stage.orchestrator
    own.post(e.GroupSet, group=GROUP, nodes=("n0", "n1", "n2"))
    everybody = {"target_group": GROUP, "target_mode": "all", "on_error": "continue"}
    stage.fault(0, "kill", "n2", 60_000)
    stage.do(8_000, "a plan for an empty group", lambda: stage.plan(does("x", target_group="none")))
    stage.do(
        8_100,
        "a plan for a group of which one is gone",
        lambda: stage.plan(
            does("slow", ms=3_000, quorum=2, **everybody),
            does("then", "slow", quorum=2, **everybody),
        ),
    )
    stage.do(
        9_000,
        "n3 joins the group",
        lambda: own.post(e.GroupSet, group=GROUP, nodes=("n0", "n1", "n2", "n3")),
    )
    stage.until(30_000)
    stage.must("an empty group failed", stage.run_of(0).state == "failed")
    stage.must(
        "two of three sufficed", stage.state("slow", 1) == stage.state("then", 1) == "completed"
    )
    stage.must("n3 was not included", not stage.changes(c.DispatchPlanned, node="n3"))
    return stage


@scenario("24-a-wave-fails")
def wave_fails() -> Stage:
    """A rolling action fails beyond its threshold: the rest is not begun. What was done is undone in
    reverse order; the compensation of a node that is gone is asked about and shown as pending."""
    stage = Stage(4)
    undo = {"rollback": {"action": "undo"}}
    stage.plan(
        does("first", do="send", target_node="n0", **undo),
        does("second", "first", do="send", target_node="n3", **undo),
        does(
            "wave",
            "second",
            do="send",
            fails=9,
            target_group=GROUP,
            target_mode="rolling",
            rolling={"batch_size": 1, "max_failures": 1},
            on_error="rollback",
            ms=2_000,
            timeout=9,
        ),
        {"id": "undo", "module": "toy", "action": "write", "params": {"ms": 50, "fails": 0}},
    )
    stage.fault(1_000, "kill", "n0", 600_000)
    stage.do(30_000, "a person says that n0 did not do it", stage.answer("fail"))
    stage.do(40_000, "a person leaves it as it is", stage.answer("fail"))
    stage.until(90_000)
    run = stage.run_of()
    begun = [d.action for d in stage.changes(c.DispatchPlanned) if d.action.startswith("wave@")]
    stage.must("not every member began", 0 < len(begun) < 4)
    stage.must("second was undone", stage.state("second") == "rolled_back")
    stage.must(
        "first could not be, and nothing says that it was", stage.state("first") == "completed"
    )
    stage.must(
        "the run failed and shows what is pending",
        run.state == "failed" and run.compensation_pending,
    )
    return stage


@scenario("25-away-for-an-hour")
def away() -> Stage:
    """A node that is cut off finishes what it holds, and restarts meanwhile. An hour later it comes back
    and reports it, once, under its own name."""
    stage = Stage()
    stage.plan(does("a", do="write", ms=3_000, target_node="n0"), does("b", "a", target_node="n0"))
    stage.fault(500, "cut", "n0", 3_600_000)
    stage.fault(60_000, "kill", "n0", 5_000)
    stage.until(3_700_000)
    completed(stage)
    stage.must("it was done once", stage.attempts("a") == 1)
    stage.must(
        "it was told when the node was back", stage.when(c.ResultTaken, action="a") >= 3_600_000
    )
    return stage
