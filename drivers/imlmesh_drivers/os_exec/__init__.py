"""The IML module `os_exec`: programs that the node's policy names, processes, and the machine.

The one rule: an argv, never a shell; an environment from zero; and when an action ends, however it
ends, nothing that it started is left (see guardian.py), but for an application that it opened.
"""

from imlmesh_drivers.os_exec.driver import OsExec

__all__ = ["OsExec"]
