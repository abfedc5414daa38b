"""Writes or checks the shipped manifests: `python -m imlmesh_drivers.manifests --write | --check`.

The one rule: what is written is exactly what the drivers declare. Exit code 1: not current.
"""

import json
import sys
from pathlib import Path

from imlmesh_drivers.registry import builtin_modules, driver_class, module_of
from imlmesh_protocol.manifest import Manifest

FOLDER = Path(__file__).parent


def render(module: str) -> str:
    """The text of one module's manifest file."""
    driver = driver_class(module)
    wire = {**Manifest({module: module_of(driver)}).to_wire(), "platforms": driver.platforms}
    return json.dumps(wire, indent=1, sort_keys=True) + "\n"


def stale() -> list[str]:
    """The modules whose file is missing or differs from what the driver declares."""
    found = []
    for module in builtin_modules():
        path = FOLDER / f"{module}.json"
        if not path.exists() or path.read_text(encoding="utf-8") != render(module):
            found.append(module)
    return found


def main(arguments: list[str]) -> int:
    if arguments == ["--write"]:
        for module in builtin_modules():
            (FOLDER / f"{module}.json").write_text(render(module), encoding="utf-8")
        return 0
    if arguments == ["--check"]:
        found = stale()
        if found:
            print(f"not current: {', '.join(found)}; run with --write", file=sys.stderr)
        return 1 if found else 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
