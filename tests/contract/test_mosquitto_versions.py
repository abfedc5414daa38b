"""Which words the configuration is written in, by what the installed Mosquitto says of itself."""

from pathlib import Path

import pytest

from imlmesh_broker import BrokerPlace
from imlmesh_broker.mosquitto import Mosquitto, find_mosquitto, find_plugin, version_of
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys


def installed(prefix: Path, says: str, plugin: str = "") -> Path:
    """A program that shows its usage as Mosquitto does."""
    program = prefix / "sbin" / "mosquitto"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{says}'\nexit 3\n")
    program.chmod(0o755)
    if plugin:
        (prefix / plugin).parent.mkdir(parents=True)
        (prefix / plugin).touch()
    return program


def written(folder: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    home = Home(folder / "home")
    Authority.create(home, "home", "o")
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    place.served.mkdir()
    broker = Mosquitto("home", "o", place, ControlKeys.load(home.ca, "home").context)
    command = broker.command()
    assert command[0] == str(program)
    return Path(command[2]).read_text()


@pytest.mark.parametrize("place", ["lib", "lib/x86_64-linux-gnu", "lib64"])
async def test_2_1_is_told_by_its_plugin(tmp_path, monkeypatch, place):
    plugin = f"{place}/mosquitto_acl_file.so"
    program = installed(tmp_path / "usr", "mosquitto version 2.1.2", plugin)
    lines = written(tmp_path, program, monkeypatch).splitlines()
    assert f"global_plugin {tmp_path}/usr/{plugin}" in lines
    assert lines.count("listener_allow_anonymous false") == 2
    assert not [line for line in lines if line.startswith("acl_file")]


@pytest.mark.parametrize(
    ("says", "plugin"),
    [
        ("mosquitto version 2.0.22", "lib/mosquitto_acl_file.so"),
        ("mosquitto version 2.1.0", ""),
    ],
)
async def test_2_0_and_who_lacks_the_plugin_are_told_in_older_words(
    tmp_path, monkeypatch, says, plugin
):
    program = installed(tmp_path / "usr", says, plugin)
    lines = written(tmp_path, program, monkeypatch).splitlines()
    assert "allow_anonymous false" in lines
    assert [line for line in lines if line.startswith("acl_file ")]
    assert not [line for line in lines if "plugin" in line]


def test_a_program_that_does_not_tell_its_version_is_no_broker(tmp_path):
    with pytest.raises(LinkError) as caught:
        version_of(str(installed(tmp_path, "hello")))
    assert caught.value.code == "broker.failed"
    with pytest.raises(LinkError):
        version_of(str(tmp_path / "missing"))


@pytest.mark.mosquitto
def test_the_installed_one_is_known():
    assert version_of(find_mosquitto()) >= (2, 0)
    if version_of(find_mosquitto()) < (2, 1):
        assert find_plugin(Path(find_mosquitto())) is None
