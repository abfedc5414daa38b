"""The process of a node: `python -m imlmesh_node FOLDER`, or `imlmesh node run FOLDER`.

The one rule: it ends by itself when it should: on SIGTERM, SIGINT, or when the pipe from a parent
that started it ends; and with a failure when it can no longer remember.
"""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from imlmesh_node.config import load_config, load_policy
from imlmesh_node.journal import Journal
from imlmesh_node.running import RunningNode, Setup
from imlmesh_protocol.errors import InputError, MeshError
from imlmesh_protocol.wire.topics import node_subscriptions
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.notify import READY, STOPPING, WATCHDOG, notify, watchdog_s
from imlmesh_runtime.trust import NodeKeys

log = logging.getLogger(__name__)

#: descriptor of a pipe whose end means that the parent is gone
PARENT_FD = "IMLMESH_PARENT_FD"
_WARM_UP_S = 1.0  # after the start, which is over by then unless the broker is away
_GC_THRESHOLD = 50_000  # short-lived events are freed by counting, not by the collector


async def run_node(folder: Path) -> int:
    """Run the node of `folder` until told to end; 0, or 1 when it could not go on.

    Raises InputError, TrustError or StoreError when the folder cannot be used.
    """
    with only_one(folder):
        setup = load_setup(folder)
        config = setup.config
        journal = Journal.open(folder / "journal.db")
        loaded = await journal.load(time.time_ns() // 1_000_000)
        address, port = config.brokers[0]
        subscriptions = node_subscriptions(config.mesh, config.id)
        link = MqttLink(address, port, config.id, setup.keys.context(), subscriptions)
        node = RunningNode(setup, journal, loaded, link)
        return await _live(node)


def load_setup(folder: Path) -> Setup:
    """Everything that the folder says; makes the folder for files when it is missing."""
    strict = "INVOCATION_ID" in os.environ  # systemd's: a service does not go on with a warning
    config = load_config(folder)
    policy = load_policy(folder, strict=strict)
    keys = NodeKeys.load(folder, config.mesh, strict=strict)
    Path(policy.site.files).mkdir(mode=0o700, parents=True, exist_ok=True)
    return Setup(folder, config, policy, keys)


async def _live(node: RunningNode) -> int:
    loop = asyncio.get_running_loop()
    asked_to_end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_end.set)
    _watch_parent(asked_to_end.set)
    node.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    notify(READY)
    loop.call_later(_WARM_UP_S, node.warm_up)
    watching = asyncio.ensure_future(_feed_watchdog())
    ending = asyncio.ensure_future(asked_to_end.wait())
    either: set[asyncio.Future[Any]] = {ending, node.engine.failed}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    failed = node.engine.failed.done()
    notify(STOPPING)
    watching.cancel()
    ending.cancel()
    await node.stop()
    return 1 if failed else 0


def main(argv: Sequence[str]) -> int:
    """Run the node of the folder `argv[0]`; returns the exit code, raises what `run_node` raises."""
    if len(argv) != 1:
        raise InputError("usage", "python -m imlmesh_node FOLDER")
    set_up_logs()
    return asyncio.run(run_node(Path(argv[0]).absolute()))


def script(argv: Sequence[str]) -> int:
    """As `main`, but each coded error is one line of the log and the exit code 3."""
    try:
        return main(argv)
    except MeshError as exc:
        for error in getattr(exc, "errors", (exc,)):
            log.error("%s", error, extra={"code": error.code, "hint": error.hint})
        return 3


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder; `node.running` when another agent does, also one of another container."""
    try:
        lock = (folder / "node.lock").open("w")
    except OSError as exc:
        raise InputError("config.invalid", f"{folder}: {exc.strerror}") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise InputError("node.running", f"an agent already runs for {folder}") from exc
        yield


def _watch_parent(ended: Callable[[], None]) -> None:
    descriptor = os.environ.pop(PARENT_FD, "")
    if not descriptor.isdecimal():
        return
    number = int(descriptor)
    # drivers' children must not keep the parent's pipe open
    os.set_inheritable(number, False)
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(number, 1_024):
            loop.remove_reader(number)
            ended()

    loop.add_reader(number, readable)


async def _feed_watchdog() -> None:
    pause_s = watchdog_s()
    while pause_s is not None:
        notify(WATCHDOG)
        await asyncio.sleep(pause_s)
