"""`imlmesh version`."""

from imlmesh.grammar import lone_verb, verb
from imlmesh.settings import settings

app = lone_verb()


@verb(app, "imlmesh version\nimlmesh version --json")
def version() -> None:
    """Print the version."""
    import platform
    from importlib.metadata import version as version_of

    from imlmesh.render import emit_record

    found = version_of("imlmesh")
    if settings.output == "table":
        print(f"imlmesh {found}")
    else:
        record = {"imlmesh": found, "python": platform.python_version()}
        emit_record({"schema": "imlmesh.version/1", **record})
