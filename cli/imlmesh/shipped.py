"""Files that come with imlmesh beside its code: examples, units of systemd.

The one rule: the checkout and the installed package hold the same files. Deliberately absent: what
they mean.
"""

from pathlib import Path

from imlmesh_protocol.errors import MeshError


def shipped(folder: str, name: str) -> Path:
    """The file `name` of a shipped folder: of the installed package, else of the checkout."""
    package = Path(__file__).parent
    for place in (package / folder, package.parents[1] / folder):
        if (place / name).is_file():
            return place / name
    raise MeshError("internal", f"this installation lacks the file {folder}/{name}")
