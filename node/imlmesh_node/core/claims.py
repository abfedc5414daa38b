"""Who holds which thing of the machine: pins, buses, files that only one may use at a time.

The one rule: a claim has one holder, from before its driver starts until its end, or its kill, is
confirmed.
"""

from collections.abc import Iterable


class Claims:
    """Claims such as "gpio:17", each with the id of the dispatch that holds it."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}

    def holder(self, claims: Iterable[str]) -> str | None:
        """The holder of the first of `claims` that is not free."""
        for claim in claims:
            holder = self._holders.get(claim)
            if holder is not None:
                return holder
        return None

    def take(self, claims: Iterable[str], dispatch: str) -> None:
        """All of `claims` must be free."""
        for claim in claims:
            self._holders[claim] = dispatch

    def free(self, claims: Iterable[str]) -> None:
        for claim in claims:
            del self._holders[claim]

    def held(self) -> dict[str, str]:
        """Claim to holder."""
        return dict(self._holders)
