"""The words that every room of imlmesh shares: ids, states, limits, errors, plans and messages.

The one rule: pure. Nothing here reads a clock, opens a file or talks to a network.
"""
