"""What tests of processes wait for, with a limit."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path


async def eventually(holds: Callable[[], bool | Awaitable[bool]], within_s: float = 10) -> None:
    """Returns once it holds: for what another process does, which sets no event here."""
    async with asyncio.timeout(within_s):
        while True:
            found = holds()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.01)


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def running_with(folder: Path) -> list[str]:
    """Command lines of processes that name `folder`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def slower() -> float:
    """How many times as long as on an idle machine something takes now, 1 or more: others compute too."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
