"""`imlmesh driver`: drivers of this installation, and the start of a new one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb

app = noun(
    "See the drivers of this installation, write one of your own.",
    """\
imlmesh driver new kettle      a package that works, with tests
imlmesh driver list

systemctl reload imlmesh-node@pi-bed     a node takes up their new versions; what runs goes on""",
)


@verb(app, "imlmesh driver new kettle\nimlmesh driver new rain_gauge --out ~/drivers/rain")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The IML module that it serves.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; else ./imlmesh-driver-NAME.")
    ] = None,
) -> None:
    """Write the package of a new driver: one class, its tests, a plan and a policy to try it."""
    from imlmesh.driver_new import install_words, new_driver, package_name
    from imlmesh.render import emit, say, write

    folder = (out or Path(package_name(name))).absolute()
    files = new_driver(name, folder)
    record = {"driver": name, "package": package_name(name), "folder": str(folder)}
    record_files = {"files": [str(file) for file in files]}
    if emit({"schema": "imlmesh.new-driver/1", **record, **record_files}):
        return
    write(str(folder))
    say(f"✔ {len(files)} files; README.md says how to try and change them")
    say(f"next:  {install_words(folder)}")


@verb(app, "imlmesh driver list\nimlmesh driver list --json", "list")
def list_drivers() -> None:
    """List the drivers that a node of this installation could load; a policy names which it does.

    A node that runs takes up a new version when it is told: systemctl reload imlmesh-node@NAME, or kill -HUP with
    the number in node.lock of its folder.
    """
    from imlmesh.render import Column, emit, write_table
    from imlmesh_drivers.registry import modules

    drivers = [_record(module) for module in modules()]
    if emit({"schema": "imlmesh.driver-list/1", "drivers": drivers}, "drivers"):
        return
    columns = [Column("MODULE"), Column("VERSION"), Column("FROM", 2), Column("ACTIONS", 1)]
    rows = [
        [
            row["module"],
            row["version"] or "-",
            row["package"],
            row["problem"] or ", ".join(row["actions"]),
        ]
        for row in drivers
    ]
    write_table(columns, rows)


def _record(module: str) -> dict[str, Any]:
    from importlib.metadata import entry_points

    from imlmesh_drivers.apart import read_apart
    from imlmesh_drivers.registry import GROUP, builtin_modules, check_platform, shipped_manifest
    from imlmesh_protocol.errors import DriverError

    package, builtin = "imlmesh", module in builtin_modules()
    if not builtin:
        point = next(iter(entry_points(group=GROUP, name=module)))
        package = point.dist.name if point.dist else point.value
    record: dict[str, Any] = {"module": module, "package": package, "version": None}
    record |= {"actions": [], "problem": None}
    try:
        if builtin:
            check_platform(module)
        found = shipped_manifest().modules[module] if builtin else read_apart(module).module
    except DriverError as exc:
        return record | {"problem": f"{exc.code}: {exc.message}"}
    return record | {"version": found.version, "actions": sorted(found.actions)}
