"""os_exec: commands that run wild, and that whatever they start ends with them."""

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imlmesh_drivers.os_exec import driver, guarded, guardian
from imlmesh_drivers.os_exec.guarded import Bounds
from imlmesh_protocol.limits import ARGUMENT_BYTES, COMMAND_NICE, KILL_GRACE_MS
from shell import Shell
from waiting import ended, eventually

#: leaves its session and its parent, as daemons do, ignores SIGTERM, and says who it is
DAEMON = """
import os, signal, sys, time
if os.fork():
    os.wait()
    sys.stdout.flush()
else:
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open("daemon", "w") as file:
        print(os.getpid(), file=file)
    for descriptor in range(3):
        os.close(descriptor)
    time.sleep(600)
while not (os.path.exists("daemon") and open("daemon").read()):
    pass
"""


def number_in(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(path.read_text())
    return 0


def commands_left() -> list[str]:
    """The command lines of all that we started, but for guardians and their zygote.

    An empty one is of a process that has given back its memory: a guardian about to be reaped.
    """
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in guardian.below(os.getpid())]
    return [line for line in lines if line and "guardian.main" not in line]


def having(variable: str) -> list[str]:
    """All processes of this machine that have a variable, wherever they have gone."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{variable}\0".encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


async def test_a_daemon_ends_with_its_command(shell: Shell) -> None:
    result = await shell("python", "-c", DAEMON)
    assert result["success"]
    assert ended(number_in(shell.files / "daemon"))


async def test_a_daemon_ends_with_a_cancelled_command(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the command itself follows SIGTERM; nobody waits for those who do not
    monkeypatch.setattr(guarded, "KILL_GRACE_MS", 600_000)
    running = asyncio.create_task(shell("python", "-c", DAEMON + "time.sleep(600)"))
    await eventually(lambda: number_in(shell.files / "daemon") > 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended(number_in(shell.files / "daemon"))


async def test_one_that_is_cancelled_while_it_starts_is_gone(shell: Shell) -> None:
    """At every step of the way, as far as turns of the loop can tell them apart."""
    await shell("sh", "-c", "exit 0")
    for turns in range(12):
        running = asyncio.create_task(shell("sh", "-c", "sleep 600"))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert commands_left() == [], turns


async def test_one_that_ignores_the_signal_is_killed_after_the_grace(shell: Shell) -> None:
    script = "trap '' TERM; echo $$ > pid; while :; do sleep 1; done"
    began = time.monotonic()
    assert await shell.refusal("sh", "-c", script, timeout=1) == "driver.timeout"
    assert ended(number_in(shell.files / "pid"))
    assert KILL_GRACE_MS / 1_000 <= time.monotonic() - began - 1 < KILL_GRACE_MS / 1_000 + 3


async def test_one_that_follows_the_signal_may_tidy_up(shell: Shell) -> None:
    script = "trap 'echo tidy > tidied; exit 0' TERM; while :; do sleep 0.1; done"
    assert await shell.refusal("sh", "-c", script, timeout=1) == "driver.timeout"
    assert (shell.files / "tidied").read_text() == "tidy\n"


#: doubles ten times, and not without end: if it were let go, the other tests should survive it;
#: in sessions that no group reaches
FAST = """
import os, time
for _ in range(10):
    if not os.fork():
        os.setsid()
time.sleep(600)
"""
BOMBS = {
    "many": "i=0; while [ $i -lt 700 ]; do sleep 600 & i=$((i+1)); done; wait",
    "doubling": "stop() { sleep 600; }\n"
    "bomb() { [ $1 = 0 ] && stop; bomb $(($1-1)) & bomb $(($1-1)) & wait; }\nbomb 9",
    "each in a session of its own": "i=0; while [ $i -lt 700 ]; do "
    "setsid sleep 600 & i=$((i+1)); done; wait",
    "faster than a look": f"exec {sys.executable} -S -c '{FAST}'",
}


@pytest.mark.parametrize("bomb", list(BOMBS))
async def test_a_fork_bomb_is_ended(shell: Shell, bomb: str) -> None:
    mark = secrets.token_hex(8)
    asked = {"timeout": 60, "env": {"IML_BOMB": mark}}
    assert await shell.refusal("sh", "-c", BOMBS[bomb], **asked) == "driver.failed"
    assert commands_left() == []
    assert having(f"IML_BOMB={mark}") == []


@pytest.mark.parametrize(
    ("argv", "blamed"),
    [
        (["sh", "-c", BOMBS["many"]], ("driver.failed", "command")),
        (["sh", "-c", "yes"], ("driver.failed", "command")),
        (["sh", "-c", "trap '' TERM; sleep 600"], ("driver.timeout", "timeout")),
        (["gone"], ("driver.not_found", "command")),
        (["folder"], ("driver.denied", "command")),
    ],
)
async def test_whatever_goes_wrong_is_blamed_on_a_param(
    shell: Shell, argv: list[str], blamed: tuple[str, str]
) -> None:
    shell.allow("folder", "/")
    limit_s = 1 if blamed[1] == "timeout" else 60
    assert await shell.blame("run_command", command=argv, timeout=limit_s) == blamed


async def test_an_application_that_cannot_be_run_is_blamed(shell: Shell) -> None:
    for name, code in (("gone", "driver.not_found"), ("folder", "driver.denied")):
        shell.allow("folder", "/")
        assert await shell.blame("open_application", application=name) == (code, "application")


async def test_memory_is_bounded_for_each_and_for_all(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "COMMAND", Bounds(20, 200 * 1024 * 1024))
    alone = await shell("python", "-c", "bytearray(300 << 20)")
    assert "MemoryError" in alone["stderr"]
    assert not alone["success"]
    together = (
        "import os, time\n"
        "for _ in range(4):\n"
        "    if not os.fork():\n"
        "        held = bytearray(os.urandom(1)) * (80 << 20)\n"
        "        time.sleep(600)\n"
        "time.sleep(600)\n"
    )
    assert await shell.refusal("python", "-c", together, timeout=60) == "driver.failed"
    assert commands_left() == []


#: fills memory that is shared and, in five processes, looks at all of it
SHARING = """
import mmap, os, time
size = int(os.environ["IML_MIB"]) << 20
shared = mmap.mmap(-1, size)
for place in range(0, size, 4096):
    shared[place] = 1
for _ in range(4):
    if not os.fork():
        for place in range(0, size, 4096):
            shared[place]
        break
time.sleep(float(os.environ["IML_S"]))
"""


async def test_memory_that_is_shared_counts_once(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "COMMAND", Bounds(20, 200 * 1024 * 1024))
    large = {"IML_MIB": "300", "IML_S": "600"}
    assert await shell.refusal("python", "-c", SHARING, env=large, timeout=60) == "driver.failed"
    assert commands_left() == []
    # long enough for a look at all five
    small = {"IML_MIB": "100", "IML_S": "2"}
    assert (await shell("python", "-c", SHARING, env=small, timeout=60))["success"]


async def test_a_rule_may_bound_its_program_by_itself(shell: Shell) -> None:
    shell.allow("small", "/bin/sh", processes=3, memory_mb=64)
    script = "sleep 600 & sleep 600 & sleep 600 & wait"
    assert await shell.refusal("small", "-c", script) == "driver.failed"
    assert (await shell("small", "-c", "ulimit -d"))["stdout"] == f"{64 * 1024}\n"
    opened = await shell.act("open_application", application="small", arguments=["-c", script])
    await eventually(lambda: ended(opened["pid"]))


async def test_a_command_has_its_streams_and_nothing_else(shell: Shell) -> None:
    program = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:4])"
    # the last is the folder that is being listed
    assert (await shell("python", "-c", program))["stdout"] == "[0, 1, 2, 3]\n"
    program = (
        "import os, resource\n"
        "print(os.nice(0), resource.getrlimit(resource.RLIMIT_CORE), os.getsid(0) == os.getpid())\n"
    )
    said = (await shell("python", "-c", program))["stdout"].split(" ", 1)
    assert int(said[0]) == min(os.nice(0) + COMMAND_NICE, 19)
    assert said[1] == "(0, 0) True\n"


async def test_signals_have_their_usual_meaning(shell: Shell) -> None:
    result = await shell("sh", "-c", "yes | head -n 1; kill -INT $$; sleep 600", timeout=10)
    assert (result["stdout"], result["return_code"]) == ("y\n", -signal.SIGINT)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


AGENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
from shell import Shell
async def main():
    shell = Shell(Path(sys.argv[2]))
    if sys.argv[3] == "application":
        opened = await shell.act("open_application", application="sleep", arguments=["600"])
        Path(sys.argv[2], "daemon").write_text(str(opened["pid"]))
    print("running", flush=True)
    await shell("python", "-c", sys.argv[4])
asyncio.run(main())
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs a command with a daemon."""
    script = DAEMON + "time.sleep(600)"
    command = [sys.executable, "-c", AGENT, str(Path(__file__).parent), str(tmp_path), "", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


async def test_commands_end_with_a_killed_agent(
    agent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    await eventually(lambda: number_in(tmp_path / "daemon") > 0)
    daemon = number_in(tmp_path / "daemon")
    assert not ended(daemon)
    agent.send_signal(signal.SIGKILL)
    await eventually(lambda: ended(daemon))
    assert ended(daemon)


async def test_a_killed_guardian_is_an_error_and_costs_the_command(shell: Shell) -> None:
    script = f"import os\nprint(os.getpid(), file=open('pid', 'w'))\n{DAEMON}time.sleep(600)"
    running = asyncio.create_task(shell("python", "-c", script))
    await eventually(lambda: number_in(shell.files / "daemon") > 0)
    pid, daemon = number_in(shell.files / "pid"), number_in(shell.files / "daemon")
    os.kill(parent_of(pid), signal.SIGKILL)
    with pytest.raises(RuntimeError) as caught:
        await running
    assert getattr(caught.value, "code", None) == "driver.crashed"
    await eventually(lambda: ended(pid) and ended(daemon))
    assert (await shell("sh", "-c", "exit 0"))["success"]


async def test_another_zygote_takes_over_from_one_that_was_killed(shell: Shell) -> None:
    first = await shell("sh", "-c", "echo $PPID")
    zygotes = [pid for pid in guardian.below(os.getpid()) if parent_of(pid) == os.getpid()]
    for pid in zygotes:
        os.kill(pid, signal.SIGKILL)
    await eventually(lambda: all(ended(pid) for pid in zygotes))
    assert zygotes
    assert (await shell("sh", "-c", "echo $PPID"))["stdout"] != first["stdout"]


async def test_commands_run_side_by_side(shell: Shell) -> None:
    script = "echo > begun$1; while [ ! -e begun0 -o ! -e begun7 ]; do sleep 0.05; done; echo $1"
    words = ("sh", "-c", script, "sh")
    # each ends only when the first and the last of them run
    every = await asyncio.gather(*(shell(*words, str(n)) for n in range(8)))
    assert [result["stdout"] for result in every] == [f"{n}\n" for n in range(8)]


ODD_ARGUMENTS = {
    "NUL": (["a\0b"], "driver.params"),
    "200 kB": (["x" * 200_000], "driver.params"),
    "one too many": (["x" * (ARGUMENT_BYTES + 1)], "driver.params"),
    "a flag": (["-e"], "policy.command"),
    "a long flag": (["--help"], "policy.command"),
    "a flag behind words": (["word", "-rf"], "policy.command"),
    "not the whole": (["-n\n"], "policy.command"),
}


@pytest.mark.parametrize("name", list(ODD_ARGUMENTS))
async def test_odd_arguments_are_refused(shell: Shell, name: str) -> None:
    arguments, code = ODD_ARGUMENTS[name]
    asked = await shell.blame("run_command", command=["words", *arguments])
    assert asked == (code, "command")
    asked = await shell.blame("open_application", application="words", arguments=arguments)
    assert asked[0] == code


async def test_what_is_allowed_arrives_as_it_was(shell: Shell) -> None:
    assert (await shell("words", "-n", "a-word"))["stdout"] == "a-word"
    assert (await shell("words", "-"))["stdout"] == "-\n"
    large = "x" * ARGUMENT_BYTES
    assert (await shell("python", "-c", "import sys; print(len(sys.argv[1]))", large))[
        "stdout"
    ] == (f"{ARGUMENT_BYTES}\n")


async def test_odd_variables_and_programs_are_refused(shell: Shell) -> None:
    for env in ({"": "x"}, {"IML_A=B": "x"}, {"IML_\0": "x"}, {"IML_A": "a\0b"}):
        assert await shell.refusal("sh", "-c", "exit 0", env=env) == "driver.params", env
    too_long = {"IML_A": "x" * (ARGUMENT_BYTES + 1)}
    assert await shell.refusal("sh", "-c", "exit 0", env=too_long) == "driver.params"
    tool = shell.files / "tool"
    tool.write_text("no program")
    shell.allow("tool", str(tool))
    assert await shell.refusal("tool") == "driver.denied"
    tool.chmod(0o755)
    assert await shell.refusal("tool") == "driver.failed"


@pytest.mark.alone
async def test_a_guardian_s_own_look_costs_little(shell: Shell) -> None:
    """A command of a second takes its guardian less than a tenth of that."""
    result = await shell("sh", "-c", "sleep 1; cat /proc/$PPID/stat")
    ticks = result["stdout"].rpartition(")")[2].split()[11:13]
    assert sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") < 0.1
