"""`plan check --repair` and `plan fmt`: what is printed where, files, exit codes."""

import io
import json
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from imlmesh import Plan, render
from imlmesh.main import run

Run = Callable[..., "Done"]
WELL = """\
{
  "protocol_version": "2.0",
  "plan_id": "look",
  "description": "Look at a file",
  "actions": [
    {
      "id": "a",
      "module": "filesystem",
      "action": "read_file",
      "params": {
        "path": "a.txt"
      }
    }
  ]
}
"""
ANSWER = """\
Here is the plan:
```json
{'protocol_version': '2.0', 'plan_id': 'look', 'description': 'Look at a file',
 "actions": [ // one
  {"id": "a", "module": "filesystem", "action": "read_file", "params": {"path": "a.txt"},},
 ]}
```
"""
TIDY = """\
# my plan
protocol_version: "2.0"
plan_id: look
description: Look at a file
actions:
  - id: a
    module: filesystem
    action: read_file  # it only reads
    params: {path: a.txt}
"""
UNTIDY = """\
# my plan
plan_id: look
protocol_version: '2.0'
description: Look at a file
actions:
- action: read_file # it only reads
  id: a
  module: filesystem
  params:
    path: a.txt
"""


@dataclass(frozen=True, slots=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def imlmesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def started(*arguments: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        render.console.cache_clear()
        code = run(["plan", *arguments])
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return started


def test_an_answer_is_repaired_shown_and_written(imlmesh: Run, tmp_path: Path) -> None:
    (tmp_path / "answer.txt").write_text(ANSWER)
    done = imlmesh("check", "answer.txt", "--repair", "--out", "look.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("✔ look   1 action · 1 wave · digest ")
    assert '  1:1  removed what stands before the plan: "Here is the plan:' in done.stderr
    assert '  4:15  removed the comment "// one"' in done.stderr
    assert "1 more of the kind quotes" in done.stderr
    assert "wrote look.json" in done.stderr
    assert Plan.load(tmp_path / "look.json") == Plan.from_json(WELL)
    again = imlmesh("check", "look.json", "--repair")
    assert "nothing to repair" in again.stderr
    assert (tmp_path / "answer.txt").read_text() == ANSWER


def test_a_file_is_written_over_with_force_alone(imlmesh: Run, tmp_path: Path) -> None:
    (tmp_path / "answer.txt").write_text(ANSWER)
    (tmp_path / "look.json").write_text("mine")
    done = imlmesh("check", "answer.txt", "--repair", "--out", "look.json")
    assert done.returncode == 3
    assert "look.json exists already" in done.stderr
    assert "--force" in done.stderr
    assert (tmp_path / "look.json").read_text() == "mine"
    forced = imlmesh("check", "answer.txt", "--repair", "--out", "look.json", "--force")
    assert forced.returncode == 0
    assert Plan.load(tmp_path / "look.json") == Plan.from_json(WELL)


def test_from_stdin_to_stdout(imlmesh: Run) -> None:
    done = imlmesh("check", "-", "--repair", "--out", "-", stdin=ANSWER)
    assert done.returncode == 0
    assert Plan.from_json(done.stdout) == Plan.from_json(WELL)
    assert "repaired " in done.stderr


def test_what_cannot_be_read_is_not_called_whole(imlmesh: Run) -> None:
    done = imlmesh("check", "-", "--repair", stdin=ANSWER.replace("'look'", "maybe"))
    assert done.returncode == 3
    assert "this cannot be repaired" in done.stderr
    assert "nothing to repair" not in done.stderr


def test_what_cannot_be_repaired_is_asked_of_its_author(imlmesh: Run) -> None:
    wrong = ANSWER.replace('"read_file"', '"read_fil"').replace("True", "true")
    done = imlmesh("check", "-", "--repair", stdin=wrong)
    assert done.returncode == 3
    assert "error[action.unknown]" in done.stderr
    assert done.stdout.startswith("This plan (IML v2) cannot be used as it is.")
    assert '"read_fil"; did you mean "read_file"?' in done.stdout
    assert "   rule: the actions of filesystem are: " in done.stdout
    aside = imlmesh("check", "-", "--repair", "--out", "-", stdin=wrong)
    assert json.loads(aside.stdout)["plan_id"] == "look"
    assert "cannot be used as it is" in aside.stderr
    unreadable = imlmesh(
        "check", "-", "--repair", "--out", "-", stdin=ANSWER.replace("},}", "},,}")
    )
    assert (unreadable.returncode, unreadable.stdout) == (3, "")
    assert "error[plan.syntax]" in unreadable.stderr
    assert "rule: JSON (RFC 8259)" in unreadable.stderr


def test_a_cut_plan_warns_and_does_not_pass(imlmesh: Run, tmp_path: Path) -> None:
    cut = ANSWER[: ANSWER.index('"a.txt"') + 3]
    done = imlmesh("check", "-", "--repair", "--out", "look.json", stdin=cut)
    assert done.returncode == 3
    assert (
        'warning[plan.truncated]: the text ends in the middle of action "a", in its' in done.stderr
    )
    assert "It is cut off: " in done.stdout
    params = json.loads((tmp_path / "look.json").read_text())["actions"][0]["params"]
    assert params == {"path": "a."}


def test_the_record_holds_everything(imlmesh: Run) -> None:
    found = json.loads(imlmesh("check", "-", "--repair", "-o", "json", stdin=ANSWER).stdout)
    assert found["schema"] == "imlmesh.check/1"
    assert (found["plan_id"], found["errors"], found["warnings"]) == ("look", [], [])
    assert found["correction"] is None
    kinds = {one["kind"] for one in found["repairs"]}
    assert kinds == {"text_before", "text_after", "quotes", "comment", "trailing_comma"}
    refused = imlmesh("check", "-", "--repair", "-o", "json", stdin="never a plan")
    found = json.loads(refused.stdout)
    assert refused.returncode == 3
    assert [error["code"] for error in found["errors"]] == ["plan.no_plan"]
    assert found["correction"].startswith("This plan (IML v2)")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "-", "--out", "x"),
        ("check", "-", "--force"),
        ("check", "-", "--repair", "--mesh"),
        ("check", "-", "--repair", "--out", "-", "-o", "json"),
        ("fmt", "-", "--write"),
        ("fmt", "-", "--write", "--check"),
        ("fmt", "-", "--to", "xml"),
    ],
)
def test_wrong_use_is_refused(imlmesh: Run, arguments: tuple[str, ...]) -> None:
    done = imlmesh(*arguments, stdin=WELL)
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert done.stdout == ""


def test_fmt_prints_what_it_would_write(imlmesh: Run, tmp_path: Path) -> None:
    path = tmp_path / "look.iml.yaml"
    path.write_text(UNTIDY)
    assert imlmesh("fmt", "look.iml.yaml").stdout == TIDY
    checked = imlmesh("fmt", "look.iml.yaml", "--check")
    assert (checked.returncode, checked.stdout) == (1, "")
    assert "look.iml.yaml is not tidy:  imlmesh plan fmt look.iml.yaml --write" in checked.stderr
    assert path.read_text() == UNTIDY
    path.chmod(0o640)
    assert "wrote look.iml.yaml" in imlmesh("fmt", "look.iml.yaml", "--write").stderr
    assert path.read_text() == TIDY
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(one.name for one in tmp_path.glob("*look*")) == ["look.iml.yaml"]
    assert imlmesh("fmt", "look.iml.yaml", "--check").returncode == 0
    assert "is tidy" in imlmesh("fmt", "look.iml.yaml", "--write").stderr


def test_fmt_goes_from_form_to_form(imlmesh: Run, tmp_path: Path) -> None:
    (tmp_path / "look.iml.yaml").write_text(TIDY)
    made = imlmesh("fmt", "look.iml.yaml", "--to", "json")
    assert made.stdout == WELL
    assert "2 comments left out: JSON has none" in made.stderr
    assert Plan.from_yaml(imlmesh("fmt", "-", "--to", "yaml", stdin=WELL).stdout) == Plan.load(
        tmp_path / "look.iml.yaml"
    )
    refused = imlmesh("fmt", "look.iml.yaml", "--to", "json", "--write")
    assert refused.returncode == 2
    assert (tmp_path / "look.iml.yaml").read_text() == TIDY
    found = json.loads(imlmesh("fmt", "look.iml.yaml", "--to", "json", "-o", "json").stdout)
    assert (found["format"], found["comments_lost"], found["text"]) == ("json", 2, WELL)


@pytest.mark.parametrize(
    ("text", "code"),
    [("a: [", "plan.syntax"), ("- a\n", "plan.field"), ("a: 1\na: 2\n", "plan.duplicate_key")],
)
def test_fmt_refuses_what_is_no_plan(imlmesh: Run, text: str, code: str) -> None:
    done = imlmesh("fmt", "-", stdin=text)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"error[{code}]" in done.stderr


def test_a_plan_comes_from_stdin(imlmesh: Run) -> None:
    assert imlmesh("check", "-", stdin=TIDY).returncode == 0
    broken = imlmesh("check", "-", stdin=TIDY.replace("read_file", "read_fil"))
    assert broken.returncode == 3
    assert "  --> <plan>:8:13" in broken.stderr
