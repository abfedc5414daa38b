"""The pure side of the orchestrator: an event in, changes and commands out.

The one rule: no clock, no randomness, no I/O; time, ids and dice arrive inside events.
"""
