"""The SQL scripts of each file, in order, as they lie in the package.

The one rule: a script that was ever released is never changed; the next one amends it.
"""

from importlib.resources import files


def migrations(file: str) -> tuple[str, ...]:
    """The scripts of `lifecycle`, `output`, `input` or `metadata`, in the order of their numbers."""
    folder = files("imlmesh_orchestrator.store").joinpath("sql", file)
    scripts = sorted(folder.iterdir(), key=lambda script: script.name)
    return tuple(script.read_text() for script in scripts)
