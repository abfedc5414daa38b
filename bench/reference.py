"""How quick this machine is with Python: one message packed, unpacked and validated.

The one rule: what is measured here is made of msgpack and pydantic alone, so that no change of ours changes it.
CPU figures travel between machines by their ratio to it, as those of the mesh do by their ratio to the raw pair.
"""

import statistics
import timeit
from typing import Any, Literal

import msgpack
from pydantic import BaseModel, ConfigDict

_ROUNDS = 2_000
_REPEATS = 7


class Message(BaseModel):
    """Thirteen fields, six of them in a map: as large as a typical dispatch."""

    model_config = ConfigDict(extra="forbid")

    version: int
    id: str
    plan: str
    module: str
    action: str
    target: str
    priority: Literal["low", "normal", "high"]
    issued_at: float
    deadline: float
    timeout_s: float
    attempt: int
    params: dict[str, Any]
    reply_to: str | None = None


MESSAGE = Message(
    version=1,
    id="01K8X5T0Q3ZV4D7R9M2N6B1C8E",
    plan="01K8X5T0Q3ZV4D7R9M2N6B1C8F",
    module="filesystem",
    action="copy_file",
    target="greenhouse-42",
    priority="normal",
    issued_at=1_790_000_000.25,
    deadline=1_790_000_030.25,
    timeout_s=30.0,
    attempt=1,
    params={
        "source": "inbox/report.csv",
        "target": "archive/report.csv",
        "mode": 420,
        "digest": "5e" * 32,
        "backup": True,
        "owner": "grower",
    },
)


def message_round_us() -> float:
    """Microseconds of one round, the median of several series."""

    def once() -> None:
        packed = msgpack.packb(MESSAGE.model_dump())
        Message.model_validate(msgpack.unpackb(packed))

    series = timeit.repeat(once, number=_ROUNDS, repeat=_REPEATS)
    return statistics.median(series) / _ROUNDS * 1e6
