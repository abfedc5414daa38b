"""The in-process twin in virtual time: faults, partitions, and the same story for the same seed."""

import random

import pytest

from imlmesh_protocol import limits
from imlmesh_runtime.link.base import Will, retry_ms
from imlmesh_runtime.link.memory import Faults, MemoryHub, MemoryLink, matching


class Heard:
    def __init__(self, name: str, story: list[tuple[int, str, str]], hub: MemoryHub) -> None:
        self._name, self._story, self._hub = name, story, hub

    def will(self) -> Will | None:
        return Will(f"from/{self._name}/status", b"gone")

    def handed_over(self) -> None: ...

    def link_up(self) -> None:
        self._tell("up")

    def link_down(self, reason: str) -> None:
        self._tell("down")

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        self._tell(payload.decode())

    def _tell(self, what: str) -> None:
        self._story.append((self._hub.now_ms, self._name, what))


class World:
    """A hub with a listener and a speaker, both up."""

    def __init__(self, faults: Faults | None = None, seed: int = 1) -> None:
        self.story: list[tuple[int, str, str]] = []
        self.hub = MemoryHub(random.Random(seed), faults)
        self.listener = self.client("orchestra", "from/#")
        self.speaker = self.client("a", "to/a/+")
        self.hub.deliver(0)
        self.story.clear()

    def client(self, name: str, *subscriptions: str) -> MemoryLink:
        link = MemoryLink(self.hub, name, subscriptions)
        link.start(Heard(name, self.story, self.hub))
        return link

    def say(self, count: int = 1) -> None:
        for number in range(count):
            self.speaker.publish("from/a/complete", b"%d" % number)

    def run(self, until_ms: int) -> None:
        while self.hub.next_ms is not None and self.hub.next_ms <= until_ms:
            self.hub.deliver(self.hub.next_ms)
        self.hub.deliver(until_ms)

    def heard(self, name: str = "orchestra") -> list[str]:
        return [what for _, who, what in self.story if who == name]


def test_nothing_arrives_before_it_is_due():
    world = World(Faults(delay_ms=20))
    world.say()
    assert world.hub.next_ms == 20
    assert world.hub.deliver(19) == 0
    assert world.hub.deliver(20) == 1
    assert world.story == [(20, "orchestra", "0")]
    assert world.hub.next_ms is None


def test_loss_loses_about_its_share():
    world = World(Faults(loss=0.3))
    world.say(1_000)
    world.run(0)
    assert 600 < len(world.heard()) < 800


def test_repeat_repeats_about_its_share():
    world = World(Faults(repeat=0.3))
    world.say(1_000)
    world.run(0)
    assert 1_200 < len(world.heard()) < 1_400
    assert set(world.heard()) == {str(number) for number in range(1_000)}


def test_jitter_reorders_and_no_jitter_does_not():
    calm, rough = World(Faults(delay_ms=5)), World(Faults(delay_ms=5, jitter_ms=50))
    for world in (calm, rough):
        world.say(100)
        world.run(100)
    assert calm.heard() == [str(number) for number in range(100)]
    assert rough.heard() != calm.heard()
    assert sorted(rough.heard()) == sorted(calm.heard())


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_tells_the_same_story(seed):
    stories = []
    for _ in range(2):
        world = World(Faults(loss=0.1, repeat=0.1, delay_ms=1, jitter_ms=30), seed)
        world.say(200)
        world.hub.drop("a")
        world.run(60_000)
        stories.append(world.story)
    assert stories[0] == stories[1]
    assert stories[0]


def test_a_partition_to_a_client_loses_what_comes_while_it_lasts():
    world = World()
    world.hub.partition("orchestra", from_client=False)
    world.say(3)
    world.run(10)
    world.listener.publish("to/a/ack", b"still heard")
    world.run(20)
    world.hub.heal("orchestra")
    world.speaker.publish("from/a/complete", b"after")
    world.run(30)
    assert world.heard() == ["after"]
    assert world.heard("a") == ["still heard"]


def test_a_partition_from_a_client_keeps_its_will_possible():
    world = World()
    world.hub.partition("a", to_client=False)
    world.say(3)
    world.hub.drop("a")
    world.run(60_000)
    assert world.heard() == ["gone"]
    assert "up" not in world.heard("a")
    world.hub.heal("a")
    world.run(120_000)
    assert world.heard("a")[-1] == "up"


def test_a_killed_client_leaves_its_will_and_never_returns():
    world = World()
    world.speaker.kill()
    world.run(60_000)
    assert world.heard() == ["gone"]
    assert world.heard("a") == []


def test_what_was_under_way_to_an_ended_session_does_not_reach_the_next():
    world = World(Faults(delay_ms=1_000))
    world.say()
    world.hub.drop("orchestra")
    world.run(10_000)
    # Its own will was retained, so it hears that; "0" belonged to the session that ended.
    assert world.heard() == ["down", "up", "gone"]


def test_a_second_client_of_the_same_id_takes_over():
    world = World()
    world.hub.deliver(5)
    second = MemoryLink(world.hub, "a", ("to/a/+",))
    second.start(Heard("a2", world.story, world.hub))
    world.hub.deliver(5)
    assert second.connected
    assert not world.speaker.connected
    assert world.heard() == ["gone"]
    assert world.heard("a") == ["down"]


def test_the_pause_before_an_attempt_doubles_up_to_a_limit():
    assert retry_ms(0, 0.0) == 0
    spans = [retry_ms(attempt, 1.0) for attempt in range(10)]
    assert spans[:3] == [limits.LINK_RETRY_MS * factor for factor in (1, 2, 4)]
    assert spans == sorted(spans)
    assert spans[-1] == limits.LINK_RETRY_MAX_MS
    assert retry_ms(10_000, 0.5) == limits.LINK_RETRY_MAX_MS // 2
    assert [retry_ms(attempt, 1.0, 600) for attempt in range(4)] == [250, 500, 600, 600]


@pytest.mark.parametrize(
    ("filter_", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("+/b", "a/c", False),
        ("#", "a/b", True),
        ("+/+", "a/", True),
        ("a/b/c", "a/b", False),
        ("a.b", "a-b", False),
        ("a/b", "a/b/", False),
    ],
)
def test_topic_filters(filter_, topic, expected):
    assert bool(matching([filter_]).fullmatch(topic)) is expected
