"""The script `imlmesh` as a process: start-up cost, streams, colour, offline verbs, exit codes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forked import typed
from imlmesh.main import run
from imlmesh.reference import page

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
BROKEN = """\
protocol_version: "2.0"
plan_id: broken
description: Three mistakes
actions:
  - {id: read, module: filesystem, action: read_fil, params: {path: a}}
  - {id: wait, module: os_exec, action: get_system_info, depends_on: [wait]}
  - {id: tell, module: filesystem, action: write_file, params: {path: b, contents: c}}
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    plain = {n: v for n, v in os.environ.items() if n not in ("NO_COLOR", "FORCE_COLOR")}
    return {**plain, "IMLMESH_HOME": str(folder / "home"), **more}


@pytest.fixture
def imlmesh(tmp_path: Path) -> Run:
    """`imlmesh ARGUMENTS` as a fork, for what does not depend on how it begins."""
    return lambda *arguments, **more: typed(arguments, tmp_path, environment(tmp_path, **more))


@pytest.fixture
def script(tmp_path: Path) -> Run:
    """The same as a shell begins it."""

    def started(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "imlmesh", *arguments],
            cwd=tmp_path,
            env=environment(tmp_path, **more),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return started


def test_help_is_fast_and_begins_with_examples(script: Run) -> None:
    times = []
    for _ in range(5):
        begin_s = time.perf_counter()
        done = script("--help")
        times.append(time.perf_counter() - begin_s)
    assert done.returncode == 0
    assert done.stdout.index("Examples:") < done.stdout.index("Usage:")
    # The bench measures it on a quiet machine (at most 0.3 s); this one may be busy.
    assert min(times) < 0.6


def test_every_page_of_help_loads_little_and_has_examples(imlmesh: Run) -> None:
    code = """\
import sys
from imlmesh.main import NOUNS, build
root = build()
context = root.make_context("imlmesh", ["version"])
for name in NOUNS:
    command = root.get_command(context, name)
    for found in [command, *getattr(command, "commands", {}).values()]:
        assert found.help and found.epilog.startswith("imlmesh "), name
heavy = {"pydantic", "fastapi", "cryptography", "gmqtt", "rich", "httpx2", "asyncio"}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_reference_is_what_the_command_line_says() -> None:
    written = (ROOT / "docs" / "cli.md").read_text()
    assert written.rstrip() == page().rstrip(), "python docs/pages.py --write"


def test_version(script: Run) -> None:
    assert script("version").stdout.startswith("imlmesh 0.")
    assert json.loads(script("version", "--json").stdout)["schema"] == "imlmesh.version/1"


def test_docs_explain_a_code_and_know_the_nearest(imlmesh: Run) -> None:
    shown = imlmesh("docs", "plan.cycle").stdout.splitlines()
    assert shown[0] == "plan.cycle"
    assert "  exit code  3" in shown
    assert "  try        " + 'remove one of the "depends_on"' in shown
    assert "plan.cycle" in imlmesh("docs").stdout
    assert imlmesh("docs", "approval").stdout.count("approval.") >= 4
    assert "--detailed-exitcode" in imlmesh("docs", "exit-codes").stdout
    record = json.loads(imlmesh("docs", "driver.timeout", "--json").stdout)
    assert (record["schema"], record["matches"]) == ("imlmesh.code/1", "TimeoutError")
    wrong = imlmesh("docs", "plan.cycel")
    assert wrong.returncode == 2
    assert "did you mean 'plan.cycle'?" in wrong.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_us(imlmesh: Run, shell: str) -> None:
    done = imlmesh("completion", shell)
    assert done.returncode == 0
    assert "_IMLMESH_COMPLETE" in done.stdout
    assert f"complete_{shell}" in done.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("imlmesh ru", {"run"}),
        ("imlmesh run re", {"retry", "resume"}),
        ("imlmesh plan pre", {"preview"}),
    ],
)
def test_the_shell_is_offered_verbs(imlmesh: Run, words: str, offered: set[str]) -> None:
    count = str(words.count(" "))
    asked = {"_IMLMESH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
    assert set(imlmesh(**asked).stdout.split()) == offered


def test_completion_installs_where_the_shell_looks(imlmesh: Run, tmp_path: Path) -> None:
    done = imlmesh("completion", "install", "fish", HOME=str(tmp_path))
    assert done.returncode == 0
    script = tmp_path / ".config" / "fish" / "completions" / "imlmesh.fish"
    assert done.stdout.strip() == str(script)
    assert "complete --command imlmesh" in script.read_text()
    assert imlmesh("completion", "install", "tcsh", HOME=str(tmp_path)).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nod"], "did you mean 'node'?"),
        (["node", "lst"], "Did you mean 'list'?"),
        (["run", "show"], "Missing argument"),
        (["run", "list", "--limt", "3"], "--limit"),
        (["run", "list", "-o", "xml"], "xml"),
    ],
)
def test_wrong_use_ends_with_2_and_a_command_to_try(
    imlmesh: Run, arguments: list[str], said: str
) -> None:
    done = imlmesh(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error[usage]: ")
    assert said in done.stderr
    assert "try: imlmesh" in done.stderr


def test_an_absent_orchestrator_ends_with_5_and_the_way_to_one(script: Run) -> None:
    done = script("status")
    assert done.returncode == 5
    assert done.stderr.startswith("error[orchestrator.unreachable]: ")
    assert done.stderr.endswith("try: imlmesh up\n")
    twin = json.loads(script("node", "list", "--json").stderr)
    assert (twin["schema"], twin["errors"][0]["hint"]) == ("imlmesh.error/1", "imlmesh up")


def test_a_stale_address_is_an_absent_orchestrator(imlmesh: Run, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "run"
    folder.mkdir(parents=True)
    stale = {"url": "http://127.0.0.1:9", "socket": str(folder / "api.sock"), "token_file": None}
    (folder / "api.json").write_text(json.dumps(stale))
    assert imlmesh("status").returncode == 5


def test_a_forced_broker_that_is_missing_ends_with_5_before_anything_is_made(
    imlmesh: Run, tmp_path: Path
) -> None:
    code = "import imlmesh_broker.mosquitto as m, shutil; m.shutil.which = lambda *a, **k: None\n"
    code += "from imlmesh.main import run; raise SystemExit(run(['up']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "IMLMESH_HOME": str(tmp_path / "home"), "IMLMESH_BROKER": "mosquitto"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 5
    assert "error[broker.missing]" in done.stderr
    assert "apt-get install mosquitto" in done.stderr
    assert not (tmp_path / "home").exists()


def test_an_unknown_broker_ends_with_3_before_anything_is_made(
    imlmesh: Run, tmp_path: Path
) -> None:
    done = imlmesh("up", IMLMESH_BROKER="emqx")
    assert done.returncode == 3
    assert "error[config.invalid]: IMLMESH_BROKER is 'emqx'" in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_policy_with_which_no_node_would_run_is_refused_whole_before_anything_is_made(
    imlmesh: Run, tmp_path: Path
) -> None:
    wrong = 'profile = "readonly"\n[root]\nread = ["files"]\n[commands.x]\nargv0 = "sleep"\n'
    (tmp_path / "own.toml").write_text(wrong)
    done = imlmesh("up", "--policy", "own.toml")
    assert done.returncode == 3
    assert "error[policy.invalid]: root: is not known\n  --> own.toml/root\n" in done.stderr
    assert "error[policy.invalid]: commands.x.argv0: must be" in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_check_knows_how_many_actions_the_mesh_of_the_home_takes(
    imlmesh: Run, tmp_path: Path
) -> None:
    action = '{"id": "a%d", "module": "os_exec", "action": "get_system_info"}'
    actions = ", ".join(action % number for number in range(501))
    plan = f'{{"protocol_version": "2.0", "description": "d", "actions": [{actions}]}}'
    (tmp_path / "many.json").write_text(plan)
    config = tmp_path / "home" / "orchestrator.toml"
    many = imlmesh("plan", "check", "many.json")
    assert many.returncode == 3
    assert "raise max_actions under [plans] in orchestrator.toml" in many.stderr
    config.parent.mkdir()
    config.write_text("[plans]\nmax_actions = 501\n")
    assert imlmesh("plan", "check", "many.json").returncode == 0
    assert imlmesh("plan", "check", "many.json", "--repair").returncode == 0
    config.write_text("[plans]\nmax_actions = 0\n")
    wrong = imlmesh("plan", "check", "many.json")
    assert wrong.returncode == 3
    assert "error[config.invalid]: plans.max_actions" in wrong.stderr


def test_a_token_without_a_mesh_ends_with_5(imlmesh: Run) -> None:
    done = imlmesh("token", "create")
    assert done.returncode == 5
    assert "try: imlmesh up" in done.stderr


def test_a_folder_that_is_no_node_ends_with_3(imlmesh: Run) -> None:
    done = imlmesh("node", "run", "nowhere")
    assert done.returncode == 3
    assert "imlmesh node join" in done.stderr


def test_a_new_plan_is_valid_and_never_overwrites(imlmesh: Run, tmp_path: Path) -> None:
    assert imlmesh("plan", "new", "my first.iml.yaml").returncode == 0
    text = (tmp_path / "my first.iml.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=./iml.schema.json\n")
    assert "plan_id: my-first\n" in text
    assert imlmesh("plan", "check", "my first.iml.yaml").returncode == 0
    assert imlmesh("plan", "new", "my first.iml.yaml").returncode == 3
    assert imlmesh("plan", "new").stdout.startswith("# yaml-language-server")
    nowhere = imlmesh("plan", "schema", "--out", "nowhere/iml.schema.json")
    assert nowhere.returncode == 3
    assert "  --> nowhere/iml.schema.json\n" in nowhere.stderr
    assert imlmesh("plan", "schema", "--out", "iml.schema.json").returncode == 0
    assert "actions" in json.loads((tmp_path / "iml.schema.json").read_text())["properties"]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.iml.*")), ids=lambda p: p.name)
def test_the_examples_are_valid_plans(imlmesh: Run, path: Path) -> None:
    done = imlmesh("plan", "check", str(path), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["errors"], found["warnings"]) == (0, [], [])
    assert path.read_text().startswith("# ")


def test_the_greenhouse_is_as_large_as_it_should_be(imlmesh: Run) -> None:
    done = imlmesh("plan", "check", str(ROOT / "examples" / "greenhouse.iml.yaml"), "--json")
    found = json.loads(done.stdout)
    assert found["actions"] >= 12
    assert len(found["waves"]) >= 4


def test_the_plan_of_the_readme_is_short() -> None:
    assert len((ROOT / "examples" / "hello.iml.yaml").read_text().splitlines()) == 12


def test_all_errors_of_a_plan_are_shown_with_their_places(imlmesh: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(BROKEN)
    done = imlmesh("plan", "check", "broken.yaml")
    assert done.returncode == 3
    assert done.stdout == ""
    for code, place in [
        ("action.unknown", "broken.yaml:5:"),
        ("plan.self_dependency", "broken.yaml:6:"),
        ("action.params", "broken.yaml:7:"),
    ]:
        assert f"error[{code}]" in done.stderr
        assert f"  --> {place}" in done.stderr
    assert "Traceback" not in done.stderr
    twin = imlmesh("plan", "check", "broken.yaml", "--json")
    found = json.loads(twin.stdout)
    assert {error["file"] for error in found["errors"]} == {"broken.yaml"}
    assert twin.returncode == 3


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "plan.not_found"),
        (b"plan_id: \xff", "plan.syntax"),
        (b"#" * 5_000_000, "plan.too_large"),
        (b"a: &a [x]\n" + b"b: [" + b"*a," * 300_000 + b"]", "plan.too_large"),
        (b"[" * 5_000, "plan.too_large"),
    ],
    ids=["missing", "not text", "5 MB", "aliases", "deep"],
)
def test_a_file_that_is_no_plan_ends_with_3(
    tmp_path: Path,
    content: bytes | None,
    code: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "plan.txt"
    if content is not None:
        file.write_bytes(content)
    assert run(["plan", "check", str(file)]) == 3
    assert f"error[{code}]" in capsys.readouterr().err


def test_colour_obeys_the_environment(imlmesh: Run) -> None:
    assert "\x1b" not in imlmesh("status").stderr
    assert "\x1b[1m" in imlmesh("status", FORCE_COLOR="1").stderr
    assert "\x1b" not in imlmesh("status", FORCE_COLOR="1", NO_COLOR="1").stderr
    assert "\x1b" not in imlmesh("status", FORCE_COLOR="1", TERM="dumb").stderr
    assert "\x1b" not in imlmesh("status", "--no-color", FORCE_COLOR="1").stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(  # noqa: S602 - a pipe is what is tested
        f"{sys.executable} -m imlmesh plan schema | head -c 10; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.endswith("0\n")


def test_an_error_of_our_own_leaves_a_report(imlmesh: Run, tmp_path: Path) -> None:
    code = """\
import imlmesh.client
from imlmesh.main import run
def broken(home): raise LookupError("odd")
imlmesh.client.Client.connect = broken
raise SystemExit(run(["status"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 70
    assert "Traceback" not in done.stderr
    report = next(tmp_path.glob("imlmesh-report-*.txt"))
    assert str(report) in done.stderr
    assert "LookupError: odd" in report.read_text()


def test_verbose_shows_the_traceback(imlmesh: Run) -> None:
    assert "Traceback" in imlmesh("status", "-v").stderr
