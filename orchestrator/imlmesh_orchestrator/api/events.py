"""The event stream: stored changes first, then what happens, as server-sent events.

The one rule: a change is sent once, in the order of seq, with its seq as the id, so that a
reader who comes back misses nothing; what is not stored has no id and is not repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.shell import Shell
from imlmesh_orchestrator.stream import Notice, Subscription
from imlmesh_orchestrator.views.plain import to_json
from imlmesh_orchestrator.views.runs import run_ended
from imlmesh_orchestrator.views.stories import changes_after
from imlmesh_orchestrator.views.telling import event_data
from imlmesh_protocol import limits

_PAGE = 1_000
_PING = b": ping\n\n"


async def event_stream(
    shell: Shell, subscription: Subscription, after: int
) -> AsyncIterator[bytes]:
    """Frames from the seq `after` on, those that are there at once together. Ends with `end` when the
    subscription's run ended, and with `lagged` when the reader is too slow: it comes back with the last
    id that it saw."""
    try:
        async for frames in _frames(shell, subscription, after):
            for some in together(frames):
                yield some
    finally:
        shell.stream.unsubscribe(subscription)


async def _frames(
    shell: Shell, subscription: Subscription, after: int
) -> AsyncIterator[list[bytes]]:
    run = subscription.run
    # asked before the changes are read: those of a run that had ended by then are all stored
    ended = await shell.reader.ask(partial(run_ended, run=run)) if run is not None else None
    while True:
        before = shell.lifecycle.last_seq
        page = await shell.reader.ask(partial(changes_after, run=run, after=after, limit=_PAGE))
        yield [_change(shell, seq, change) for seq, change in page]
        for seq, change in page:
            after = seq
            if run is not None and isinstance(change, c.RunEnded):
                ended = str(change.state)
        if len(page) < _PAGE:
            after = max(after, before)
            break
    if ended:
        yield [frame("end", {"run": run, "state": ended})]
        return
    while True:
        try:
            items = await asyncio.wait_for(subscription.take(), limits.EVENT_PING_S)
        except TimeoutError:
            yield [_PING]
            continue
        frames = []
        for item in items:
            if isinstance(item, Notice):
                frames.append(frame(item.kind, item.data))
            elif item[0] > after:
                frames.append(_change(shell, *item))
                after = item[0]
                if run is not None and isinstance(item[1], c.RunEnded):
                    yield [*frames, frame("end", {"run": run, "state": str(item[1].state)})]
                    return
        if subscription.lagged:
            yield [*frames, frame("lagged", {"after": after})]
            return
        yield frames


def together(frames: Iterable[bytes]) -> Iterator[bytes]:
    """The frames in pieces of about EVENT_WRITE_BYTES: each is a write to the socket, and a line in our
    log once the reader has gone."""
    some, size = [], 0
    for each in frames:
        some.append(each)
        size += len(each)
        if size >= limits.EVENT_WRITE_BYTES:
            yield b"".join(some)
            some, size = [], 0
    if some:
        yield b"".join(some)


def frame(kind: str, data: dict[str, Any], seq: int | None = None) -> bytes:
    """One server-sent event."""
    head = f"id: {seq}\n" if seq is not None else ""
    return b"".join((f"{head}event: {kind}\ndata: ".encode(), to_json(data), b"\n\n"))


def _change(shell: Shell, seq: int, change: c.Change) -> bytes:
    data = event_data(seq, change, shell.name_of)
    return frame("change", data, seq)
