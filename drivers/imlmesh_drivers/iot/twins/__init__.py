"""Shipped twins of hardware: what `mock` in a policy means, bus by bus.

The one rule: a twin speaks the protocol of its device beneath the real library, so that all code above
it is the code that moves real things; results say `"factory": "mock"`. Each module imports its library
at once and is itself imported when it is needed.
"""
