"""A node in quarantine takes nothing new, ends its leases, and remembers it."""

import pytest

from imlmesh_node.core import changes, commands, events
from imlmesh_node.core.commands import KillReason
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import Effect
from test_node_core import World, arrival, dispatch, of


def put(world: World, at_ms: int, quarantined: bool = True) -> list[commands.Command]:
    world.seq += 1
    return world.does(events.QuarantineArrived(at_ms, quarantined, 1, world.seq))


@pytest.mark.parametrize("effect", list(Effect))
def test_nothing_new_is_taken_until_the_release(effect: Effect) -> None:
    world = World()
    put(world, 5)
    one = dispatch(effect=effect)
    asked = world.delegate(10, arrival(one))
    ((refusal,),) = [command.refusals for command in of(commands.SendReject, asked)]
    assert (refusal[0], refusal[1].code) == (one.id, "node.quarantined")
    assert not of(commands.RunDriver, asked)
    put(world, 15, quarantined=False)
    assert of(commands.RunDriver, world.delegate(20, arrival(one)))


def test_what_is_under_way_is_answered_as_before() -> None:
    """A dispatch that is known is not new: its orchestrator hears what became of it."""
    world = World()
    one = dispatch()
    world.delegate(10, arrival(one))
    put(world, 15)
    assert not of(commands.SendReject, world.delegate(20, arrival(one)))
    assert of(commands.SendComplete, world.finish(25, one))


@pytest.mark.parametrize("cut_off", ["stop", "finish"])
def test_the_leases_are_over(cut_off: str) -> None:
    """What somebody else may do is stopped, what may not be repeated ends by itself."""
    world = World(slots=1)
    running, waiting = dispatch(1, when_cut_off=cut_off), dispatch(2, when_cut_off=cut_off)
    world.delegate(10, arrival(running), arrival(waiting))
    asked = put(world, 15)
    killed = [(command.dispatch.id, command.reason) for command in of(commands.KillDriver, asked)]
    assert killed == ([(running.id, KillReason.LEASE)] if cut_off == "stop" else [])
    assert world.result(waiting).error == Fault(
        "node.quarantined", "the node was quarantined before it started"
    )


def test_it_is_in_the_journal_in_the_same_step_as_its_place() -> None:
    world = World()
    put(world, 5)
    assert of(changes.QuarantineSet, world.changes) == [changes.QuarantineSet(True)]
    assert of(changes.FloorRaised, world.changes) == [changes.FloorRaised(1, 1)]
    put(world, 6)  # told again at the next session: nothing to store
    assert len(of(changes.QuarantineSet, world.changes)) == 1


def test_an_old_release_that_somebody_repeats_is_refused_also_after_a_restart() -> None:
    world = World()
    put(world, 5)
    again = World(floor=world.agent.state.floor, quarantined=True)
    (noted,) = again.does(events.QuarantineArrived(10, False, 1, 1))
    assert noted.fault.code == "message.replayed"
    assert again.agent.state.quarantined
