"""os_exec with real programs: output, limits, environment, and that nothing is left behind."""

import asyncio
from pathlib import Path

import pytest

from imlmesh_drivers.call import Call
from imlmesh_drivers.invoke import perform_now
from imlmesh_protocol.limits import LOG_LINES_PER_ACTION, OUTPUT_BYTES
from shell import Shell
from waiting import ended, eventually


async def test_output_is_kept_and_streamed(shell: Shell) -> None:
    result = await shell("sh", "-c", "echo one; echo two >&2; printf three")
    assert result == {
        "command": ["/bin/sh", "-c", "echo one; echo two >&2; printf three"],
        "return_code": 0,
        "stdout": "one\nthree",
        "stderr": "two\n",
        "success": True,
    }
    assert sorted(shell.lines) == [("one", "stdout"), ("three", "stdout"), ("two", "stderr")]


async def test_another_return_code_is_a_result(shell: Shell) -> None:
    result = await shell("sh", "-c", "exit 3")
    assert (result["return_code"], result["success"]) == (3, False)


async def test_no_shell_reads_the_arguments(shell: Shell) -> None:
    program = "import sys; print(sys.argv[1:])"
    result = await shell("python", "-c", program, "$HOME; echo x", "*")
    assert result["stdout"] == "['$HOME; echo x', '*']\n"


async def test_only_the_policy_s_programs_run(shell: Shell) -> None:
    assert await shell.refusal("/bin/cat", "/etc/passwd") == "policy.command"
    assert await shell.refusal() == "policy.command"
    assert await shell.refusal("gone") == "driver.not_found"


async def test_the_environment_starts_from_zero(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    program = "import os, json; print(sorted(os.environ))"
    result = await shell("python", "-c", program, env={"IML_RUN": "r-1", "TZ": "CET"})
    assert result["stdout"].strip() == "['HOME', 'IML_RUN', 'LANG', 'PATH', 'TZ']"
    assert await shell.refusal("sh", env={"LD_PRELOAD": "x.so"}) == "policy.env"


async def test_stdin_is_closed_or_given(shell: Shell) -> None:
    program = "import sys; print(len(sys.stdin.read()))"
    assert (await shell("python", "-c", program))["stdout"] == "0\n"
    given = await shell("python", "-c", program, stdin="x" * 150_000)
    assert given["stdout"] == "150000\n"
    assert (await shell("sh", "-c", "exit 0", stdin="x" * 150_000))["success"]


async def test_the_working_directory_stays_beneath_the_roots(shell: Shell) -> None:
    (shell.files / "sub").mkdir()
    (shell.files / "out").symlink_to("/")
    here = await shell("sh", "-c", "pwd -P", working_directory="sub")
    assert here["stdout"] == f"{(shell.files / 'sub').resolve()}\n"
    assert (await shell("sh", "-c", "pwd -P"))["stdout"] == f"{shell.files.resolve()}\n"
    for path in ("..", "/", "out"):
        assert await shell.refusal("sh", working_directory=path) == "policy.path"


async def test_capture_false_streams_only(shell: Shell) -> None:
    result = await shell("sh", "-c", "echo one", capture_output=False)
    assert result["stdout"] == ""
    assert shell.lines == [("one", "stdout")]


async def test_much_output_is_bounded(shell: Shell) -> None:
    program = "import sys; sys.stdout.write(('x' * 99 + '\\n') * 100_000)"
    result = await shell("python", "-c", program)
    assert len(result["stdout"]) == OUTPUT_BYTES
    assert result["truncated"]
    assert result["success"]
    assert len(shell.lines) == LOG_LINES_PER_ACTION + 1


async def test_bytes_that_are_no_text_stay_bounded(shell: Shell) -> None:
    program = "import sys; sys.stdout.buffer.write(b'\\xff' * 100_000)"
    result = await shell("python", "-c", program)
    assert len(result["stdout"].encode()) <= OUTPUT_BYTES


async def test_output_without_end_is_killed(shell: Shell) -> None:
    assert await shell.refusal(
        "sh", "-c", "while :; do echo yyyyyyyyyyyyyyyyyyyyy; done | cat"
    ) in {
        "driver.failed",
    }


async def test_a_timeout_ends_grandchildren_that_ignore_it(shell: Shell) -> None:
    script = "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > inner; sleep 60' & wait; sleep 60"
    assert await shell.refusal("sh", "-c", script, timeout=1) == "driver.timeout"
    inner = int((shell.files / "inner").read_text())
    await eventually(lambda: ended(inner))


async def test_cancelling_ends_the_group(shell: Shell) -> None:
    running = asyncio.create_task(shell("sh", "-c", "sleep 60 & echo $! > inner; wait"))
    inner = shell.files / "inner"
    await eventually(lambda: inner.exists() and inner.read_text() != "")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: ended(int(inner.read_text())))


async def test_what_a_command_leaves_behind_is_ended(shell: Shell) -> None:
    result = await asyncio.wait_for(shell("sh", "-c", "sleep 60 & echo $!"), 5)
    left_behind = int(result["stdout"])
    await eventually(lambda: ended(left_behind))
    assert ended(left_behind)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_descriptor_is_left_open(shell: Shell) -> None:
    await shell("sh", "-c", "exit 0")
    before = descriptors()
    for _ in range(5):
        await shell("sh", "-c", "exit 0", stdin="x", working_directory=".")
        await shell.refusal("gone")
    await eventually(lambda: descriptors() <= before)
    assert descriptors() <= before


def test_system_information(shell: Shell) -> None:
    everything = perform_now(shell.driver, "get_system_info", {}, Call("d"))
    assert set(everything) == {"cpu", "memory", "disk", "network", "os"}
    assert everything["os"]["system"] == "Linux"
    assert everything["memory"]["total_bytes"] > 0
    one = perform_now(shell.driver, "get_system_info", {"include": ["cpu"]}, Call("d"))
    assert list(one) == ["cpu"]
