"""What a driver is given: the site, command rules, and a call's bounded way back."""

import json
import signal
import time

import pytest

from imlmesh_drivers.base import CommandRule, PinRules, Site
from imlmesh_drivers.call import Call
from imlmesh_drivers.files import absolute, split_root
from imlmesh_protocol.errors import DriverDenied, DriverError
from imlmesh_protocol.limits import (
    ARGUMENT_BYTES,
    ARGUMENTS_MATCH_MS,
    LOG_LINE_BYTES,
    LOG_LINES_PER_ACTION,
)

SITE = Site(
    files="/srv/files",
    read_roots=("/etc/imlmesh",),
    write_roots=("/srv/files",),
    commands={
        "sleep": CommandRule("/usr/bin/sleep", (r"[0-9]{1,2}",), processes=2, memory_mb=8),
        "echo": CommandRule("/bin/echo"),
        "tar": CommandRule("/bin/tar", ("[a-z-]+", "-[cx]", "-")),
    },
    pins=PinRules("mock", (17, 27), {17: 0}),
    env={"TZ": "UTC"},
)


def test_a_site_survives_its_wire_form() -> None:
    assert Site.from_wire(json.loads(json.dumps(SITE.to_wire()))) == SITE
    bare = Site(files="/srv/files")
    assert Site.from_wire(bare.to_wire()) == bare


@pytest.mark.parametrize("word", ["sleep", "/usr/bin/sleep"])
def test_a_command_is_named_by_rule_or_path(word: str) -> None:
    assert SITE.rule_for([word, "4"]).argv0 == "/usr/bin/sleep"


@pytest.mark.parametrize(
    "argv", [[], ["sh", "-c", "x"], ["sleep", "400"], ["sleep", "4\n"], ["sleep", "4", "x"]]
)
def test_other_commands_are_denied(argv: list[str]) -> None:
    with pytest.raises(DriverDenied) as caught:
        SITE.rule_for(argv)
    assert caught.value.code == "policy.command"


def test_a_rule_without_arguments_allows_any() -> None:
    assert SITE.rule_for(["echo", "-n", "$(x)"]).argv0 == "/bin/echo"


@pytest.mark.parametrize("args", [["words"], ["-c", "a-word"], ["-"], ["-x", "-c"]])
def test_flags_need_a_rule_that_begins_with_a_dash(args: list[str]) -> None:
    assert SITE.rule_for(["tar", *args]).argv0 == "/bin/tar"


@pytest.mark.parametrize(
    ("args", "number"), [(["-rf"], 1), (["--to-command"], 1), (["-c", "words", "-o"], 3)]
)
def test_a_rule_for_words_lets_no_flag_through(args: list[str], number: int) -> None:
    with pytest.raises(DriverDenied) as caught:
        SITE.rule_for(["tar", *args])
    assert (caught.value.code, f"argument {number}" in caught.value.message) == (
        "policy.command",
        True,
    )


@pytest.mark.parametrize(
    "word", ["a\0b", "x" * (ARGUMENT_BYTES + 1), "ü" * ARGUMENT_BYTES, "\ud800"]
)
def test_what_no_program_can_be_given(word: str) -> None:
    for argv in (["echo", word], ["tar", word], [word]):
        with pytest.raises(DriverError) as caught:
            SITE.rule_for(argv)
        assert caught.value.code == "driver.params"


@pytest.mark.parametrize("path", ["x" * 256, "ü" * 128, "/".join(["deep"] * 1_000), "a/" * 101])
def test_paths_that_no_file_can_have(path: str) -> None:
    with pytest.raises(DriverError) as caught:
        absolute(SITE, path)
    assert caught.value.code == "driver.params"


@pytest.mark.parametrize(
    "path", ["", "../x", "a/../../x", "/etc/imlmesh/../passwd", "..", "a\0b", "\ud800" * 100]
)
def test_paths_that_are_never_looked_at(path: str) -> None:
    with pytest.raises(DriverDenied) as caught:
        absolute(SITE, path)
    assert caught.value.code == "policy.path"


@pytest.mark.parametrize(
    ("path", "full"),
    [
        ("a", "/srv/files/a"),
        ("./a//b/", "/srv/files/a/b"),
        (".", "/srv/files"),
        ("/", "/"),
        ("//etc/x", "/etc/x"),
        ("/a/./b", "/a/b"),
        ("..a/b..", "/srv/files/..a/b.."),
    ],
)
def test_a_path_has_one_absolute_form(path: str, full: str) -> None:
    assert absolute(SITE, path) == full


def test_the_deepest_root_holds_a_path() -> None:
    roots = ("/srv", "/srv/files")
    assert split_root("/srv/files/a/b", roots) == ("/srv/files", ("a", "b"))
    assert split_root("/srv/filesystem", roots) == ("/srv", ("filesystem",))
    assert split_root("/srv", roots) == ("/srv", ())
    assert split_root("/srvx", ("/", "/srv/")) == ("/", ("srvx",))
    assert split_root("/", ("/",)) == ("/", ())
    for path in ("/srvx", "/sr", "/"):
        with pytest.raises(DriverDenied):
            split_root(path, roots)


def test_log_lines_are_cut_and_counted() -> None:
    lines: list[str] = []
    call = Call("d", on_log=lambda line, _: lines.append(line))
    call.log("ä" * LOG_LINE_BYTES)
    assert len(lines[0].encode()) == LOG_LINE_BYTES
    for _ in range(2 * LOG_LINES_PER_ACTION):
        call.log("more")
    assert call.full
    assert len(lines) == LOG_LINES_PER_ACTION + 1
    assert "dropped" in lines[-1]


def test_a_stopped_call_ends_at_its_next_check() -> None:
    call = Call("d")
    call.check()
    call.stop()
    with pytest.raises(DriverError) as caught:
        call.check()
    assert caught.value.code == "action.cancelled"


@pytest.mark.parametrize(
    ("rule", "argument"), [("([a-z]+ ?)+", "a" * 60 + "!"), (".*a.*b", "a" * ARGUMENT_BYTES)]
)
def test_an_expression_that_tries_every_way_refuses_and_holds_nothing_up(
    rule: str, argument: str
) -> None:
    site = Site("/srv/files", commands={"say": CommandRule("/bin/echo", (rule,))})
    handler = signal.getsignal(signal.SIGVTALRM)
    began_s = time.process_time()
    with pytest.raises(DriverDenied) as caught:
        site.rule_for(["say", argument])
    assert time.process_time() - began_s < 10 * ARGUMENTS_MATCH_MS / 1000
    assert caught.value.code == "policy.command"
    assert "take more than" in caught.value.message
    assert signal.getsignal(signal.SIGVTALRM) is handler
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_a_long_argument_of_a_plain_expression_is_quick_enough() -> None:
    site = Site("/srv/files", commands={"say": CommandRule("/bin/echo", ("[a-z]+", "[0-9 ]+"))})
    assert site.rule_for(["say", "a" * ARGUMENT_BYTES, "1 " * (ARGUMENT_BYTES // 2)])
