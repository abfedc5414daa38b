"""How the mesh speaks: kinds and bodies, msgpack with limits, the topic table, signed envelopes.

The one rule: bytes are verified as they came, before they are parsed. No pydantic here: a node
reads every message through this package and has little memory.
"""
