"""The names of a pin: its BCM number, and all the ways in which people write it.

The one rule: two spellings of one pin are one claim, on orchestrator and node alike. Deliberately
absent: which pins a node lets anybody use; its policy says that.
"""

import re

#: BCM numbers of the largest header
PINS = range(54)
#: physical place on the 40-pin header to BCM number (Raspberry Pi documentation, GPIO)
BOARD = {
    **{3: 2, 5: 3, 7: 4, 8: 14, 10: 15, 11: 17, 12: 18, 13: 27, 15: 22, 16: 23, 18: 24, 19: 10},
    **{21: 9, 22: 25, 23: 11, 24: 8, 26: 7, 27: 0, 28: 1, 29: 5, 31: 6, 32: 12, 33: 13, 35: 19},
    **{36: 16, 37: 26, 38: 20, 40: 21},
}
_CLAIM = "gpio:"
# those of gpiozero, but for WiringPi's
_SPELLING = re.compile(
    r"(?:(?:GPIO|BCM)?0*([0-9]{1,2})|(?:BOARD|J8:)0*([0-9]{1,2}))", re.IGNORECASE
)


def pin_number(name: str) -> int | None:
    """The BCM number of `17`, `GPIO17`, `BCM17`, `BOARD11` or `J8:11`; None for what is no pin."""
    found = _SPELLING.fullmatch(name)
    if found is None:
        return None
    number, place = found.groups()
    pin = BOARD.get(int(place)) if number is None else int(number)
    return pin if pin in PINS else None


def canonical_claim(claim: str) -> str:
    """`gpio:` with the BCM number for a pin however it is written; any other claim as it is."""
    if not claim.startswith(_CLAIM):
        return claim
    pin = pin_number(claim[len(_CLAIM) :])
    return claim if pin is None else f"{_CLAIM}{pin}"
