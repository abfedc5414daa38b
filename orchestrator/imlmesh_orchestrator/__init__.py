"""The orchestrator: takes plans, places their actions on nodes, remembers what came of them.

The one rule: the core decides, the shell does; the store is the truth. Drivers are never imported
here: what a node can do is known from its manifest alone.
"""
