"""How machines come into the mesh, and get new certificates while they are in.

The one rule: everything that a stranger can make the orchestrator hold has a limit.
"""
