"""The core lets nodes in: an id is taken for ever, and the same identity may come again."""

import pytest

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_protocol import limits


def asked(node: str, identity: bytes, serial: str = "7", end_ms: int = 9_000) -> e.EnrolAsked:
    alias, by = f"{node} of the shed", "anna"
    return e.EnrolAsked(1_000, "q-1", node, alias, identity, "readonly", by, serial, end_ms)


@pytest.fixture
def core() -> Scheduler:
    return Scheduler({})


def test_a_node_is_in_before_anybody_hears_of_it(core):
    changes, commands = core.handle(asked("pi-1", b"a" * 32))
    assert [type(change) for change in changes] == [c.NodeEnrolled, c.CertificateIssued]
    assert commands == [k.Reply("q-1", "pi-1")]
    record = core.state.enrolled["pi-1"]
    assert (record.identity, record.profile, record.by) == (b"a" * 32, "readonly", "anna")
    assert record.certificates == {"7": 9_000}


def test_an_id_is_never_another_nodes(core):
    core.handle(asked("pi-1", b"a" * 32))
    changes, (refused,) = core.handle(asked("pi-1", b"b" * 32, "8"))
    assert changes == []
    assert isinstance(refused, k.Refuse)
    assert refused.fault.code == "node.exists"
    assert core.state.enrolled["pi-1"].identity == b"a" * 32


def test_whose_answer_was_lost_asks_again_with_the_same_key(core):
    core.handle(asked("pi-1", b"a" * 32))
    changes, commands = core.handle(asked("pi-1", b"a" * 32, "8"))
    assert [type(change) for change in changes] == [c.CertificateIssued]
    assert commands == [k.Reply("q-1", "pi-1")]
    assert core.state.enrolled["pi-1"].certificates == {"7": 9_000, "8": 9_000}


def test_certificates_that_have_ended_are_forgotten(core):
    core.handle(asked("pi-1", b"a" * 32, "7", 500))
    core.handle(asked("pi-1", b"a" * 32, "8"))
    assert core.state.enrolled["pi-1"].certificates == {"8": 9_000}


def test_a_mesh_has_a_limit(core, monkeypatch):
    monkeypatch.setattr(limits, "ENROLLED_NODES", 1)
    core.handle(asked("pi-1", b"a" * 32))
    _, (refused,) = core.handle(asked("pi-2", b"b" * 32))
    assert isinstance(refused, k.Refuse)
    assert refused.fault.code == "node.too_many"


def test_what_a_node_may_at_most_is_a_persons_word(core):
    core.handle(asked("pi-1", b"a" * 32))
    changes, commands = core.handle(e.GrantAsked(2_000, "q-2", "pi-1", "power_user", "eve"))
    assert changes == [j.ProfileGranted(2_000, "q-2", "pi-1", "power_user", "eve")]
    assert commands == [k.Reply("q-2", "power_user")]
    assert core.state.enrolled["pi-1"].profile == "power_user"
    again, _ = core.handle(e.GrantAsked(2_001, "q-3", "pi-1", "power_user", "eve"))
    assert again == []


def test_nothing_is_granted_to_who_is_not_in(core):
    changes, (refused,) = core.handle(e.GrantAsked(2_000, "q-2", "ghost", "power_user", "eve"))
    assert changes == []
    assert isinstance(refused, k.Refuse)
    assert refused.fault.code == "node.not_found"
