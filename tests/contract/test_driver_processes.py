"""os_exec: processes listed and ended, applications opened and closed, variables set and read."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from imlmesh_drivers.os_exec import applications, driver, processes
from imlmesh_protocol.limits import COMMAND_NICE, KILL_GRACE_MS
from shell import Shell
from waiting import ended, eventually

Stray = Callable[..., int]


@pytest.fixture
def stray() -> Iterator[Stray]:
    """stray(*command): the process id of one that belongs to nobody here, as a service does."""
    started: list[int] = []

    def start(*command: str, account: int | None = None) -> int:
        # its parent has ended when this returns
        script = 'setsid "$@" </dev/null >/dev/null 2>&1 & echo $!'
        told = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *command],
            user=account,
            check=True,
            stdout=subprocess.PIPE,
        )
        started.append(int(told.stdout))
        return started[-1]

    yield start
    for pid in started:
        if not ended(pid):
            os.kill(pid, signal.SIGKILL)


#: names that nothing else on this machine has; the kernel keeps 15 characters of them
SLEEPER, PARENT, DEAF = (f"{name}-{os.getpid()}" for name in ("sleeper", "parent", "deaf"))


@pytest.fixture
def sleeper(tmp_path: Path) -> str:
    name = tmp_path / SLEEPER
    name.symlink_to("/bin/sleep")
    return str(name)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def test_processes_are_listed(shell: Shell, stray: Stray, sleeper: str) -> None:
    pid = stray(sleeper, "600")
    await eventually(lambda: name_of(pid) == SLEEPER)
    found = await shell.act("list_processes")
    assert found["count"] == len(found["processes"])
    assert {os.getpid(), pid} <= {row["pid"] for row in found["processes"]}
    one = await shell.act("list_processes", name_filter=SLEEPER.upper())
    (row,) = one["processes"]
    assert row["pid"] == pid
    assert row["status"] == "sleeping"
    assert row["memory_mb"] > 0
    assert (await shell.act("list_processes", name_filter="no such name")) == {
        "processes": [],
        "count": 0,
    }


async def test_children_come_with_what_was_asked_for(
    shell: Shell, stray: Stray, sleeper: str, tmp_path: Path
) -> None:
    parent = tmp_path / PARENT
    parent.symlink_to("/bin/sh")
    pid = stray(str(parent), "-c", f"{sleeper} 600 & wait")
    await eventually(lambda: len(psutil.Process(pid).children()) == 1)
    alone = await shell.act("list_processes", name_filter=PARENT)
    assert [row["pid"] for row in alone["processes"]] == [pid]
    family = await shell.act("list_processes", name_filter=PARENT, include_children=True)
    assert [row["ppid"] == pid for row in family["processes"]] == [False, True]
    # nothing ends a shell's child but the shell, or we
    os.kill(family["processes"][1]["pid"], signal.SIGKILL)


async def test_a_list_is_bounded(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "PROCESSES_LISTED", 1)
    found = await shell.act("list_processes")
    assert (found["count"], found["truncated"]) == (1, True)


async def test_a_process_is_described(shell: Shell, stray: Stray, sleeper: str) -> None:
    pid = stray(sleeper, "600")
    await eventually(lambda: name_of(pid) == SLEEPER)
    found = await shell.act("get_process_info", pid=pid)
    assert found["cmdline"] == f"{sleeper} 600"
    assert found["created"].endswith("+00:00")
    assert found["cwd"] == str(Path.cwd())
    gone = await asyncio.create_subprocess_exec("/bin/true")
    await gone.wait()
    for pid in (gone.pid, 2**22 + 1, 2**40, 2**70):
        for name in ("get_process_info", "kill_process"):
            assert await shell.blame(name, pid=pid) == ("driver.not_found", "pid")


async def test_a_process_is_ended(shell: Shell, stray: Stray, sleeper: str) -> None:
    pid = stray(sleeper, "600")
    await eventually(lambda: name_of(pid) == SLEEPER)
    killed = await shell.act("kill_process", pid=pid)
    assert killed == {"pid": pid, "signal": "SIGTERM", "success": True}
    assert ended(pid)


async def test_one_that_ignores_the_signal_is_told_of(
    shell: Shell, stray: Stray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_WAIT_S", 0.2)
    deaf = tmp_path / DEAF
    deaf.symlink_to("/bin/sleep")
    # what a shell ignores, the program in its place ignores too
    pid = stray("/bin/sh", "-c", f"trap '' TERM; exec {deaf} 600")
    await eventually(lambda: name_of(pid) == DEAF)
    assert (await shell.act("kill_process", pid=pid))["success"] is False
    assert not ended(pid)
    assert (await shell.act("kill_process", pid=pid, signal="SIGKILL"))["success"] is True


async def test_the_mesh_the_system_and_other_accounts_are_left_alone(
    shell: Shell, stray: Stray, sleeper: str, tmp_path: Path
) -> None:
    ours = tmp_path / "imlmesh"
    ours.symlink_to("/bin/sleep")
    mesh = stray(str(ours), "600")
    victims = [1, 2, os.getpid(), os.getppid(), mesh]
    if os.getuid() == 0:
        victims.append(stray("/bin/sleep", "600", account=65534))
    child = await asyncio.create_subprocess_exec(sleeper, "600")
    victims.append(child.pid)
    try:
        for pid in filter(psutil.pid_exists, victims):
            for name in ("SIGTERM", "SIGKILL"):
                refusal = await shell.blame("kill_process", pid=pid, signal=name)
                assert refusal == ("policy.process", "pid"), pid
        # a name alone says nothing of whose it is
        for name in (SLEEPER, "sleep", "python", "imlmesh"):
            refusal = await shell.blame("close_application", application_name=name)
            assert refusal == ("driver.not_found", "application_name")
        assert not any(ended(pid) for pid in victims if psutil.pid_exists(pid))
    finally:
        child.kill()
        await child.wait()


async def test_an_application_runs_on_until_it_is_closed(shell: Shell) -> None:
    opened = await shell.act("open_application", application="sleep", arguments=["600"])
    assert opened["application"] == "sleep"
    assert name_of(opened["pid"]) == "sleep"
    second = await shell.act("open_application", application="/bin/sleep", arguments=["600"])
    other = await shell.act("open_application", application="sh", arguments=["-c", "sleep 600; x"])
    closed = await shell.act("close_application", application_name="/bin/sleep")
    assert closed == {
        "application": "/bin/sleep",
        "closed_pids": sorted([opened["pid"], second["pid"]]),
    }
    assert [ended(one["pid"]) for one in (opened, second, other)] == [True, True, False]
    again = await shell.act("open_application", application="sleep", arguments=["600"])
    assert (await shell.act("kill_process", pid=again["pid"], signal="SIGKILL"))["success"]


async def test_an_application_takes_along_what_it_started(shell: Shell) -> None:
    script = "setsid sleep 600 & echo $! > inner; wait"
    opened = await shell.act("open_application", application="sh", arguments=["-c", script])
    inner = shell.files / "inner"
    await eventually(lambda: inner.exists() and inner.read_text() != "")
    assert psutil.Process(opened["pid"]).nice() == min(os.nice(0) + COMMAND_NICE, 19)
    await shell.act("close_application", application_name="sh", force=True)
    assert ended(int(inner.read_text()))


async def test_a_deaf_application_is_killed_after_the_grace(shell: Shell) -> None:
    script = "trap '' TERM; echo x > ready; while :; do sleep 1; done"
    opened = await shell.act("open_application", application="sh", arguments=["-c", script])
    await eventually((shell.files / "ready").exists)
    began = time.monotonic()
    closed = await shell.act("close_application", application_name="sh")
    assert closed["closed_pids"] == [opened["pid"]]
    assert ended(opened["pid"])
    assert time.monotonic() - began >= KILL_GRACE_MS / 1_000


async def test_applications_end_with_the_node(shell: Shell) -> None:
    opened = await shell.act("open_application", application="sleep", arguments=["600"])
    shell.driver.close()
    await eventually(lambda: ended(opened["pid"]))


AGENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from shell import Shell
async def main():
    shell = Shell(Path(sys.argv[2]))
    opened = await shell.act("open_application", application="sleep", arguments=["600"])
    print(opened["pid"], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_applications_end_with_a_killed_node(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AGENT, here, str(tmp_path), stdout=subprocess.PIPE
    )
    assert agent.stdout
    pid = int(await agent.stdout.readline())
    assert not ended(pid)
    agent.kill()
    await agent.wait()
    await eventually(lambda: ended(pid))


async def test_what_cannot_be_opened_is_refused(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks: list[tuple[dict[str, Any], str]] = [
        ({"application": "cat"}, "policy.command"),
        ({"application": "/bin/cat"}, "policy.command"),
        ({"application": "gone"}, "driver.not_found"),
        ({"application": "words", "arguments": ["-rf"]}, "policy.command"),
        ({"application": "words", "arguments": ["a\0b"]}, "driver.params"),
        ({"application": "sleep", "working_directory": "/"}, "policy.path"),
    ]
    for asked, code in asks:
        assert (await shell.blame("open_application", **asked))[0] == code, asked
    monkeypatch.setattr(applications, "APPLICATIONS_OPEN", 1)
    first = await shell.act("open_application", application="sleep", arguments=["600"])
    one_more = await shell.blame("open_application", application="sleep", arguments=["600"])
    assert one_more == ("driver.busy", "application")
    assert not ended(first["pid"])
    nobody = await shell.blame("close_application", application_name="no-such-name")
    assert nobody == ("driver.not_found", "application_name")


async def test_variables_reach_what_plans_start_and_not_the_node(shell: Shell) -> None:
    assert await shell.act("set_env_var", name="IML_GREETING", value="hello") == {
        "name": "IML_GREETING",
        "scope": "process",
    }
    await shell.act("set_env_var", name="TZ", value="CET")
    assert "IML_GREETING" not in os.environ
    said = await shell("sh", "-c", "echo $IML_GREETING $TZ")
    assert said["stdout"] == "hello CET\n"
    once = await shell("sh", "-c", "echo $IML_GREETING", env={"IML_GREETING": "bye"})
    assert once["stdout"] == "bye\n"
    assert await shell.act("get_env_var", name="IML_GREETING") == {
        "name": "IML_GREETING",
        "value": "hello",
        "exists": True,
    }


async def test_the_node_s_own_variables_are_not_read(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert await shell.act("get_env_var", name="SECRET") == {
        "name": "SECRET",
        "value": None,
        "exists": False,
    }
    assert (await shell.act("get_env_var", name="TZ"))["value"] == "UTC"
    assert (await shell.act("get_env_var", name="HOME"))["value"] == str(shell.files)


async def test_odd_variables_are_refused(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in (
        ("LD_PRELOAD", "policy.env"),
        ("PATH", "policy.env"),
        ("", "driver.params"),
        ("IML_A=B", "driver.params"),
        ("IML_\0", "driver.params"),
    ):
        assert await shell.blame("set_env_var", name=name, value="x") == (code, "name")
    assert await shell.blame("get_env_var", name="A=B") == ("driver.params", "name")
    for value in ("a\0b", "x" * 200_000):
        refusal = await shell.blame("set_env_var", name="IML_A", value=value)
        assert refusal[0] == "driver.params"
    monkeypatch.setattr(driver, "ENV_VARIABLES", 1)
    await shell.act("set_env_var", name="IML_A", value="1")
    await shell.act("set_env_var", name="IML_A", value="2")
    assert await shell.blame("set_env_var", name="IML_B", value="x") == ("driver.failed", "name")


def test_our_own_processes_are_known_by_how_they_were_started() -> None:
    for word in ("imlmesh", "/opt/x/bin/imlmesh", "imlmesh_node", "imlmesh_drivers.child"):
        assert processes.OURS.fullmatch(word), word
    for word in ("imlmesh.log", "/var/log/imlmesh/a", "imlmesh-notes", "myimlmesh"):
        assert not processes.OURS.fullmatch(word), word
