"""SIGHUP to a process of ours: something is read anew, unless its terminal is gone, which ends it."""

import os
import pty
import signal
import sys
from pathlib import Path

from waiting import ended, eventually

#: says in a file what SIGHUP did, and ends when it was asked to
PROGRAM = """
import asyncio, sys
from imlmesh_runtime.process import asked_to_end, on_hangup

async def main():
    asked = asked_to_end()
    on_hangup(lambda: print("again", flush=True), asked)
    print("ready", flush=True)
    await asked.wait()
    print("asked", flush=True)

sys.stdout = open(sys.argv[1], "a")
asyncio.run(main())
"""


def begin(said: Path, before: str = "") -> tuple[int, int]:
    """(its number, our end of its terminal)"""
    said.touch()
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", before + PROGRAM, str(said)])  # noqa: S606 - a program of ours
    return pid, terminal


def exit_code(pid: int) -> int:
    """Of one that has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def test_a_signal_reads_anew_and_the_end_of_the_terminal_ends(tmp_path: Path) -> None:
    said = tmp_path / "said"
    pid, terminal = begin(said)
    await eventually(lambda: "ready" in said.read_text())
    os.kill(pid, signal.SIGHUP)
    await eventually(lambda: said.read_text() == "ready\nagain\n")
    os.close(terminal)
    await eventually(lambda: ended(pid))
    assert said.read_text() == "ready\nagain\nasked\n"
    assert exit_code(pid) == 0


async def test_what_nohup_started_survives_its_terminal(tmp_path: Path) -> None:
    said = tmp_path / "said"
    pid, terminal = begin(said, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    await eventually(lambda: "ready" in said.read_text())
    os.close(terminal)
    await eventually(lambda: said.read_text() == "ready\nagain\n")
    assert not ended(pid)
    os.kill(pid, signal.SIGTERM)
    await eventually(lambda: ended(pid))
    assert said.read_text().endswith("asked\n")
    assert exit_code(pid) == 0
