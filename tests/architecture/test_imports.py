"""Who may import whom, below what import-linter can say: cores, the MQTT client, start-up cost.

The contracts between the rooms stand in `.importlinter`; `make check` runs them.
"""

import ast
import subprocess
import sys
from collections import defaultdict

import pytest

from source_tree import ROOT, imported, is_within, modules

CORE_FORBIDDEN = {
    *("asyncio", "time", "random", "uuid", "os", "sqlite3", "socket", "logging"),
    *("datetime", "pathlib", "secrets", "subprocess", "threading", "io", "tempfile", "shutil"),
}
#: the link of the mesh, and what calls the user's own broker
MQTT_CLIENT_AT = (
    "runtime/imlmesh_runtime/link/mqtt.py",
    "drivers/imlmesh_drivers/iot/mqtt_session.py",
)

#: module (fresh interpreter) -> what importing it must not load
HARDWARE = {"gpiozero", "lgpio", "smbus2", "serial", "adafruit_dht", "board"}
START_UP = {
    "imlmesh_protocol.wire": {"pydantic", "asyncio", "imlmesh_protocol.iml"},
    "imlmesh_node.main": {
        *("typer", "rich", "fastapi", "uvicorn", "cryptography", *HARDWARE),
        *("imlmesh_protocol.iml", "jsonschema", "zeroconf", "http.client"),
    },
    "imlmesh_drivers.iot": {*HARDWARE, "gmqtt", "pydantic"},
    "imlmesh.main": {"pydantic", "fastapi", "cryptography", "gmqtt", "zeroconf"},
}


def test_a_core_imports_protocol_and_itself_alone() -> None:
    wrong = []
    for module in modules():
        if not module.in_core:
            continue
        core = module.name[: module.name.index(".core")] + ".core"
        for name, line in imported(module):
            top = name.partition(".")[0]
            foreign = top not in sys.stdlib_module_names and not (
                is_within(name, "imlmesh_protocol") or is_within(name, core)
            )
            if foreign or top in CORE_FORBIDDEN:
                wrong.append(f"{module.path}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_a_core_prints_and_opens_nothing() -> None:
    wrong = [
        f"{module.path}:{node.lineno} calls {node.func.id}()"
        for module in modules()
        if module.in_core
        for node in module.nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"print", "open", "input", "__import__"}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_mqtt_client_is_known_in_two_places() -> None:
    wrong = [
        f"{module.path}:{line} imports {name}"
        for module in modules()
        if module.path not in MQTT_CLIENT_AT
        for name, line in imported(module)
        if name.partition(".")[0] in {"gmqtt", "paho", "aiomqtt"}
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_the_cli() -> None:
    wrong = [
        f"{module.path}:{line} imports {name}"
        for module in modules()
        if module.room != "cli"
        for name, line in imported(module)
        if is_within(name, "imlmesh")
    ]
    assert not wrong, "\n".join(wrong)


# in the product for the simulator and for tests of those who build upon it
SHIPPED_TWINS = {"imlmesh_runtime.link.memory"}


def test_each_module_of_runtime_serves_two_rooms() -> None:
    """What one room alone needs belongs into that room."""
    users: dict[str, set[str]] = defaultdict(set)
    own = {module.name: module for module in modules() if module.room == "runtime"}

    def use(room: str, name: str) -> None:
        target = name if name in own else name.rpartition(".")[0]
        if target not in own or room in users[target]:
            return
        users[target].add(room)
        for deeper, _ in imported(own[target]):
            use(room, deeper)

    for module in modules():
        if module.room != "runtime":
            for name, _ in imported(module):
                use(module.room, name)
    lonely = {
        name: sorted(users[name])
        for name, module in own.items()
        if not module.path.endswith("__init__.py")
        and len(users[name]) < 2
        and name not in SHIPPED_TWINS
    }
    assert not lonely, f"used by one room: {lonely}"


@pytest.mark.parametrize("name", sorted(START_UP))
def test_start_up_loads_no_more_than_it_needs(name: str) -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {name}; print(*sys.modules, sep='\\n')"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert START_UP[name].intersection(loaded) == set()
