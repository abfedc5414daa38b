"""The IML module `filesystem`: files beneath the roots of the node's policy.

The one rule: a reader sees the old file or the new one, never half of it; what an action reported
as written is on the disk. Links are listed and described, never followed (see ../files.py).
"""

from imlmesh_drivers.filesystem.driver import Filesystem

__all__ = ["Filesystem"]
