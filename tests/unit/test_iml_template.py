"""Templates: what counts as one, what is put in its place, and what can never be filled."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault, InputError
from imlmesh_protocol.iml.template import (
    Scope,
    check_size,
    has_templates,
    is_template,
    references,
    render,
    render_undo,
    scan,
)

SCOPE = Scope(
    results={
        "sum-a": {"checksum": "ab", "size": 3, "parts": [{"n": 1}, {"n": 2}], "none": None},
        "flag": True,
        "sly": {"text": "{{env.IML_SITE}}"},
        "bad": Fault("driver.busy", "pin 17 is busy"),
        "raw": {"bytes": b"x"},
        "many": {"pi-2": {"t": 7, "ok": True}, "pi-1": {"t": 5}},
    },
    env={"IML_SITE": "garden"},
    node="pi-1",
    memory={"user:last": {"name": "ada"}, "n": 3},
    aliases={"attic": "pi-2", "away": "pi-3", "sum-a": "pi-2"},
)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("{{result.sum-a.size}}", 3),
        ("{{ result.sum-a.size }}", 3),
        ("{{result.flag}}", True),
        ("{{result.sum-a.parts}}", [{"n": 1}, {"n": 2}]),
        ("{{result.sum-a.parts.1.n}}", 2),
        ("{{result.sum-a.none}}", None),
        ("{{env.IML_SITE}}", "garden"),
        ("{{node.id}}", "pi-1"),
        ("n={{result.sum-a.size}}.", "n=3."),
        ("{{result.flag}}!", "true!"),
        ("{{result.sum-a.none}}.", "null."),
        ("{{result.sum-a.checksum}}{{node.id}}", "abpi-1"),
        (" {{result.sum-a.parts}}", ' [{"n":1},{"n":2}]'),
        ("{{result.bad._error.code}}", "driver.busy"),
        ("{{result.bad._error}}", {"code": "driver.busy", "message": "pin 17 is busy"}),
        ("why: {{result.bad._error.message}}", "why: pin 17 is busy"),
        ("{{result.sly.text}}", "{{env.IML_SITE}}"),
        ("<{{result.sly.text}}>", "<{{env.IML_SITE}}>"),
        ("{{result.raw.bytes}}", b"x"),
        ("{{memory.n}}", 3),
        ("{{memory.user:last}}", {"name": "ada"}),
        ("hello {{ memory.user:last.name }}", "hello ada"),
        ("{{result.many}}", {"pi-2": {"t": 7, "ok": True}, "pi-1": {"t": 5}}),
        ("{{result.many.pi-2.t}}", 7),
        ("{{result.many.attic.t}}", 7),
        ("{{result.many.attic}}", {"t": 7, "ok": True}),
        ("{{result.many.*.t}}", [5, 7]),
        ("{{result.many.*}}", [{"t": 5}, {"t": 7, "ok": True}]),
        ("all: {{result.many.*.t}}", "all: [5,7]"),
        ({"a": ["{{node.id}}", 1], "b": {"c": "x"}}, {"a": ["pi-1", 1], "b": {"c": "x"}}),
    ],
)
def test_render(params, expected):
    filled = render(params, SCOPE)
    assert filled == expected
    assert type(filled) is type(expected)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{{result.other}}", "template.no_result"),
        ("{{result.sum-a.nope}}", "template.no_result"),
        ("{{result.sum-a.size.x}}", "template.no_result"),
        ("{{result.sum-a.parts.2}}", "template.no_result"),
        ("{{result.sum-a.parts.x}}", "template.no_result"),
        ("{{result.sum-a.parts." + "9" * 5_000 + "}}", "template.no_result"),
        ("{{result.sum-a._error.code}}", "template.no_result"),
        ("{{result.bad.checksum}}", "template.no_result"),
        ("{{result.bad}}", "template.no_result"),
        ("{{result.bad._error.details}}", "template.no_result"),
        ("{{memory.sum-a}}", "memory.not_found"),
        ("{{memory.user:last.age}}", "template.no_result"),
        ("{{result.many.away.t}}", "template.no_result"),
        ("{{result.many.pi-9.t}}", "template.no_result"),
        ("{{result.many.*.ok}}", "template.no_result"),
        ("{{result.flag.*}}", "template.no_result"),
        ("{{result.bad.*}}", "template.no_result"),
        ("{{env.IML_NONE}}", "template.env"),
        ("x{{result.raw.bytes}}", "template.no_result"),
    ],
)
def test_what_has_no_value_is_an_error(text, code):
    with pytest.raises(InputError) as caught:
        render({"p": text}, SCOPE)
    assert caught.value.code == code


def test_a_missing_field_names_those_that_exist():
    with pytest.raises(InputError, match="checksum, size, parts, none"):
        render("{{result.sum-a.nope}}", SCOPE)


def test_params_without_templates_are_given_back():
    params = {"a": [1, "x"]}
    assert render(params, SCOPE) is params


@pytest.mark.parametrize(
    "params",
    [
        "{{result.big}}",
        ["{{result.half}}"] * 3,
        "{{result.half}}" * 3,
        ["x" * 150_000, "{{result.half}}"],
        {"a": "{{result.deep}}"},
        ["{{result.many}}"],
    ],
)
def test_what_does_not_fit_into_a_dispatch_is_refused(params):
    deep = 1
    for _ in range(limits.PARAMS_DEPTH):
        deep = [deep]
    scope = Scope(
        {"big": "x" * 200_000, "half": "x" * 100_000, "deep": deep, "many": [0] * 17_000}, {}, "n"
    )
    with pytest.raises(InputError) as caught:
        render(params, scope)
    assert caught.value.code == "template.too_large"


def test_repeating_a_large_result_stops_before_it_is_copied():
    scope = Scope({"r": "x" * 100_000}, {}, "n")
    with pytest.raises(InputError, match="once filled in"):
        render("{{result.r}}" * 100_000, scope)


def test_the_largest_params_fit():
    check_size({"a": "x" * (limits.PARAMS_BYTES - 16)})
    deep = 1
    for _ in range(limits.PARAMS_DEPTH):
        deep = [deep]
    check_size(deep)
    with pytest.raises(InputError):
        check_size([deep])


def test_a_node_that_lacks_the_field_is_named():
    with pytest.raises(InputError, match=r"result\.many\.pi-1\.ok does not exist"):
        render("{{result.many.*.ok}}", SCOPE)


def test_an_undo_takes_params_and_result_of_its_call():
    template = {
        "pin": "{{params.pin}}",
        "value": "{{result.previous}}",
        "was": "{{result}}",
        "n": 1,
    }
    assert render_undo(template, {"pin": 4, "value": 1}, {"previous": 0}) == {
        "pin": 4,
        "value": 0,
        "was": {"previous": 0},
        "n": 1,
    }
    assert render_undo({"pin": "{{params.pin}}"}, {"pin": 4}, None) == {"pin": 4}


@pytest.mark.parametrize(
    ("template", "result"),
    [
        ("{{result}}", None),
        ("{{result.previous}}", None),
        ("{{result.previous}}", {"value": 1}),
        ("{{params.bin}}", {}),
        ("{{node.id}}", {}),
    ],
)
def test_an_undo_that_cannot_be_filled(template, result):
    with pytest.raises(InputError) as caught:
        render_undo({"x": template}, {"pin": 4}, result)
    assert caught.value.code == "template.no_result"


def test_an_undo_is_bounded_too():
    with pytest.raises(InputError) as caught:
        render_undo({"x": "{{result}}{{result}}"}, {}, "x" * 100_000)
    assert caught.value.code == "template.too_large"


def test_references_come_with_their_pointer():
    params = {"a/b": ["x", "{{result.sum-a.size}} {{env.IML_X}}"], "c": "{{node.id}}"}
    assert [(r.root, r.path, r.pointer) for r in references(params)] == [
        ("result", ("sum-a", "size"), "/a~1b/1"),
        ("env", ("IML_X",), "/a~1b/1"),
        ("node", ("id",), "/c"),
    ]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{{result.a", "template.syntax"),
        ("{{", "template.syntax"),
        ("{{}}", "template.syntax"),
        ("{{result.a | upper}}", "template.syntax"),
        ("{{result.a + 1}}", "template.syntax"),
        ("{{result['a']}}", "template.syntax"),
        ("{{__import__('os')}}", "template.syntax"),
        ("{{result.a.f.*}}", "template.syntax"),
        ("{{result.a.*.*}}", "template.syntax"),
        ("{{result.*}}", "template.syntax"),
        ("{{env.*}}", "template.syntax"),
        ("{{memory.k.*}}", "template.syntax"),
        ("{{memory}}", "template.syntax"),
        ("{{memory.a b}}", "template.syntax"),
        ("{{result..a}}", "template.syntax"),
        ("{{result}}", "template.syntax"),
        ("{{results.a}}", "template.syntax"),
        ("{{node.name}}", "template.syntax"),
        ("{{node.id.x}}", "template.syntax"),
        ("{{env.IML_A.b}}", "template.syntax"),
        ("{{env.PATH}}", "template.env"),
        ("{{result.a}} and {{", "template.syntax"),
    ],
)
def test_what_is_no_template_is_a_flaw(text, code):
    _, flaws = scan({"p": ["ok", text]})
    assert [(flaw.code, flaw.pointer) for flaw in flaws] == [(code, "/p/1")]


def test_a_template_in_a_key_is_a_flaw():
    _, flaws = scan({"{{node.id}}": 1})
    assert [(flaw.code, flaw.pointer) for flaw in flaws] == [("template.syntax", "/{{node.id}}")]


def test_closing_braces_alone_are_text():
    assert scan('{"a":{"b":1}}') == ([], [])
    assert not has_templates({"a": ['{"a":{"b":1}}', 5, None]})
    assert has_templates({"a": [{"b": "x{{node.id}}"}]})


def test_only_a_lone_template_is_one():
    assert is_template("{{ node.id }}")
    assert not is_template("{{node.id}} ")
    assert not is_template("{{node.id}}{{node.id}}")


RESULTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text("a{}é", max_size=6),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("ab", max_size=2), v, max_size=3),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(RESULTS)
def test_a_lone_template_gives_the_result_untouched(result):
    assert render("{{result.a}}", Scope({"a": result}, {}, "n")) is result


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=10), st.text(st.sampled_from("{}.renvodi IML_"), max_size=20))
def test_what_is_put_in_is_never_looked_at_again(before, inserted):
    text = before.replace("{", "(") + "{{result.a}}|"
    scope = Scope({"a": inserted}, {"IML_": "wrong"}, "wrong")
    assert render(text, scope) == before.replace("{", "(") + inserted + "|"
