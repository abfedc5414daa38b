"""The agent of one machine: takes dispatches, runs drivers, remembers results until they are settled.

The one rule: the edge is right about the edge; what the journal says happened, happened. Start is
light: nothing heavy is imported before it is needed.
"""
