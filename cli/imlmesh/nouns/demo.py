"""`imlmesh demo`: see it work, with no hardware and no questions."""

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun("See a mesh of three nodes lose one and go on.", "imlmesh demo run")


@verb(
    app,
    """\
imlmesh demo run
imlmesh demo run --home ./demo    keep it there; else in a folder of its own under the system's""",
)
def run() -> int:
    """Start a mesh of three nodes, run the greenhouse plan, kill a node meanwhile, stop all.

    A home that has a mesh already is refused, unless a demonstration made it.
    """
    import asyncio

    from imlmesh.demo import run_demo

    return asyncio.run(run_demo(settings.home))
