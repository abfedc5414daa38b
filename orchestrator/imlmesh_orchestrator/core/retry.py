"""Whether and when a failed action is tried again.

The one rule: only failures that a node reported count, and what must not happen twice is tried
again only where the plan says so in so many words. Pure: chance comes from the run's own id.
"""

import builtins
import zlib

from imlmesh_orchestrator.core.state import ActionRecord, RunRecord
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CODES
from imlmesh_protocol.iml.plan import Retry
from imlmesh_protocol.states import Effect

_DEFAULT = Retry.model_validate({})


def next_try_ms(
    run: RunRecord, record: ActionRecord, effect: Effect, code: str, at_ms: int
) -> int | None:
    """When to try again after one more reported failure; None when this one is final."""
    action = record.action
    if action.on_error != "retry" or (action.retry is None and not effect.repeatable):
        return None
    retry = action.retry or _DEFAULT
    failures = record.failures + 1
    if failures >= retry.max_attempts or not _matches(code, retry.retry_on):
        return None
    delay_ms = retry.delay_seconds * 1_000 * retry.backoff_factor ** (failures - 1)
    drawn = zlib.crc32(f"{run.run}/{record.key}/{failures}".encode()) / 2**32
    return at_ms + min(limits.RETRY_DELAY_MS, round(delay_ms * (0.75 + drawn / 2)))


def _matches(code: str, names: tuple[str, ...]) -> bool:
    """Whether the builtin class of the code, or one of its bases, is named; no names: any code."""
    if not names:
        return True
    known = CODES.get(code)
    return known is not None and any(
        base.__name__ in names for base in getattr(builtins, known.builtin).__mro__
    )
