"""What every process of ours does around its engine: one of it, until told to end.

The one rule: it ends by itself when it should: on SIGTERM, SIGINT, the end of the pipe from the
parent that started it, or when its engine cannot go on. Deliberately absent: what it is for.
"""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, MeshError
from imlmesh_runtime.notify import READY, STOPPING, WATCHDOG, notify, watchdog_s

log = logging.getLogger(__name__)

T = TypeVar("T")

#: descriptor of a pipe whose end means that the parent is gone
PARENT_FD = "IMLMESH_PARENT_FD"
_GC_THRESHOLD = 50_000  # short-lived events are freed by counting, not by the collector
# the default of 5 ms lets a writer thread wait that long for a busy loop, and the loop for it
_SWITCH_S = 0.0002


@contextlib.contextmanager
def only_one(lock_file: Path, code: str) -> Iterator[None]:
    """Hold `lock_file` with our number in it; InputError `code` when another process does."""
    try:
        # a link could make it any file of the machine, which is then emptied
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise InputError("config.invalid", f"{lock_file.parent}: {exc.strerror}") from exc
    with os.fdopen(descriptor, "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise InputError(code, f"another process already runs for {lock_file.parent}") from exc
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


async def _loop_turned() -> None:
    await asyncio.sleep(0)


def asked_to_end() -> asyncio.Event:
    """From now on SIGTERM, SIGINT and the end of the parent set it, and end nothing by themselves."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    _watch_parent(asked.set)
    return asked


def on_hangup(again: Callable[[], None], asked: asyncio.Event) -> None:
    """From now on SIGHUP calls `again`; when it means that our terminal is gone it sets `asked`, unless
    nohup started us."""
    at_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def told() -> None:
        if at_terminal and not _has_terminal():
            asked.set()
        else:
            again()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, told)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def unless_told(asked: asyncio.Event, start: Coroutine[Any, Any, T]) -> T | None:
    """What `start` returns; None when the process shall end before that, and it was broken off."""
    starting, ending = asyncio.ensure_future(start), asyncio.ensure_future(asked.wait())
    try:
        await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ending.cancel()
    if starting.done():
        return starting.result()
    log.warning("told to end while it starts")
    starting.cancel()
    await asyncio.wait({starting})
    return None


async def until_told(
    failed: "asyncio.Future[None]",
    alive: Callable[[], Awaitable[None]] = _loop_turned,
    asked: asyncio.Event | None = None,
) -> bool:
    """Run until somebody ends the process, or `failed` is done; whether it was that.

    `asked` is `asked_to_end()` of before, for who has something to close already. systemd's watchdog
    is fed each time that `alive` returns: `Engine.turned` where there is an engine, else a turn of the
    loop.
    """
    told = asked or asked_to_end()
    tune()
    notify(READY)
    watching = asyncio.ensure_future(_feed_watchdog(alive))
    ending = asyncio.ensure_future(told.wait())
    either: set[asyncio.Future[Any]] = {ending, failed}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    notify(STOPPING)
    watching.cancel()
    ending.cancel()
    return failed.done()


@contextlib.contextmanager
def end_in_time(hurry: Callable[[], None] | None = None) -> Iterator[None]:
    """Around the end of a process: told once more it calls `hurry`; told again, without `hurry`, or
    after limits.SHUTDOWN_MS it ends at once with exit code 1: what is stored is whole at any time.
    """
    loop = asyncio.get_running_loop()
    ways = [] if hurry is None else [hurry]

    def told() -> None:
        log.warning("told again to end")
        ways.pop()() if ways else _end_at_once()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    last = loop.call_later(limits.SHUTDOWN_MS / 1_000, _end_at_once)
    try:
        yield
    finally:
        last.cancel()


def _end_at_once() -> None:
    log.error("the process ends at once, with something unfinished")
    os._exit(1)


def tune() -> None:
    """Set the interpreter for a loop and writer threads that share few cores; once, after start."""
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    gc.enable()


def logged(main: Callable[[], int]) -> int:
    """The exit code of `main`; each coded error is one line of the log and the exit code 3."""
    try:
        return main()
    except MeshError as exc:
        for error in getattr(exc, "errors", (exc,)):
            log.error("%s", error, extra={"code": error.code, "hint": error.hint})
        return 3


def _watch_parent(ended: Callable[[], None]) -> None:
    descriptor = os.environ.pop(PARENT_FD, "")
    if not descriptor.isdecimal():
        return
    number = int(descriptor)
    # children of ours must not keep the parent's pipe open
    os.set_inheritable(number, False)
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(number, 1_024):
            loop.remove_reader(number)
            ended()

    loop.add_reader(number, readable)


async def _feed_watchdog(alive: Callable[[], Awaitable[None]]) -> None:
    pause_s = watchdog_s()
    while pause_s is not None:
        await alive()
        notify(WATCHDOG)
        await asyncio.sleep(pause_s)
