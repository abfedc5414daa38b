"""The pure side of a node: events in, changes and commands out.

The one rule: no clock, no randomness, no I/O; time and dice arrive inside events.
"""
