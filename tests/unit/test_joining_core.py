"""The core lets nodes in by token, by a person's word, or through the open door; and nobody else."""

import pytest

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_orchestrator.core.joins import IN, WAITS, waiting
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_orchestrator.store.codec import decode, encode
from imlmesh_orchestrator.views.nodes import find_node
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.states import Admission

HOUR_MS = 3_600_000
CODE, TOKEN = "4KT-9QX", "t1"


class Desk:
    """A core, and what was asked of it; `heard` is the last answer or the code of the refusal."""

    def __init__(self):
        self.core = Scheduler({})
        self.state = self.core.state
        self.changes = []
        self.at_ms = 1_000

    def send(self, made, *values, **named):
        changes, commands = self.core.handle(made(self.at_ms, "q", *values, **named))
        self.changes += changes
        (answer,) = commands
        return answer.value if isinstance(answer, k.Reply) else answer.fault.code

    def token(self, name=TOKEN, uses=1, profile="local_worker", groups=(), ttl_ms=HOUR_MS):
        return self.send(e.TokenAsked, name, b"k" * 32, uses, profile, groups, ttl_ms, "anna")

    def join(self, node, *, key=None, token=TOKEN, proven=True, profile="", code="", near="lan"):
        identity = (key or node).encode().ljust(32, b".")
        return self.send(e.JoinAsked, node, identity, profile, near, token, proven, code)

    def ask(self, node, **named):
        return self.join(node, token="", proven=False, **{"code": CODE, **named})

    def again(self, node):
        return self.join(node, token="", proven=False)

    def answer(self, name, *, approved=True, profile="", replaces=""):
        return self.send(e.JoinAnswered, name, approved, profile, replaces, "anna")

    def kinds(self):
        return [type(change) for change in self.changes]


@pytest.fixture
def desk():
    return Desk()


def test_a_token_lets_one_node_in_and_is_spent_with_it(desk):
    desk.token(groups=("garden",))
    assert desk.join("pi-1") == IN
    assert desk.kinds()[1:] == [c.NodeEnrolled, c.GroupChanged, j.TokenSpent]
    assert desk.state.groups["garden"] == ("pi-1",)
    assert desk.join("pi-2") == "token.used"
    assert list(desk.state.enrolled) == ["pi-1"]


def test_of_fifty_at_once_exactly_one_is_in(desk):
    desk.token()
    heard = [desk.join(f"pi-{number}") for number in range(50)]
    assert heard == [IN] + ["token.used"] * 49


def test_whose_answer_was_lost_asks_again_and_it_costs_nothing(desk):
    desk.token()
    assert [desk.join("pi-1"), desk.join("pi-1"), desk.again("pi-1")] == [IN] * 3
    assert desk.state.tokens["t1"].spent == 1
    # and with the same key it is nobody else
    assert desk.join("pi-2", key="pi-1") == "token.used"


@pytest.mark.parametrize("ended", ["expired", "revoked", "burnt"])
def test_a_token_that_ended_lets_nobody_in_and_says_why(desk, ended):
    desk.token()
    if ended == "expired":
        desk.at_ms += HOUR_MS
    elif ended == "revoked":
        assert desk.send(e.TokenRevokeAsked, "t1", "anna") == "t1"
        assert desk.send(e.TokenRevokeAsked, "t1", "anna") == "t1"
    else:
        for _ in range(limits.TOKEN_WRONG_PROOFS):
            assert desk.join("pi-1", proven=False) == "token.proof"
    assert desk.join("pi-1") == f"token.{ended}"
    assert desk.state.enrolled == {}
    before = len(desk.changes)
    assert desk.join("pi-1", proven=False) == "token.proof"
    assert len(desk.changes) == before, "what is over anyway is not written down again and again"


def test_an_unknown_token_is_nothing(desk):
    assert desk.join("pi-1") == "token.unknown"
    assert desk.send(e.TokenRevokeAsked, "t9", "anna") == "token.not_found"
    assert desk.changes == []


def test_an_id_alias_or_key_in_use_is_taken(desk):
    desk.token(uses=9)
    assert desk.join("pi-1") == IN
    assert desk.join("pi-1", key="other") == "node.exists"
    assert desk.join("pi-2", key="pi-1") == "node.exists"
    assert desk.state.tokens["t1"].spent == 1


@pytest.mark.parametrize("profile", ["power_user", "unrestricted"])
def test_much_power_waits_for_a_person_whatever_the_token_says(desk, profile):
    desk.token(profile="unrestricted", groups=("garden",), uses=2)
    desk.send(e.JoinWindowAsked, HOUR_MS, "anna")
    assert desk.join("pi-1", profile=profile) == WAITS
    assert [desk.again("pi-1"), desk.state.enrolled] == [WAITS, {}]
    assert desk.state.tokens["t1"].spent == 1
    assert desk.answer("pi-1") == ("pi-1", "")
    assert desk.again("pi-1") == IN
    assert desk.state.enrolled["pi-1"].profile == profile
    assert desk.state.groups["garden"] == ("pi-1",)


def test_what_exceeds_the_token_waits_for_a_person(desk):
    desk.token(profile="readonly", uses=2)
    assert desk.join("pi-1") == IN
    assert desk.state.enrolled["pi-1"].profile == "readonly"
    assert desk.join("pi-2", profile="local_worker") == WAITS


def test_who_waits_by_a_token_and_is_killed_goes_on_with_the_same_line(desk):
    desk.token(uses=2)
    assert [desk.join("pi-1", profile="power_user") for _ in range(3)] == [WAITS] * 3
    assert desk.state.tokens[TOKEN].spent == 1
    assert desk.join("pi-1", profile="power_user", proven=False) == "token.proof"
    # another machine, another name or another wish is another use
    assert desk.join("pi-1", key="b", profile="power_user") == WAITS
    assert desk.join("pi-3", key="c", profile="power_user") == "token.used"
    assert desk.join("pi-3", key="pi-1", profile="power_user") == "token.used"
    assert desk.join("pi-1", profile="readonly") == "token.used"
    # the person may take longer than the token lives, and than the token is good
    desk.at_ms += limits.JOIN_WAITS_MS + HOUR_MS
    assert [desk.join("pi-1", profile="power_user"), desk.again("pi-1")] == [WAITS] * 2
    desk.at_ms += limits.JOIN_PROVEN_WAITS_MS
    assert desk.again("pi-1") == "join.expired"


def test_without_a_token_a_person_decides(desk):
    assert desk.ask("pi-1") == WAITS
    assert desk.again("pi-1") == WAITS
    (held,) = waiting(desk.state, desk.at_ms)
    assert (held.node, held.code, held.profile) == ("pi-1", CODE, "local_worker")
    assert desk.answer(CODE.lower(), profile="readonly") == ("pi-1", CODE)
    assert desk.again("pi-1") == IN
    assert desk.state.enrolled["pi-1"].profile == "readonly"
    assert desk.answer("pi-1") == "join.not_found"


def test_two_of_one_name_are_told_apart_by_their_codes(desk):
    desk.ask("pi-1", key="a", code="AAA-AAA")
    desk.ask("pi-1", key="b", code="BBB-BBB")
    assert desk.answer("pi-1") == "join.ambiguous"
    assert desk.answer("BBB-BBB") == ("pi-1", "BBB-BBB")
    assert desk.state.enrolled["pi-1"].identity.startswith(b"b")
    assert desk.answer("AAA-AAA") == "node.exists"


def test_who_is_ignored_is_not_seen_until_the_next_day(desk):
    desk.ask("pi-1")
    assert desk.answer("pi-1", approved=False) == ("pi-1", CODE)
    assert (desk.ask("pi-1"), desk.again("pi-1")) == ("join.ignored", "join.ignored")
    assert waiting(desk.state, desk.at_ms) == []
    desk.at_ms += limits.JOIN_IGNORED_MS
    assert desk.ask("pi-1") == WAITS


def test_who_waits_too_long_asks_anew(desk):
    desk.ask("pi-1")
    desk.at_ms += limits.JOIN_WAITS_MS
    assert desk.again("pi-1") == "join.expired"
    assert desk.answer("pi-1") == "join.not_found"
    assert desk.ask("pi-1", code="NEW-COD") == WAITS
    assert [each.code for each in desk.state.joins.values()] == ["NEW-COD"]


def test_the_open_door_closes_by_itself(desk):
    desk.ask("pi-1")
    desk.send(e.JoinWindowAsked, 240_000, "anna")
    assert desk.again("pi-1") == IN
    assert desk.ask("pi-2") == IN
    assert "anna" in desk.state.enrolled["pi-2"].by
    assert desk.ask("pi-3", profile="power_user") == WAITS
    desk.at_ms += 240_000
    assert desk.ask("pi-4") == WAITS
    desk.send(e.JoinWindowAsked, 240_000, "anna")
    desk.send(e.JoinWindowAsked, 0, "anna")
    assert desk.ask("pi-5") == WAITS


def test_the_open_door_lets_in_so_many_and_no_more(desk, monkeypatch):
    monkeypatch.setattr(limits, "JOIN_OPEN_NODES", 2)
    desk.send(e.JoinWindowAsked, 240_000, "anna")
    assert [desk.ask(f"pi-{number}") for number in range(3)] == [IN, IN, WAITS]
    desk.at_ms += limits.JOIN_OPEN_MS
    desk.send(e.JoinWindowAsked, 240_000, "anna")
    assert desk.again("pi-2") == IN


def test_nobody_fills_the_list_of_those_who_wait(desk, monkeypatch):
    for number in range(limits.JOIN_WAITING_OF_ADDRESS):
        assert desk.ask(f"pi-{number}", near="10.0.0.9") == WAITS
    assert desk.ask("pi-x", near="10.0.0.9") == "join.too_many"
    assert desk.ask("pi-0", near="10.0.0.9") == WAITS, "whoever is in the list stays in it"
    assert desk.ask("pi-y", near="10.0.0.8") == WAITS
    monkeypatch.setattr(limits, "JOIN_WAITING", len(desk.state.joins))
    assert desk.ask("pi-z", near="10.0.0.7") == "join.too_many"


def test_a_replaced_device_hands_on_its_alias_and_keeps_its_id(desk):
    desk.token(uses=9)
    desk.join("pi-bed")
    desk.ask("pi-new")
    assert desk.answer("pi-new", replaces="nobody") == "node.not_found"
    assert desk.answer("pi-new", replaces="pi-bed") == ("pi-new", CODE)
    state = desk.state
    assert (state.find_id("pi-bed"), state.alias_of("pi-new")) == ("pi-new", "pi-bed")
    assert (state.find_id("pi-bed-old"), state.alias_of("pi-bed")) == ("pi-bed", "pi-bed-old")
    assert desk.join("pi-bed", key="third") == "node.exists"


def test_a_removed_node_is_replaced_and_never_comes_back(desk):
    desk.token(uses=9)
    desk.join("pi-bed")
    desk.send(e.AdmissionAsked, "pi-bed", Admission.REVOKED, "stolen", "anna", 0)
    desk.ask("pi-new")
    assert desk.answer("pi-new", replaces="pi-bed") == ("pi-new", CODE)
    assert desk.state.find_id("pi-bed") == "pi-new"


def test_tokens_are_bounded_and_old_ones_make_room(desk, monkeypatch):
    monkeypatch.setattr(limits, "TOKENS", 2)
    assert [desk.token(f"t{n}") for n in range(3)] == ["t0", "t1", "token.too_many"]
    desk.at_ms += HOUR_MS + limits.TOKEN_KEPT_MS + 1
    assert desk.token("t3") == "t3"
    assert list(desk.state.tokens) == ["t3"]


def test_replayed_changes_give_the_same_state(desk):
    desk.token(groups=("garden",), uses=3)
    desk.token("t2")
    desk.join("pi-1")
    desk.join("pi-9", proven=False)
    desk.send(e.TokenRevokeAsked, "t2", "anna")
    desk.ask("pi-2")
    desk.ask("pi-3", near="other")
    desk.answer("pi-3", approved=False)
    desk.answer("pi-2", replaces="pi-1")
    desk.ask("pi-4")
    desk.send(e.JoinWindowAsked, 5, "anna")
    stored = [decode(*encode(change)) for change in desk.changes]
    assert stored == desk.changes
    again = Scheduler({}, stored).state
    assert again == desk.state


def test_more_than_the_usual_is_given_by_code_or_when_it_is_said(desk):
    """Who waits may ask for more between the look of a person and the word."""
    assert desk.ask("pi-1") == WAITS
    assert desk.ask("pi-1", profile="power_user") == WAITS
    assert desk.answer("pi-1") == "join.profile"
    assert desk.state.enrolled == {}
    assert desk.answer("pi-1", profile="local_worker") == ("pi-1", CODE)
    assert desk.state.enrolled["pi-1"].profile == "local_worker"
    desk.ask("pi-2", profile="power_user", code="9AB-CDE")
    assert desk.answer("9AB-CDE") == ("pi-2", "9AB-CDE")
    assert desk.state.enrolled["pi-2"].profile == "power_user"


def test_a_token_already_says_how_much(desk):
    desk.token(profile="power_user")
    assert desk.join("pi-1", profile="power_user") == WAITS
    assert desk.answer("pi-1") == ("pi-1", "")
    assert desk.state.enrolled["pi-1"].profile == "power_user"


def test_who_is_in_and_was_never_here_is_no_unknown_name(desk):
    desk.token()
    assert desk.join("pi-1") == IN
    with pytest.raises(InputError, match="pi-1 was let in and was never here"):
        find_node(desk.state, "pi-1")
    with pytest.raises(InputError, match="no node 'pi-2'"):
        find_node(desk.state, "pi-2")
