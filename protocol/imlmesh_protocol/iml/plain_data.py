"""Python data (dicts, lists, tuples, scalars) as pieces for a `Builder`.

The one rule: what comes out holds nothing that JSON could not say. Deliberately absent: places;
offsets are all 0.
"""

from collections.abc import Iterator
from typing import Any

from imlmesh_protocol.iml.builder import Builder

_SCALARS = (str, bool, int, float, type(None))


def feed_data(data: Any, builder: Builder) -> None:
    """Walk the data in order, without recursion; plan.syntax where it is no JSON."""
    if not _opens(data, builder):
        return
    inner = [_pieces(data)]
    while inner:
        piece = next(inner[-1], _END)
        if piece is _END:
            inner.pop()
            builder.close(0)
        elif _opens(piece, builder):
            inner.append(_pieces(piece))


_END = object()


def _opens(piece: Any, builder: Builder) -> bool:
    if isinstance(piece, dict):
        builder.open_mapping(0)
        return True
    if isinstance(piece, list | tuple):
        builder.open_list(0)
        return True
    if not isinstance(piece, _SCALARS):
        name = type(piece).__name__
        raise builder.error("plan.syntax", f"a plan cannot hold a Python {name}", 0, 0)
    builder.scalar(piece, 0, 0)
    return False


def _pieces(container: Any) -> Iterator[Any]:
    if isinstance(container, dict):
        for key, value in container.items():
            yield key
            yield value
    else:
        yield from container
