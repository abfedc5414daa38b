"""Selectors over labels and facts: meaning, precedence, limits and errors with their column."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imlmesh_protocol.errors import InputError
from imlmesh_protocol.iml.selector import parse_selector

NODE = {
    "os": "linux",
    "cpu": 4,
    "memory_mb": 512.5,
    "room": "attic",
    "floor": "2",
    "modules": ["iot", "filesystem"],
    "camera": True,
    "zone/main": "a b",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("os == linux", True),
        ('os == "linux"', True),
        ("os == 'darwin'", False),
        ("os != darwin", True),
        ("cpu >= 2", True),
        ("cpu < 4", False),
        ("cpu <= 4 and cpu > 3.5", True),
        ("cpu == 4.0", True),
        ("floor >= 2", True),
        ("floor == 2", True),
        ('floor == "2"', True),
        ("cpu == four", False),
        ("os > 3", False),
        ("room < basement", True),
        ("cpu < x", False),
        ("room in [attic, cellar]", True),
        ('cpu in [1, "2", 4]', True),
        ("room in [cellar]", False),
        ("modules == iot", True),
        ("modules in [vision, iot]", True),
        ("modules != iot", False),
        ("modules > a", False),
        ("camera == true", True),
        ("camera == False", False),
        ("camera == 1", False),
        ("zone/main == 'a b'", True),
        ("os==linux and(cpu>8 or room==attic)", True),
        ("os == linux or os == x and cpu > 8", True),
        ("(os == linux or os == x) and cpu > 8", False),
        ("not os == linux or cpu == 4", True),
        ("not (os == linux or cpu == 4)", False),
        ("not not cpu == 4", True),
        ("arch == arm64", False),
        ("arch != arm64", False),
        ("arch < 3", False),
        ("not arch == arm64", True),
    ],
)
def test_meaning(text, expected):
    assert parse_selector(text).matches(NODE) is expected


def test_names_are_what_it_asks_for():
    assert parse_selector("os == linux and (cpu > 2 or not room in [a])").names == {
        "os",
        "cpu",
        "room",
    }


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("", 1),
        ("os", 3),
        ("os ==", 6),
        ("os = linux", 4),
        ("os == linux cpu > 2", 13),
        ("os == linux and", 16),
        ("(os == linux", 13),
        ("os == linux)", 12),
        ("os in linux", 7),
        ("os in [a b]", 10),
        ("os in []", 8),
        ('"os" == linux', 2),
        ("2 == cpu", 1),
        ("and == 2", 1),
        ("os == not", 7),
        ("os == $x", 7),
        ("os == 'x", 7),
        ("(" * 40 + "os == x" + ")" * 40, 17),
        ("not " * 40 + "os == x", 65),
    ],
)
def test_errors_name_their_column(text, column):
    with pytest.raises(InputError) as caught:
        parse_selector(text)
    assert caught.value.code == "selector.syntax"
    assert f"character {column}:" in caught.value.message


def test_a_long_selector_is_refused():
    with pytest.raises(InputError) as caught:
        parse_selector(" or ".join(["a == b"] * 400))
    assert caught.value.code == "selector.syntax"


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("ab1 ()[],=!<>\"'inotrd"), max_size=30))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(InputError):
        assert parse_selector(text).matches(NODE) in (True, False)
