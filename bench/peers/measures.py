"""What every side measures, and in what sizes.

Loaded by the Python of `.peers` too: the standard library alone.
"""

from enum import StrEnum

TRIPS = 50
FLOOD = 2_000
WAVES = 10
WIDTH = 100


class Measure(StrEnum):
    #: one action and its result, TRIPS times, one at a time
    TRIPS = "trips"
    #: FLOOD independent actions at once
    FLOOD = "flood"
    #: WAVES waves of WIDTH actions, each wave after the last
    WAVES = "waves"
