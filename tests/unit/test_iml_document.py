"""Reading plan documents: data, places, and every refusal of a text that is no plan document."""

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors
from imlmesh_protocol.iml.document import document_of, parse

JSON_TEXT = """{
  "plan_id": "p",
  "actions": [
    {"id": "a", "params": {"path": "x"}},
    {"id": "b"}
  ]
}
"""
YAML_TEXT = """\
plan_id: p
actions:
  - id: a
    params: {path: x}

  # a comment
  - id: b
empty:
"""


def where(document, pointer, *, key=False):
    place = document.place(pointer, key=key)
    return (place.line, place.column, place.end_line, place.end_column)


def refusal(data, file=None):
    with pytest.raises(InputError) as caught:
        parse(data, file)
    place = caught.value.place
    return (caught.value.code, place.line, place.column)


def test_json_gives_data_and_places():
    document = parse(JSON_TEXT, "plan.json")
    assert document.data == json.loads(JSON_TEXT)
    assert document.format == "json"
    assert where(document, "/plan_id") == (2, 14, 2, 17)
    assert where(document, "/plan_id", key=True) == (2, 3, 2, 12)
    assert where(document, "/actions/0/params/path") == (4, 36, 4, 39)
    assert where(document, "/actions/1") == (5, 5, 5, 16)
    assert str(document.place("/actions/1/id")) == "plan.json:5:12"


def test_yaml_gives_the_same_data_and_its_own_places():
    document = parse(YAML_TEXT, "plan.iml.yaml")
    assert document.data == {
        "plan_id": "p",
        "actions": [{"id": "a", "params": {"path": "x"}}, {"id": "b"}],
        "empty": None,
    }
    assert document.format == "yaml"
    assert where(document, "/actions/0/params/path") == (4, 20, 4, 21)
    assert where(document, "/actions/0/params", key=True) == (4, 5, 4, 11)
    assert where(document, "/actions/1/id") == (7, 9, 7, 10)
    assert where(document, "/actions/0") == (3, 5, 4, 22)
    assert where(document, "/empty") == (8, 1, 8, 6)


def test_json_escapes_are_read():
    assert parse(r'["\ud83c\udf31 \u00b0C \\ \" \/"]').data == ['🌱 °C \\ " /']


def test_a_missing_pointer_is_placed_at_its_nearest_owner():
    document = parse(JSON_TEXT)
    assert where(document, "/actions/1/module") == where(document, "/actions/1")
    assert document.place("/actions/1/module").pointer == "/actions/1/module"


@pytest.mark.parametrize(
    ("text", "file", "format"),
    [
        ('{"a": 1}', None, "json"),
        ("  [1]", None, "json"),
        ("a: 1", None, "yaml"),
        ("{a: 1}", "x.yml", "yaml"),
        ('{"a": 1}', "x.txt", "json"),
        (b"\xef\xbb\xbfa: 1", None, "yaml"),
    ],
)
def test_format_comes_from_the_name_or_the_first_character(text, file, format):
    assert parse(text, file).format == format


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("-.5", -0.5),
        ("1e3", 1000.0),
        ("True", True),
        ("~", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("|-\n  two\n  lines", "two\nlines"),
    ],
)
def test_yaml_scalars_follow_the_core_schema_of_1_2(scalar, value):
    data = parse(f"key: {scalar}\n").data
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


def test_yaml_keys_that_1_1_reads_as_booleans_stay_text():
    assert parse("on: 1\nyes: 2\nn: 3").data == {"on": 1, "yes": 2, "n": 3}


def test_yaml_aliases_are_written_out():
    document = parse("a: &x {p: 1}\nb: *x\nc: [*x]\n")
    assert document.data == {"a": {"p": 1}, "b": {"p": 1}, "c": [{"p": 1}]}
    assert where(document, "/b") == (2, 4, 2, 6)
    assert where(document, "/b/p") == (1, 11, 1, 12)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("", ("plan.syntax", None, None)),
        ("{", ("plan.syntax", 1, 2)),
        ('{"a": 1,}', ("plan.syntax", 1, 9)),
        ('{"a" 1}', ("plan.syntax", 1, 6)),
        ("{1: 2}", ("plan.syntax", 1, 2)),
        ("[1,]", ("plan.syntax", 1, 4)),
        ("[1 2]", ("plan.syntax", 1, 4)),
        ("[01]", ("plan.syntax", 1, 3)),
        ("[-]", ("plan.syntax", 1, 2)),
        ("[1}", ("plan.syntax", 1, 3)),
        ('{"a":\n tru}', ("plan.syntax", 2, 2)),
        ('{"a": 1} x', ("plan.syntax", 1, 10)),
        ('{"a": NaN}', ("plan.syntax", 1, 7)),
        ('{"a": -Infinity}', ("plan.syntax", 1, 7)),
        ('{"a": 1e999}', ("plan.syntax", 1, 7)),
        ("[9007199254740992]", ("plan.syntax", 1, 2)),
        (f"[{'9' * 100_000}]", ("plan.syntax", 1, 2)),
        ('["\\ud800"]', ("plan.syntax", 1, 2)),
        ('["\\q"]', ("plan.syntax", 1, 3)),
        ('["a\tb"]', ("plan.syntax", 1, 2)),
        ('["abc', ("plan.syntax", 1, 2)),
        (b'{"a":\n"\xff"}', ("plan.syntax", 2, 2)),
        ("a: .nan", ("plan.syntax", 1, 4)),
        ("a: -.inf", ("plan.syntax", 1, 4)),
        ("a: &x [*x]", ("plan.syntax", 1, 8)),
        ("a: *x", ("plan.syntax", 1, 4)),
        ("b: &x 1\n<<: *x", ("plan.syntax", 2, 1)),
        ("? [a]\n: 1", ("plan.syntax", 1, 3)),
        ("a: 1\n2: b", ("plan.syntax", 2, 1)),
        ("a: !!python/object:os.system 1", ("plan.syntax", 1, 4)),
        ("a: !x {b: 1}", ("plan.syntax", 1, 4)),
        ("a: 1\n---\nb: 2", ("plan.syntax", 2, 1)),
        ("a: b: c", ("plan.syntax", 1, 5)),
        ("a:\n\t- b", ("plan.syntax", 2, 1)),
        ("a: \x01", ("plan.syntax", 1, 4)),
        ('a: "\\UFFFFFFFF"', ("plan.syntax", 1, 1)),
        ("%YAML 1.7\n---\na: 1", ("plan.syntax", 1, 1)),
    ],
)
def test_what_is_no_document_is_refused_at_its_place(text, refused):
    assert refusal(text) == refused


@pytest.mark.parametrize("text", ['{"k": 1, "b": {"c": 1,\n"c": 2}, "k": 3}'])
def test_all_duplicate_keys_are_named_with_both_places(text):
    with pytest.raises(InputErrors) as caught:
        parse(text)
    found = [(e.code, e.place.line, e.place.column, e.place.pointer) for e in caught.value.errors]
    assert found == [
        ("plan.duplicate_key", 2, 1, "/b"),
        ("plan.duplicate_key", 2, 10, ""),
    ]
    assert "line 1, column 16" in caught.value.errors[0].message


def test_duplicate_yaml_keys_are_refused():
    assert refusal("a: 1\nb: 2\na: 3\n") == ("plan.duplicate_key", 3, 1)
    assert refusal("a: {b: 1, b: 1}\n") == ("plan.duplicate_key", 1, 11)


@pytest.mark.parametrize("opening", ["[", '{"a":', "- "])
def test_depth_of_5000_is_refused(opening):
    code, line, _ = refusal(opening * 5_000)
    assert (code, line) == ("plan.too_large", 1)


def test_the_deepest_allowed_document_is_read():
    depth = limits.PLAN_DEPTH
    assert parse("[" * depth + "]" * depth).data
    assert refusal("[" * (depth + 1) + "]" * (depth + 1))[0] == "plan.too_large"
    nested = "a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 30 + "*a" + "]" * 30
    assert refusal(nested) == ("plan.too_large", 2, 34)


def test_too_many_bytes_are_refused_before_they_are_read():
    assert refusal(b"\xff" * 5_000_000) == ("plan.too_large", None, None)
    assert refusal("#" * (limits.PLAN_YAML_BYTES + 1)) == ("plan.too_large", None, None)


def test_anchors_that_explode_are_refused_fast():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    # of this process alone, however busy the machine is
    began = time.process_time()
    assert refusal("\n".join(lines))[0] == "plan.too_large"
    assert time.process_time() - began < 1
    wide = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 60)}]"
    assert refusal(wide)[0] == "plan.too_large"


def test_python_data_is_copied_and_placed_by_pointer():
    data = {"actions": ({"id": "a"},)}
    document = document_of(data)
    assert document.data == {"actions": [{"id": "a"}]}
    assert document.place("/actions/0/id").pointer == "/actions/0/id"
    assert document.place("/actions/0/id").line is None


@pytest.mark.parametrize(
    ("data", "code", "pointer"),
    [
        ({"a": [1, {2}]}, "plan.syntax", "/a/1"),
        ({"a": float("nan")}, "plan.syntax", "/a"),
        ({"a": {1: 2}}, "plan.syntax", "/a"),
        ({"a": b"x"}, "plan.syntax", "/a"),
        ({"a": 2**53}, "plan.syntax", "/a"),
    ],
)
def test_python_data_that_json_cannot_say_is_refused(data, code, pointer):
    with pytest.raises(InputError) as caught:
        document_of(data)
    assert (caught.value.code, caught.value.place.pointer) == (code, pointer)


def test_too_many_values_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "PLAN_VALUES", 2_000)
    with pytest.raises(InputError) as caught:
        document_of([0] * limits.PLAN_VALUES)
    assert caught.value.code == "plan.too_large"
    assert caught.value.place.pointer == f"/{limits.PLAN_VALUES - 1}"


def test_python_data_that_holds_itself_is_refused():
    data = []
    data.append(data)
    with pytest.raises(InputError) as caught:
        document_of(data)
    assert caught.value.code == "plan.too_large"


# JSON escapes what lies beyond in pairs, which YAML does not know
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], max_codepoint=0xFFFF), max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4), max_leaves=12
)


def leaves(value, pointer=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            token = key.replace("~", "~0").replace("/", "~1")
            yield from leaves(inner, f"{pointer}/{token}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{pointer}/{index}")
    else:
        yield pointer, value


@settings(max_examples=30, deadline=None)
@given(VALUES, st.sampled_from([None, 1]))
def test_json_round_trips_and_every_place_cuts_out_its_value(value, indent):
    text = json.dumps(value, indent=indent)
    document = parse(text, "x.json")
    assert document.data == value
    assert document_of(value).data == value
    lines = text.split("\n")
    for pointer, leaf in leaves(value):
        place = document.place(pointer)
        assert place.line == place.end_line
        cut = lines[place.line - 1][place.column - 1 : place.end_column - 1]
        assert json.loads(cut) == leaf


@settings(max_examples=25, deadline=None)
@given(VALUES)
def test_json_text_means_the_same_as_yaml(value):
    assert parse(json.dumps(value), "x.yaml").data == value


@settings(max_examples=40, deadline=None)
@given(
    st.text(st.sampled_from("ab:1 \n-[]{},&*!|>'\"\\#?%.~\t\u2028"), max_size=24),
    st.sampled_from(["x.json", "x.yaml"]),
)
def test_any_text_is_read_or_refused(text, file):
    with contextlib.suppress(InputError):
        assert parse(text, file).format in file
