"""What the orchestrator remembers on disk: lifecycle (the truth), output, input.

The one rule: the hot path writes lifecycle alone; everything else is copied from it by the mover.
"""
