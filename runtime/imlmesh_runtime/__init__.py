"""The I/O that several rooms need: links, SQLite, the engine, clocks, keys, paths, logs.

The one rule: no opinions. What to do is decided in cores; this room carries it out.
"""
