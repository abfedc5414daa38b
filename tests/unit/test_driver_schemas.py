"""The drivers' declarations: schemas, binding, the shipped manifests, and IML's own catalogue."""

import errno
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import jsonschema
import pytest
from annotated_types import Interval

from imlmesh_drivers.base import Argv, Driver, Pin, ReadPath, Site, WritePath, action
from imlmesh_drivers.call import Call
from imlmesh_drivers.invoke import bind, params_schema, perform_now
from imlmesh_drivers.manifests.__main__ import stale
from imlmesh_drivers.registry import (
    builtin_modules,
    driver_class,
    module_of,
    modules,
    shipped_manifest,
)
from imlmesh_protocol.errors import DriverDenied, DriverError, DriverNotFound, DriverTimeout
from imlmesh_protocol.iml.template import render_undo
from imlmesh_protocol.manifest import Undo
from imlmesh_protocol.states import Effect

CATALOGUE: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "data" / "driver_catalogue.json").read_text(encoding="utf-8")
)
COMPLETE = tuple(CATALOGUE)
ROWS = [(module, name) for module, rows in CATALOGUE.items() for name in rows]
#: actions that the catalogue does not have
OURS = {"iot": {"set_servo", "read_adc"}}


class Level(TypedDict):
    pin: int
    level: float
    note: NotRequired[str]


class Lamp(Driver):
    """A lamp."""

    module = "lamp"
    version = "1.2.3"
    runs = "loop"

    @action(effect="physical", impact=0.4, permission="local_worker", claims="gpio:{pin}")
    def dim(
        self,
        call: Call,
        pin: Pin,
        level: Annotated[float, Interval(ge=0, le=1)] = 1.0,
        mode: Literal["fast", "slow"] = "fast",
    ) -> Level:
        """Dim it.

        More about it.
        """
        call.log("dimmed")
        return {"pin": pin, "level": level}

    @action(impact=0.1, permission="readonly", runs="process")
    async def guarded(self, source: ReadPath, target: WritePath, argv: Argv) -> dict[str, Any]:
        """Take every guarded kind."""
        return {"count": len(argv)}

    @action(effect="pure", impact=0.1, permission="readonly")
    def broken(self, kind: str) -> dict[str, Any]:
        """Raise what was asked for."""
        kinds = {
            "missing": FileNotFoundError,
            "denied": PermissionError,
            "late": TimeoutError,
            "device": OSError,
            "read-only": partial(OSError, errno.EROFS),
            "full": partial(OSError, errno.ENOSPC),
            "library": ImportError,
            "bug": ZeroDivisionError,
        }
        raise kinds[kind]("told to")


def shape(schema: Mapping[str, Any]) -> str:
    """A property's schema in the notation of the catalogue, without its default."""
    if "anyOf" in schema:
        return "|".join(shape(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return "|".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema["type"] == "array":
        return f"list[{shape(schema['items'])}]"
    text = str(schema["type"])
    if "minimum" in schema or "maximum" in schema:
        text += f"[{schema.get('minimum', '')}..{schema.get('maximum', '')}]"
    return text


def notation(name: str, schema: Mapping[str, Any]) -> str:
    own = schema["properties"][name]
    text = shape(own)
    if name not in schema.get("required", []):
        text += f" = {json.dumps(own['default'])}"
    return text


@pytest.mark.parametrize(("module", "name"), ROWS)
def test_an_action_is_what_the_catalogue_says(module: str, name: str) -> None:
    row = CATALOGUE[module][name]
    spec = shipped_manifest().find(module, name)
    assert spec is not None
    found = {field: notation(field, spec.params) for field in spec.params.get("properties", {})}
    # the catalogue writes `list[...] = null` where null is accepted too
    expected = {
        field: text.replace("] = null", "]|null = null") if text.startswith("list[") else text
        for field, text in row["params"].items()
    }
    assert found == expected
    # a driver may return more than plans rely on
    assert list(spec.returns[: len(row["returns"])]) == row["returns"]
    assert (spec.effect, spec.permission, spec.impact) == (
        Effect(row["effect"]),
        row["permission"],
        row["impact"],
    )


@pytest.mark.parametrize("module", COMPLETE)
def test_a_module_has_the_actions_of_the_catalogue_and_few_of_our_own(module: str) -> None:
    own = OURS.get(module, set())
    assert set(shipped_manifest().modules[module].actions) == set(CATALOGUE[module]) | own


def test_guards_claims_and_vouch_are_declared() -> None:
    manifest = shipped_manifest()
    guards = {
        (module, name, field): schema["x-guard"]
        for module, found in manifest.modules.items()
        for name, spec in found.actions.items()
        for field, schema in spec.params.get("properties", {}).items()
        if "x-guard" in schema
    }
    assert guards[("filesystem", "read_file", "path")] == "read"
    assert guards[("filesystem", "append_file", "path")] == "write"
    assert guards[("os_exec", "run_command", "command")] == "command"
    assert guards[("os_exec", "run_command", "working_directory")] == "read"
    assert guards[("os_exec", "open_application", "application")] == "program"
    assert guards[("iot", "digital_write", "pin")] == "pin"
    # whatever names a file or folder is judged before it is opened
    paths = ("path", "source", "destination", "directory", "working_directory")
    for module in COMPLETE:
        for name, spec in manifest.modules[module].actions.items():
            for field in spec.params.get("properties", {}):
                assert field not in paths or (module, name, field) in guards
    write = manifest.find("iot", "digital_write")
    run = manifest.find("os_exec", "run_command")
    assert write
    assert run
    assert write.claims_for({"pin": 17, "value": 1}) == ("gpio:17",)
    assert run.vouch
    assert not write.vouch


def test_the_shipped_manifests_are_current() -> None:
    assert stale() == []
    assert set(shipped_manifest().modules) == set(builtin_modules())
    assert set(builtin_modules()) <= set(modules())


def test_a_signature_is_the_schema() -> None:
    assert params_schema(Lamp, "dim") == {
        "type": "object",
        "additionalProperties": False,
        "required": ["pin"],
        "properties": {
            "pin": {"type": "integer", "minimum": 0, "maximum": 53, "x-guard": "pin"},
            "level": {"type": "number", "minimum": 0, "maximum": 1, "default": 1.0},
            "mode": {"type": "string", "enum": ["fast", "slow"], "default": "fast"},
        },
    }
    kinds = params_schema(Lamp, "guarded")["properties"]
    assert [kinds[name]["x-guard"] for name in ("source", "target", "argv")] == [
        "read",
        "write",
        "command",
    ]


def test_a_module_says_what_the_class_declares() -> None:
    module = module_of(Lamp)
    dim = module.actions["dim"]
    assert (module.version, module.description) == ("1.2.3", "A lamp.")
    assert dim.description == "Dim it."
    assert dim.returns == ("pin", "level")
    assert module.actions["guarded"].effect is Effect.ONCE


def test_an_undo_is_part_of_the_manifest() -> None:
    spec = shipped_manifest().find("iot", "digital_write")
    assert spec
    assert spec.undo == Undo(
        "digital_write", {"pin": "{{params.pin}}", "value": "{{result.previous}}"}
    )
    assert spec.undo.uses() == {("params", "pin"), ("result", "previous")}
    act = shipped_manifest().find("fake", "act")
    assert act
    assert act.undo == Undo("act", {"value": "{{result.value}}", "marker": "undone"})
    move = shipped_manifest().find("filesystem", "move_file")
    assert move
    assert move.undo
    assert move.undo.uses() == {("result", "source"), ("result", "destination")}
    write = shipped_manifest().find("filesystem", "write_file")
    assert write
    assert write.undo is None


def test_an_undo_sets_the_level_that_was() -> None:
    spec = shipped_manifest().find("iot", "digital_write")
    assert spec
    assert spec.undo
    result = {"pin": 4, "value": 1, "previous": 0}
    undo = render_undo(spec.undo.params, {"pin": 4, "value": 1}, result)
    assert bind(driver_class("iot"), spec.undo.action, undo) == {"pin": 4, "value": 0}


@pytest.mark.parametrize(
    ("undo", "why"),
    [
        (Undo("off", {}), "no action 'off'"),
        (Undo("switch", {"on": False}), "does not take"),
        (Undo("switch", {"lamp": 1, "colour": "red"}), "does not take"),
        (Undo("switch", {"lamp": "{{params.on}}"}), "not every call has"),
        (Undo("switch", {"lamp": "{{result.colour}}"}), "not every call has"),
        (Undo("switch", {"lamp": ["{{node.id}}"]}), "params and result of the call alone"),
        (Undo("switch", {"lamp": "{{params}}"}), "params and result of the call alone"),
    ],
)
def test_an_undo_that_could_not_be_called_is_refused(undo: Undo, why: str) -> None:
    with pytest.raises(ValueError, match=why):

        class Switch(Driver):
            module = "switch"
            version = "1"

            @action(impact=0.1, permission="readonly", undo=undo)
            def switch(self, lamp: int, on: bool = True) -> Level:
                """Switch it."""
                return {"pin": lamp, "level": 1.0}


def test_where_an_action_runs() -> None:
    fake = driver_class("fake")
    assert fake.ends_at_once("noop")
    assert fake.ends_at_once("echo")
    assert fake.runs_of("act") == "process"
    assert not fake.ends_at_once("act")
    assert driver_class("os_exec").runs_of("run_command") == "loop"
    assert not driver_class("os_exec").ends_at_once("run_command")
    assert driver_class("filesystem").runs_of("read_file") == "thread"
    # what strangers wrote is read where it can be killed
    for name in ("search_files", "create_archive", "extract_archive"):
        assert driver_class("filesystem").runs_of(name) == "process"
    assert driver_class("iot").runs_of("digital_write") == "process"


def test_binding_fills_defaults_in() -> None:
    assert bind(Lamp, "dim", {"pin": 4}) == {"pin": 4, "level": 1.0, "mode": "fast"}


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(DriverError) as caught:
        bind(Lamp, "dim", {"pin": "4", "level": 2, "colour": "red"})
    assert caught.value.code == "driver.params"
    for name in ("pin", "level", "colour"):
        assert f"{name}: " in caught.value.message


@pytest.mark.parametrize(
    ("module", "name", "params"),
    [
        ("iot", "digital_write", {"pin": 54, "value": 1}),
        ("iot", "digital_write", {"pin": 17}),
        ("filesystem", "read_file", {"path": "a", "max_bytes": 0}),
        ("filesystem", "read_file", {"path": 1}),
        ("filesystem", "write_file", {"path": "a", "content": "b", "overwrite": "yes"}),
        ("os_exec", "run_command", {"command": "ls -l"}),
        ("os_exec", "run_command", {"command": ["ls"], "shell": True}),
        ("os_exec", "get_system_info", {"include": ["secrets"]}),
    ],
)
def test_schema_and_binding_refuse_the_same(module: str, name: str, params: dict[str, Any]) -> None:
    driver = driver_class(module)
    with pytest.raises(DriverError) as caught:
        bind(driver, name, params)
    assert caught.value.code == "driver.params"
    assert not jsonschema.Draft202012Validator(params_schema(driver, name)).is_valid(params)


@pytest.mark.parametrize(("module", "name"), ROWS)
def test_every_action_refuses_what_it_does_not_take(module: str, name: str) -> None:
    driver = driver_class(module)
    properties = params_schema(driver, name).get("properties", {})
    wrong = {field: {"of": "another kind"} for field in properties if field != "env"}
    for params in ({"surprise": 1}, wrong | {"surprise": 1}):
        with pytest.raises(DriverError) as caught:
            bind(driver, name, params)
        assert caught.value.code == "driver.params"
        for field in params:
            assert f"{field}" in caught.value.message


def test_an_unknown_action_and_module() -> None:
    with pytest.raises(DriverError) as caught:
        bind(Lamp, "explode", {})
    assert caught.value.code == "action.unknown"
    with pytest.raises(DriverError) as caught:
        driver_class("no-such-module")
    assert caught.value.code == "module.unknown"


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        ("missing", DriverNotFound, "driver.not_found"),
        ("denied", DriverDenied, "driver.denied"),
        ("late", DriverTimeout, "driver.timeout"),
        ("device", DriverError, "driver.unavailable"),
        ("read-only", DriverDenied, "driver.denied"),
        ("full", DriverError, "store.full"),
        ("library", DriverError, "driver.missing"),
        ("bug", DriverError, "driver.failed"),
    ],
)
def test_foreign_exceptions_become_coded(kind: str, error: type[DriverError], code: str) -> None:
    with pytest.raises(error) as caught:
        perform_now(Lamp(Site(files="/")), "broken", {"kind": kind}, Call("d"))
    assert caught.value.code == code
    assert caught.value.__cause__ is not None


def test_performing_gives_the_call() -> None:
    lines: list[tuple[str, str]] = []
    call = Call("d", on_log=lambda line, stream: lines.append((line, stream)))
    result = perform_now(Lamp(Site(files="/")), "dim", {"pin": 3}, call)
    assert result == {"pin": 3, "level": 1.0}
    assert lines == [("dimmed", "log")]


def test_claims_are_filled_from_defaults_lists_and_nothing() -> None:
    iot = shipped_manifest().modules["iot"].actions
    assert iot["receive_i2c"].claims_for({"address": 1, "num_bytes": 1}) == ("i2c:1",)
    assert iot["receive_i2c"].claims_for({"address": 1, "num_bytes": 1, "bus": 3}) == ("i2c:3",)
    assert iot["send_uart"].claims_for({"data": "x"}) == ("serial:/dev/ttyS0",)
    assert iot["cleanup"].claims_for({"pins": [4, 17]}) == ("gpio:4", "gpio:17")
    assert iot["cleanup"].claims_for({}) == ()
    assert iot["cleanup"].claims_for({"pins": [4, 17, 4]}) == ("gpio:4", "gpio:17")
    with pytest.raises(KeyError, match="pin"):
        iot["digital_read"].claims_for({})


@pytest.mark.parametrize(
    ("params", "claims"),
    [
        ({"sensor_type": "DHT22", "pin": 4}, ("gpio:4",)),
        ({"sensor_type": "DHT11", "pin": 4, "address": None}, ("gpio:4",)),
        ({"sensor_type": "DS18B20"}, ("onewire",)),
        ({"sensor_type": "BMP280"}, ("i2c:1",)),
        ({"sensor_type": "BMP280", "address": 0x77}, ("i2c:1",)),
        ({"pin": 4}, ("gpio:4",)),
        ({"address": 0x48}, ("i2c:1",)),
        ({"address": 0}, ("i2c:1",)),
        ({}, ()),
    ],
)
def test_a_sensor_claims_the_wire_on_which_it_is_read(
    params: dict[str, Any], claims: tuple[str, ...]
) -> None:
    read = shipped_manifest().find("iot", "read_sensor")
    assert read
    assert read.claims_for(params) == claims


def test_what_the_catalogue_lacks_is_two_actions() -> None:
    assert {"set_servo", "read_adc"} < set(shipped_manifest().modules["iot"].actions)


@pytest.mark.parametrize(
    ("name", "guard"),
    [
        ("digital_write", "pin"),
        ("read_sensor", "pin"),
        ("set_servo", "pin"),
        ("set_gpio_pin", None),
    ],
)
def test_pins_by_bcm_number_are_guarded(name: str, guard: str | None) -> None:
    # a place on the header is translated first, and checked by the driver
    pin = shipped_manifest().modules["iot"].actions[name].params["properties"]["pin"]
    assert pin.get("x-guard") == guard
