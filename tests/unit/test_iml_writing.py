"""Plans as text: the order of fields, YAML that is read as it was meant, comments that stay."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_protocol.iml.document import parse
from imlmesh_protocol.iml.plan import Action, Approval, Plan
from imlmesh_protocol.iml.writing import in_order, plan_text
from imlmesh_protocol.iml.yaml_comments import Comments, comments_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
UNTIDY = """\
# yaml-language-server: $schema=./iml.schema.json

plan_id: evening   # its name
# about the version
protocol_version: '2.0'

actions: # all of them
- module: iot
  # the name
  id: valve
  action: digital_write   # once
  params: {value: 1, # open
           pin: 17}


  # the next action speaks
  approval:
    message: "Opens # the valve"
    risk_level: high # really
- # a second one
  {action: read_file, id: look, module: filesystem, params: {path: "a b"}} # done
-   id: say
    module: filesystem
    action: write_file
    params:
        path: out.txt
        content: |  # as it is
           first # no comment
           second

    # before its tags
    tags: [a, b]
# the end
"""
TIDY = """\
# yaml-language-server: $schema=./iml.schema.json

# about the version
protocol_version: "2.0"
plan_id: evening  # its name

actions:  # all of them
  # the name
  - id: valve
    module: iot
    action: digital_write  # once
    params:
      value: 1  # open
      pin: 17

    # the next action speaks
    approval:
      message: "Opens # the valve"
      risk_level: high  # really
  # a second one
  # done
  - id: look
    module: filesystem
    action: read_file
    params: {path: a b}
  - id: say
    module: filesystem
    action: write_file
    params:
      path: out.txt
      content: |  # as it is
        first # no comment
        second

    # before its tags
    tags: [a, b]
# the end
"""


def tidy(text):
    document = parse(text, "plan.yaml")
    return plan_text(document.data, "yaml", comments_of(document))


def test_fields_stand_in_the_order_of_the_models():
    fields = dict.fromkeys(reversed([*Action.model_fields, "strange"]))
    fields["approval"] = dict.fromkeys(reversed(Approval.model_fields), 0)
    data = {"odd": 1, "actions": [fields], "plan_id": "p"}
    ordered = in_order(data)
    assert ordered == data
    assert list(ordered) == ["plan_id", "actions", "odd"]
    assert list(ordered["actions"][0]) == [*Action.model_fields, "strange"]
    assert list(ordered["actions"][0]["approval"]) == list(Approval.model_fields)
    assert list(in_order(dict.fromkeys(reversed(Plan.model_fields)))) == list(Plan.model_fields)


def test_params_keep_the_order_of_their_author():
    data = {"actions": [{"params": {"b": 1, "a": 2}}]}
    assert list(in_order(data)["actions"][0]["params"]) == ["b", "a"]


def test_an_untidy_plan_becomes_a_tidy_one_with_every_comment():
    document = parse(UNTIDY, "plan.yaml")
    assert comments_of(document).count == UNTIDY.count("# ") - UNTIDY.count("no comment") - 1
    assert tidy(UNTIDY) == TIDY
    assert parse(TIDY, "plan.yaml").data == document.data
    assert tidy(TIDY) == TIDY


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.iml.yaml")), ids=lambda path: path.name)
def test_examples_keep_data_and_comments(path):
    document = parse(path.read_bytes(), path.name)
    again = parse(tidy(path.read_text()), path.name)
    assert again.data == document.data
    assert comments_of(again).count == comments_of(document).count > 0
    assert tidy(again.text.content) == again.text.content


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain words, and more", "plain words, and more"),
        ("yes", '"yes"'),
        ("On", '"On"'),
        ("null", '"null"'),
        ("5", '"5"'),
        ("2026-01-01", '"2026-01-01"'),
        ("1:30", '"1:30"'),
        ("a: b", '"a: b"'),
        ("a #b", '"a #b"'),
        (" a", '" a"'),
        ("a ", '"a "'),
        ("", '""'),
        ("{{result.a}}", '"{{result.a}}"'),
        ("-", '"-"'),
        ("~", '"~"'),
        ("Größe 🌱", "Größe 🌱"),
        ("\ufeffa", '"\\ufeffa"'),
        ("a\x85b\u2028", '"a\\u0085b\\u2028"'),
        (5, "5"),
        (5.0, "5.0"),
        (1e22, "1e+22"),
        (None, "null"),
        (True, "true"),
        ([], "[]"),
        ({}, "{}"),
        (["a, b", 1], '["a, b", 1]'),
        ({"k": {"l": ["x"]}}, "{k: {l: [x]}}"),
        ("one\ntwo\n", "|\n  one\n  two"),
        ("one\n\n two", "|-\n  one\n\n   two"),
        ("one\ntwo\n\n", '"one\\ntwo\\n\\n"'),
        ("one \ntwo", '"one \\ntwo"'),
    ],
)
def test_values_are_written_so_that_every_reader_takes_them_for_the_same(value, written):
    text = plan_text({"key": value}, "yaml")
    assert text == f"key: {written}\n"
    assert parse(text, "x.yaml").data == {"key": value}


def test_a_long_line_becomes_a_block_and_a_long_key_stays_readable():
    long = {"command": ["x" * 60, "y" * 60]}
    assert plan_text({"params": long}, "yaml") == (
        f"params:\n  command:\n    - {'x' * 60}\n    - {'y' * 60}\n"
    )
    data = {"actions": [{"k" * 2_000: {"a": 1}}]}
    assert parse(plan_text(data, "yaml"), "x.yaml").data == data


def test_json_is_indented_and_holds_no_raw_control_character():
    assert plan_text({"actions": [], "plan_id": "p\x85"}, "json") == (
        '{\n  "plan_id": "p\\u0085",\n  "actions": []\n}\n'
    )


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text(
    " \n\t#:-'\"|>&*!?%@`{}[],~ay1.", max_size=12
)
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(texts, values, max_size=5))
def test_any_data_is_read_as_it_was_written(data):
    for form in ("json", "yaml"):
        text = plan_text(data, form)
        again = parse(text, f"x.{form}").data
        assert again == data
        assert json.dumps(in_order(again)) == json.dumps(in_order(data))
        assert plan_text(again, form) == text


@st.composite
def commented(draw):
    """A YAML text with comments and empty lines at places drawn by lot, and how many comments."""
    words = st.dictionaries(st.text("abc", min_size=1, max_size=3), values, min_size=1, max_size=3)
    actions = st.lists(words, max_size=3)
    text = plan_text(draw(words) | {"actions": draw(actions)}, "yaml")
    document = parse(text, "x.yaml")
    lines, count = [], 0
    quoted = _lines_of_texts(document)
    for number, line in enumerate(text.splitlines(), 1):
        if number not in quoted and draw(st.booleans()):
            lines.append(draw(st.sampled_from(["", "  ", "# alone", "    # deep"])))
            count += "#" in lines[-1]
        behind = number not in quoted and number + 1 not in quoted and draw(st.booleans())
        lines.append(f"{line} # behind" if behind else line)
        count += behind
    return "\n".join(lines) + "\n", document.data, count


def _lines_of_texts(document):
    """Lines within texts of several lines, where a # is no comment."""
    inside = set()
    waiting = [document.root]
    while waiting:
        part = waiting.pop()
        waiting += [inner for _, inner in (part.entries or {}).values()]
        waiting += part.items or []
        if part.entries is None and part.items is None:
            place = document.text.place(part.start, part.end, "")
            inside.update(range(place.line + 1, place.end_line + 1))
    return inside


@given(commented())
def test_no_comment_is_lost_and_tidy_text_stays(drawn):
    text, data, count = drawn
    document = parse(text, "x.yaml")
    assert document.data == data
    assert comments_of(document).count == count
    once = tidy(text)
    again = parse(once, "x.yaml")
    assert again.data == data
    assert comments_of(again).count == count
    assert tidy(once) == once


def test_aliases_are_written_out_once_with_their_comments():
    text = "a: &x  # the first\n  k: 1  # one\nb: *x  # again\n"
    assert tidy(text) == "a:  # the first\n  k: 1  # one\nb: {k: 1}  # again\n"


def test_a_plan_without_comments_has_none():
    assert comments_of(parse("a: 1\n", "x.yaml")) == Comments()
