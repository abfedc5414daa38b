"""What a driver is given: the site, command rules, and a call's bounded way back."""

import json

import pytest

from imlmesh_drivers.base import Call, CommandRule, PinRules, Site
from imlmesh_drivers.files import absolute, split_root
from imlmesh_protocol.errors import DriverDenied, DriverError
from imlmesh_protocol.limits import LOG_LINE_BYTES, LOG_LINES_PER_ACTION

SITE = Site(
    files="/srv/files",
    read_roots=("/etc/imlmesh",),
    write_roots=("/srv/files",),
    commands={
        "sleep": CommandRule("/usr/bin/sleep", (r"[0-9]{1,2}",)),
        "echo": CommandRule("/bin/echo"),
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
    assert SITE.resolve_command([word, "4"]) == ["/usr/bin/sleep", "4"]


@pytest.mark.parametrize(
    "argv", [[], ["sh", "-c", "x"], ["sleep", "400"], ["sleep", "4\n"], ["sleep", "4", "x"]]
)
def test_other_commands_are_denied(argv: list[str]) -> None:
    with pytest.raises(DriverDenied) as caught:
        SITE.resolve_command(argv)
    assert caught.value.code == "policy.command"


def test_a_rule_without_arguments_allows_any() -> None:
    assert SITE.resolve_command(["echo", "-n", "$(x)"]) == ["/bin/echo", "-n", "$(x)"]


@pytest.mark.parametrize("path", ["", "../x", "a/../../x", "/etc/imlmesh/../passwd", "a\0b"])
def test_paths_that_are_never_looked_at(path: str) -> None:
    with pytest.raises(DriverDenied) as caught:
        absolute(SITE, path)
    assert caught.value.code == "policy.path"


def test_the_deepest_root_holds_a_path() -> None:
    roots = ("/srv", "/srv/files")
    assert split_root("/srv/files/a/b", roots) == ("/srv/files", ("a", "b"))
    assert split_root("/srv/filesystem", roots) == ("/srv", ("filesystem",))
    with pytest.raises(DriverDenied):
        split_root("/srvx", roots)


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
