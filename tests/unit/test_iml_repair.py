"""Repair of almost-JSON: what it changes, what it says of it, and what it refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors
from imlmesh_protocol.iml.document import parse
from imlmesh_protocol.iml.near_json import apply_repairs
from imlmesh_protocol.iml.repair import repair
from imlmesh_protocol.iml.validate import validate

PLAN = """\
{"plan_id": "p", "protocol_version": "2.0", "description": "d", "actions": [
  {"id": "a", "module": "m", "action": "x", "params": {"path": "a.txt", "n": 3}},
  {"id": "b", "module": "m", "action": "x", "depends_on": ["a"]}]}
"""
DATA = json.loads(PLAN)


def kinds(text):
    return [one.kind for one in repair(text).repairs]


def refusal(text, file=None):
    with pytest.raises(InputError) as caught:
        repair(text, file)
    place = caught.value.place
    return caught.value.code, place.line, place.column


@pytest.mark.parametrize(
    ("text", "repaired", "kind"),
    [
        ('{"actions": [1], // why\n "a": 2}', '{"actions": [1], \n "a": 2}', "comment"),
        ('{"actions": [1] # why\n}', '{"actions": [1] \n}', "comment"),
        ('{"actions": /* why */ [1]}', '{"actions":  [1]}', "comment"),
        ('{"actions": [1,]}', '{"actions": [1]}', "trailing_comma"),
        ('{"actions": [1], }', '{"actions": [1] }', "trailing_comma"),
        ('{"actions": [1]\n "a": 2}', '{"actions": [1],\n "a": 2}', "missing_comma"),
        ('{"actions": ["a"\n"b"]}', '{"actions": ["a",\n"b"]}', "missing_comma"),
        ('{"a": 1 "actions": [1]}', '{"a": 1, "actions": [1]}', "missing_comma"),
        ('{"actions": [{}{}]}', '{"actions": [{},{}]}', "missing_comma"),
        ("{'actions': [1]}", '{"actions": [1]}', "quotes"),
        ('{"actions": [\'say "hi"\']}', '{"actions": ["say \\"hi\\""]}', "quotes"),
        ("{“actions”: [1]}", '{"actions": [1]}', "quotes"),
        ('{"actions": ["a\nb"]}', '{"actions": ["a\\nb"]}', "escape"),
        ('{"actions": ["it\\\'s"]}', '{"actions": ["it\'s"]}', "escape"),
        ("{actions: [1]}", '{"actions": [1]}', "unquoted_key"),
        ("{\nactions:\n[1]}", '{\n"actions":\n[1]}', "unquoted_key"),
        ('{"actions": [True]}', '{"actions": [true]}', "python_word"),
        ('{"actions": [False]}', '{"actions": [false]}', "python_word"),
        ('{"actions": [None]}', '{"actions": [null]}', "python_word"),
        ('{"actions": [{{result.a.b}}]}', '{"actions": ["{{result.a.b}}"]}', "unquoted_template"),
        ('{"actions":\u00a0[1]}', '{"actions": [1]}', "space"),
        ('```json\n{"actions": [1]}', '{"actions": [1]}', "text_before"),
        ('Here it is: {"actions": [1]}', '{"actions": [1]}', "text_before"),
        ('plan = {"actions": [1]}', '{"actions": [1]}', "text_before"),
        ('{"actions": [1]}\n```\nGood luck!\n', '{"actions": [1]}\n', "text_after"),
        ('{"actions": [1]}}', '{"actions": [1]}', "text_after"),
        ('{"actions": [[1, 2], 3}', '{"actions": [[1, 2], 3]}', "missing_bracket"),
    ],
)
def test_one_change_is_made_and_told(text, repaired, kind):
    done = repair(text)
    assert done.text == repaired
    assert [one.kind for one in done.repairs] == [kind]
    assert done.document.data == json.loads(repaired)
    assert done.losses == ()
    assert repair(repaired).repairs == ()


def test_a_change_says_where_and_what():
    done = repair('{\n  "actions": [\n    True,\n  ],\n}', "answer.json")
    assert [one.as_record() for one in done.repairs] == [
        {
            "kind": "python_word",
            "message": "True became true",
            "put": "true",
            "line": 3,
            "column": 5,
            "end_line": 3,
            "end_column": 9,
        },
        {
            "kind": "trailing_comma",
            "message": "removed the comma after the last value",
            "put": "",
            "line": 3,
            "column": 9,
            "end_line": 3,
            "end_column": 10,
        },
        {
            "kind": "trailing_comma",
            "message": "removed the comma after the last value",
            "put": "",
            "line": 4,
            "column": 4,
            "end_line": 4,
            "end_column": 5,
        },
    ]
    assert str(done.repairs[0].place) == "answer.json:3:5"


def test_a_plan_with_all_of_it_becomes_the_plan():
    text = (
        "Sure! Here is {your} plan:\n```json\n// v1\n{'plan_id': 'p', protocol_version: \"2.0\",\n"
        ' "description": "d" "actions": [ # two\n'
        "  {'id': 'a', 'module': 'm', 'action': 'x', 'params': {'path': 'a.txt', 'n': 3,}}\n"
        '  {"id": "b", "module": "m", /* same */ "action": "x", "depends_on": ["a"],},]}\n```\nBye'
    )
    assert repair(text).document.data == DATA


def test_places_of_findings_are_those_of_the_original_text():
    text = "Here:\n{'actions': [\n  {'id': 'a b', 'module': 'm', 'action': 'x'}]}"
    report = validate(repair(text, "answer.txt").document, [])
    place = report.errors[0].place
    assert (str(place), place.pointer) == ("answer.txt:3:10", "/actions/0/id")


@pytest.mark.parametrize("text", [PLAN, "actions:\n  - {id: a}  # kept\n"])
def test_what_can_be_read_is_left_alone(text):
    done = repair(text)
    assert (done.text, done.repairs, done.losses) == (text, (), ())


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"actions": [NaN]}', (1, 14)),
        ('{"actions": [-Infinity]}', (1, 14)),
        ('{"actions": [undefined, 1]}', (1, 14)),
        ('{"actions": [filesystem]}', (1, 14)),
        ('{"actions": [007]}', (1, 14)),
        ('{"actions": [1_000]}', (1, 14)),
        ('{"actions": [1, ...]}', (1, 17)),
        ('{"actions": [1,,2]}', (1, 16)),
        ('{"actions": [,1]}', (1, 14)),
        ('{"actions": [1 2]}', (1, 16)),
        ('{"actions": ["a" "b"]}', (1, 18)),
        ('{"actions": ["say "hi" to"]}', (1, 20)),
        ('{"actions": ["""a"""]}', (1, 16)),
        ('{"actions": ["a, "b"]}', (1, 19)),
        ('{"actions": [{"a": "x,\n "b": 1}]}', (2, 3)),
        ('{"actions": [{"a": "the " b: 1}]}', (1, 27)),
        ('{"actions": ["C:\\dir"]}', (1, 17)),
        ('{"actions": ["\\u12"]}', (1, 15)),
        ('{"actions" = [1]}', (1, 12)),
        ('{"actions": ["a" + "b"]}', (1, 18)),
        ('{"actions": [{"a": 1, {"b": 2}]}', (1, 23)),
        ('{"actions": [{"a": 1}}, {"b": 2}]}', (1, 25)),
        ('{"actions": [{"a": 1}},id": 2}]}', (1, 24)),
        ('{"actions": [{"a": "x"], "b": 1}]}', (1, 33)),
        ('{"actions": [1]} {"actions": [2]}', (1, 19)),
        ('{"actions": [1)}', (1, 15)),
        ('Use {x}: {"description": "say "hi"", "actions": [{"actions": [1]}]}', (1, 32)),
    ],
)
def test_what_may_mean_two_things_is_refused_with_its_place(text, place):
    assert refusal(text) == ("plan.syntax", *place)


@pytest.mark.parametrize(
    "text", ["", "hello", "- a\n- b", "if (a) { b(); }", "[1, 2,", "{{actions}}"]
)
def test_what_was_never_a_plan_does_not_become_one(text):
    assert refusal(text)[0] == "plan.no_plan"


@pytest.mark.parametrize(
    "text", ['{"name": "x",}', '{"plan": {"actions": [1,]}}', '{"a": 1', "hello {x}: {y}"]
)
def test_an_object_without_actions_is_repaired_and_then_refused_by_the_checks(text):
    report = validate(repair(text).document, [])
    assert report.plan is None
    assert '"actions" is missing' in [error.message for error in report.errors]


def test_yaml_is_not_repaired_but_refused_as_yaml():
    broken = "actions:\n  - {id: a\n  - params: {actions: [1]}\n"
    assert refusal(broken)[0] == "plan.syntax"
    assert refusal('{"actions": [1,,]}', "plan.yaml")[0] == "plan.syntax"


def test_duplicate_keys_and_limits_are_refused_as_ever(monkeypatch):
    with pytest.raises(InputErrors) as caught:
        repair("{'actions': [1], 'actions': [2]}")
    assert caught.value.errors[0].code == "plan.duplicate_key"
    assert refusal("{'actions': " + "[" * 100)[0] == "plan.too_large"
    monkeypatch.setattr(limits, "PLAN_REPAIRS", 1_000)
    assert repair("{'actions': [" + "{}\n" * 900)
    assert refusal("{'actions': [" + "{}\n" * 1_002)[0] == "plan.syntax"


@pytest.mark.parametrize(
    ("until", "end", "lost"),
    [
        ('"a.txt", "n": 3}},', "", 'after action "a"; actions that followed, if any, are lost'),
        ('"a.txt", "n": 3}}', "", 'after action "a"; actions that followed, if any, are lost'),
        ('"a.txt", "n": 3}', "", 'in the middle of action "a"; what followed is lost'),
        ('"a.txt", "n": 3', "", 'in the middle of action "a", in its "params.n"'),
        ('"a.txt", "n":', "", 'in the middle of action "a", in its "params.n"'),
        ('"a.txt", "n', "", 'in the middle of action "a", in its "params"'),
        ('"a.t', "", 'in the middle of action "a", in its "params.path"'),
        ('"a.t', "\n```\nThat is all.", 'in the middle of action "a", in its "params.path"'),
        ('"depends_on": ["a"]}', "\n```", 'after action "b"; actions that followed'),
        ('"depends_on": ["a"]}]', "", "before the plan does; fields that followed"),
        ('"description"', "", "before the plan does; fields that followed"),
    ],
)
def test_a_cut_plan_is_closed_and_what_is_lost_is_said(until, end, lost):
    text = PLAN[: PLAN.index(until) + len(until)] + end
    done = repair(text)
    assert [loss.code for loss in done.losses] == ["plan.truncated"]
    assert lost in done.losses[0].message
    assert done.losses[0].place.line == text.partition("\n```")[0].count("\n") + 1
    assert parse(done.text).data == done.document.data
    assert is_part(done.document.data, DATA)


@pytest.mark.parametrize("text", ['{"actions": {"id": "a", "params": {"p', '{"actions": {"a": "b'])
def test_a_cut_object_where_actions_should_be_a_list_is_told(text):
    done = repair(text)
    assert [loss.code for loss in done.losses] == ["plan.truncated"]
    assert "before the plan does" in done.losses[0].message


def test_a_value_that_may_not_be_whole_is_removed_and_a_text_closed():
    number = repair('{"actions": [{"pin": 1')
    assert number.document.data == {"actions": [{}]}
    assert [one.kind for one in number.repairs] == ["cut_value", "missing_bracket"]
    word = repair('{"actions": [{"pin": 17, "on": tru')
    assert word.document.data == {"actions": [{"pin": 17}]}
    text = repair('{"actions": [{"path": "/tmp/\\u00')
    assert text.document.data == {"actions": [{"path": "/tmp/"}]}
    assert [one.kind for one in text.repairs] == ["cut_text", "missing_bracket"]


def is_part(found, whole):
    """Whether all of `found` stands in `whole` too; the end of texts and containers may lack."""
    if isinstance(found, dict):
        return all(key in whole and is_part(value, whole[key]) for key, value in found.items())
    if isinstance(found, list):
        return len(found) <= len(whole) and all(map(is_part, found, whole))
    if isinstance(found, str):
        return whole.startswith(found)
    return found == whole


words = st.text(st.sampled_from("abc ,:[]{}#/*`'\"\\\n\té🌱"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=10,
)
plans = st.fixed_dictionaries(
    {"actions": st.lists(st.dictionaries(words, values, max_size=3), min_size=1, max_size=3)},
    optional={"description": words},
)


@given(plans, st.booleans())
def test_valid_json_is_never_changed(data, ascii_only):
    text = json.dumps(data, ensure_ascii=ascii_only, indent=2)
    assert repair(text).repairs == ()


@given(plans)
def test_python_literals_become_the_same_data(data):
    done = repair(repr(data))
    assert done.document.data == data
    assert parse(done.text).data == data


@st.composite
def untidy(draw):
    """A plan as careless authors write it, and what it means."""
    data = draw(plans)
    between = st.sampled_from(["", "", " ", "\n", " // a, b\n", " /* { */ ", " # 'x'\n", "\u00a0"])

    def text(value):
        if draw(st.booleans()) or "\\" in value:
            return json.dumps(value)
        return "'" + value.replace("'", "\\'") + "'"

    def written(value):
        if isinstance(value, str):
            return text(value)
        if not isinstance(value, dict | list):
            return draw(st.sampled_from([json.dumps(value), repr(value)]))
        if isinstance(value, dict):
            parts = [
                f"{text(k)}{draw(between)}:{draw(between)}{written(v)}" for k, v in value.items()
            ]
        else:
            parts = [written(inner) for inner in value]
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        commas = [draw(st.sampled_from([",", ",", "\n"])) + draw(between) for _ in parts]
        if commas:
            commas[-1] = draw(st.sampled_from(["", ","]))
        inside = "".join(part + comma for part, comma in zip(parts, commas, strict=True))
        return opening + draw(between) + inside + draw(between) + closing

    before = draw(st.sampled_from(["", "Here {it} is:\n", "```json\n", "// mine\n", "plan = "]))
    after = draw(st.sampled_from(["", "\n```\nBye", "}", ";\n", "\nThat does {it}."]))
    return before + written(data) + after, data


@given(untidy())
def test_untidy_plans_become_what_their_authors_meant(drawn):
    text, data = drawn
    done = repair(text)
    assert done.document.data == data
    assert parse(done.text).data == data
    assert apply_repairs(text, done.repairs) == done.text
    assert repair(done.text).repairs == ()


@given(plans, st.data())
def test_a_plan_cut_anywhere_has_lost_its_end_and_nothing_else(data, lot):
    text = json.dumps(data, ensure_ascii=False)
    cut = text[: lot.draw(st.integers(1, len(text) - 1))]
    done = repair(cut)
    assert is_part(done.document.data, data)
    assert [loss.code for loss in done.losses] == ["plan.truncated"]
    assert parse(done.text).data == done.document.data


@given(plans, st.data())
def test_damaged_text_gives_a_plan_that_can_be_read_or_a_coded_error(data, lot):
    text = json.dumps(data, ensure_ascii=False)
    for _ in range(lot.draw(st.integers(1, 3))):
        at = lot.draw(st.integers(0, len(text)))
        gone = lot.draw(st.integers(0, 2))
        put = lot.draw(
            st.sampled_from(["", "{", "}", "[", "]", ",", ":", '"', "'", "\\", "/*", "```"])
        )
        text = text[:at] + put + text[at + gone :]
    try:
        done = repair(text)
    except InputError:
        return
    if done.document.format == "json":
        assert parse(done.text).data == done.document.data
        assert apply_repairs(text, done.repairs) == done.text
