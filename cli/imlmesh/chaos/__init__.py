"""A mesh of real processes that is broken on purpose, and what became of its work.

The one rule: what is told was seen from outside: committed changes, lines in files of nodes, a clock
of our own. Deliberately absent: any switch inside the processes that are broken.
"""
