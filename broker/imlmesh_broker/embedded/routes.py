"""A tree of names with slashes: subscriptions found by topic, retained messages found by filter.

The one rule: a look-up costs as many steps as a topic has levels, however many clients there are.
Pure. Deliberately absent: rights; the filters that come here were narrowed to what is allowed.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Level(Generic[Key, Value]):
    """What ends at one level, and the levels below by their name."""

    __slots__ = ("below", "here")

    def __init__(self) -> None:
        self.below: dict[str, _Level[Key, Value]] = {}
        self.here: dict[Key, Value] = {}


class Tree(Generic[Key, Value]):
    """Values by name and key."""

    def __init__(self) -> None:
        self._top: _Level[Key, Value] = _Level()

    def put(self, name: str, key: Key, value: Value) -> None:
        """Set the value of `key` at `name`."""
        level = self._top
        for part in name.split("/"):
            level = level.below.setdefault(part, _Level())
        level.here[key] = value

    def drop(self, name: str, key: Key) -> None:
        """Forget what `put` set, and levels that nobody needs any more."""
        parts = name.split("/")
        path = [self._top]
        for part in parts:
            path.append(path[-1].below[part])
        del path[-1].here[key]
        for part, upper, level in zip(parts[::-1], path[-2::-1], path[:0:-1], strict=True):
            if not level.here and not level.below:
                del upper.below[part]

    def taking(self, topic: str) -> Iterator[tuple[Key, Value]]:
        """What stands at every filter that takes `topic`."""
        levels = [self._top]
        for part in topic.split("/"):
            lower = []
            for level in levels:
                if "#" in level.below:
                    yield from level.below["#"].here.items()
                lower += [level.below[name] for name in (part, "+") if name in level.below]
            levels = lower
        for level in levels:
            yield from level.here.items()
            if "#" in level.below:
                yield from level.below["#"].here.items()

    def within(self, asked: str) -> Iterator[Value]:
        """What stands at every topic that the filter `asked` takes."""
        levels = [self._top]
        for part in asked.split("/"):
            if part == "#":
                for level in levels:
                    levels.extend(level.below.values())
            elif part == "+":
                levels = [lower for level in levels for lower in level.below.values()]
            else:
                levels = [level.below[part] for level in levels if part in level.below]
        for level in levels:
            yield from level.here.values()
