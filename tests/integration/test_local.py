"""A mesh inside one process: the same plans, results and exit codes, with neither broker nor port."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from forked import Forked, Start, typed
from imlmesh import LocalClient, Plan, main, render
from imlmesh_protocol.errors import InputError, MeshError, StoreError
from page_blocks import blocks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reach.md"
POLICY = """\
profile = "local_worker"
[roots]
write = ["files"]
[modules]
allow = ["fake", "filesystem", "os_exec"]
"""
WITHIN_S = 60
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def plan(*actions: dict[str, Any], **more: Any) -> Plan:
    made = Plan("local", description="A test", execution_mode="parallel", **more)
    for action in actions:
        made.action(**action)
    return made


def act(id: str = "a", **params: Any) -> dict[str, Any]:
    return {"id": id, "call": "fake.act", "params": params}


class Shell:
    """Types into a shell of a machine without brokers, where temporary files go to a known place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: what a command that was started says, errors too
        self.said = folder / "said.txt"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        (folder / "policy.toml").write_text(POLICY)
        unwanted = {
            "IMLMESH_BROKER": "mosquitto",
            "PATH": "/nowhere",
            "TMPDIR": str(self.temporary),
        }
        # A mesh of the user's own is no concern of a local run.
        self.env = {**os.environ, **unwanted, "IMLMESH_HOME": "/proc/none"}

    def command(self, made: Plan | str, *flags: str) -> list[str]:
        file = self.folder / "plan.json"
        file.write_text(made if isinstance(made, str) else made.to_json())
        policy = ("--local", "--policy", "policy.toml")
        return ["plan", "run", "plan.json", *policy, *flags]

    def start(self, made: Plan | str, *flags: str) -> Forked:
        """It runs, and its action has started."""
        words = self.command(made, *flags)
        running = Forked(Start("imlmesh", words, self.said, None, self.folder, self.env))
        deadline_s = time.monotonic() + WITHIN_S
        while "started: a on" not in self.said.read_text():
            assert running.returncode is None, self.said.read_text()
            assert time.monotonic() < deadline_s, self.said.read_text()
            time.sleep(0.01)
        return running

    def run(self, made: Plan | str, *flags: str) -> tuple[int, str, str]:
        done = typed(self.command(made, *flags), self.folder, self.env)
        return done.returncode, done.stdout, done.stderr

    def run_here(self, patch: pytest.MonkeyPatch, made: Plan | str, *flags: str) -> int:
        """As `run`, in this process, which has imported it all; the exit code."""
        words = self.command(made, *flags)
        for name in ("IMLMESH_BROKER", "PATH", "TMPDIR", "IMLMESH_HOME"):
            patch.setenv(name, self.env[name])
        patch.setattr("tempfile.tempdir", str(self.temporary))
        patch.chdir(self.folder)
        render.console.cache_clear()
        return main.run(words)

    def left(self) -> list[str]:
        return [path.name for path in self.temporary.iterdir()]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_a_plan_runs_without_broker_and_leaves_nothing_behind(shell: Shell) -> None:
    note = {"id": "note", "call": "filesystem.write_file"}
    writes = plan(
        act(value={"x": "4"}),
        note | {"params": {"path": "n", "content": "{{result.a.value.x}}"}, "after": ["a"]},
    )
    code, out, err = shell.run(writes, "-o", "json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["schema"], found["state"]) == ("imlmesh.run/1", "completed")
    assert "1 file that it wrote go" in err
    assert shell.left() == []
    code, out, _ = shell.run(writes, "--home", "kept")
    assert (code, (shell.folder / "kept").is_dir()) == (0, True)
    assert [path.read_text() for path in shell.folder.glob("kept/nodes/*/files/n")] == ["4"]
    assert "✔ r-1-" in out


def test_events_come_as_lines_of_json(shell: Shell) -> None:
    code, out, _ = shell.run(plan(act()), "-o", "jsonl")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    # what becomes of nodes is told beside it, at any time
    assert next(event["kind"] for event in events if event.get("run")) == "run-created"
    assert events[-1]["event"] == "end"


@pytest.mark.parametrize(
    ("made", "flags", "code", "words"),
    [
        (plan(act(fail_times=1)), (), 1, "driver.failed"),
        (plan(act(crash=True)), (), 1, "driver.crashed"),
        (plan(act(delay_ms=60_000)), ("--timeout", "1s"), 8, "longer than --timeout"),
        (plan({"id": "a", "call": "no.such"}), (), 3, "module.unknown"),
        (plan({**act(), "target_node": "pi-1"}), (), 3, "place.unknown_node"),
        ("{", (), 3, "plan."),
        (plan(act()), ("--detach",), 2, "not --local"),
        (plan(act()), ("--node", "Pi!"), 3, "name.invalid"),
        (plan(act()), ("--node", "pi=Garden!"), 3, "name.invalid"),
        (plan(act()), tuple(f"--node=n{i}" for i in range(21)), 2, "at most 20"),
        (plan(act()), ("--policy", "none.toml"), 3, "policy.invalid"),
        (plan(act()), ("--home", "/proc/none"), 3, "config.invalid"),
    ],
)
def test_exit_codes_are_those_of_plan_run(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    made: Plan | str,
    flags: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    found, (out, err) = shell.run_here(monkeypatch, made, *flags), capfd.readouterr()
    assert (found, words in out + err) == (code, True), out + err
    assert shell.left() == []
    # Nobody would answer these any more.
    assert "imlmesh run" not in out


def test_the_nodes_and_groups_of_a_plan_are_played_by_one_process(shell: Shell) -> None:
    everywhere = act(value=1) | {"target_group": "garden", "target_mode": "all"}
    one = {**act("b", value=2), "target_node": "desk", "after": ["a"]}
    nodes = ("--node", "pi-1=garden", "--node", "pi-2=garden,all", "--node", "desk")
    code, out, err = shell.run(plan(everywhere, one), *nodes, "-o", "json")
    assert code == 0, out + err
    first, second = json.loads(out)["actions"]
    assert {member["node"] for member in first["members"]} == {"pi-1", "pi-2"}
    assert second["node"] == "desk"
    assert shell.left() == []


@pytest.mark.parametrize("number", ENDINGS)
def test_whoever_ends_it_cancels_the_run(shell: Shell, number: int) -> None:
    running = shell.start(plan(act(delay_ms=60_000)))
    running.send_signal(number)
    assert running.wait_here(WITHIN_S) == 130, shell.said.read_text()
    assert "cancelled" in shell.said.read_text()
    assert shell.left() == []


def test_a_killed_one_is_taken_up_from_its_home(shell: Shell) -> None:
    running = shell.start(plan(act(delay_ms=60_000)), "--home", "kept")
    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGKILL)
    assert children, "the driver runs in a process of its own"
    assert psutil.wait_procs(children, timeout=WITHIN_S)[1] == []
    with LocalClient(shell.folder / "kept") as client:
        (old,) = client.get("runs")["runs"]
        # It may have happened: a person is asked, and nothing is done twice.
        client.wait(old["run"], timeout_s=0)
        assert old["plan_id"] == "local"
        new = client.run(plan({"id": "b", "call": "fake.noop"}))
        assert (new["state"], new["run"].split("-")[1]) == ("completed", "2")
        found = client.get(f"runs/{old['run']}")
        assert found["state"] not in ("completed", "failed")
        assert found["actions"][0]["attempt"] == 1


def test_a_home_in_use_is_left_alone(shell: Shell) -> None:
    policy = shell.folder / "other.toml"
    policy.write_text(POLICY.replace("local_worker", "power_user"))
    with LocalClient(shell.folder / "kept", policy=shell.folder / "policy.toml") as client:
        code, _, err = shell.run(plan(act()), "--home", "kept", "--policy", str(policy))
        assert (code, "orchestrator.running" in err) == (1, True), err
        with pytest.raises(InputError) as caught:
            LocalClient(shell.folder / "kept")
        assert caught.value.code == "orchestrator.running"
        assert client.run(plan(act()))["state"] == "completed"
    assert [path.read_text() for path in shell.folder.glob("kept/nodes/*/policy.toml")] == [POLICY]


def test_python_has_it_too_and_opens_no_port(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    # A long path would not be one of a socket.
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    threads = set(threading.enumerate())
    # what runs in this process beside it may have some
    before = set(psutil.Process().net_connections("inet"))
    with LocalClient(policy=shell.folder / "policy.toml") as client:
        run = client.run(plan(act(value=7)), timeout_s=WITHIN_S)
        assert (run["state"], run["actions"][0]["result"]["value"]) == ("completed", 7)
        assert set(psutil.Process().net_connections("inet")) <= before
        assert client.home.root.is_dir()
    assert not client.home.root.exists()
    assert set(threading.enumerate()) <= threads
    with pytest.raises(MeshError):
        client.run(plan(act()))


def test_pins_are_safe_without_a_call(shell: Shell) -> None:
    pins = '\n[pins]\nfactory = "mock"\nallow = [17]\nsafe = { 17 = 0 }\n'
    policy = shell.folder / "pins.toml"
    policy.write_text(POLICY.replace('"fake"', '"fake", "iot"') + pins)
    me = psutil.Process()

    def drivers() -> list[str]:
        """Modules whose driver runs in a child of ours."""
        found = []
        for child in me.children():
            with contextlib.suppress(psutil.Error):
                if "imlmesh_drivers.child" in (words := child.cmdline()):
                    found.append(words[-1])
        return found

    with LocalClient(policy=policy):
        deadline_s = time.monotonic() + WITHIN_S
        while "iot" not in drivers():
            assert time.monotonic() < deadline_s, "no driver sets the pins"
            time.sleep(0.05)
    assert drivers() == []


def test_the_page_runs(shell: Shell) -> None:
    (script,) = [block.text for block in blocks(PAGE) if block.language == "python"]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=shell.env,
        cwd=shell.folder,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("completed ")


def test_a_store_that_fails_ends_the_mesh(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalClient(policy=shell.folder / "policy.toml") as client:

        def fail(_self: object, _work: object) -> tuple[None, MeshError]:
            return None, StoreError("store.failed", "the disk is gone")

        monkeypatch.setattr("imlmesh_runtime.sqlite.Database._attempt", fail)
        with pytest.raises(MeshError) as caught:
            client.submit(plan(act()))
        assert caught.value.code == "store.failed"
        with pytest.raises(StoreError):
            client.local_mesh.ended.result(WITHIN_S)  # type: ignore[attr-defined]
