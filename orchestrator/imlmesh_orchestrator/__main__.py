"""`python -m imlmesh_orchestrator --home DIR --broker ADDRESS:PORT`.

The one rule: the exit code says it: 0 told to end, 1 could not go on, 2 wrong use, 3 bad home.
"""

import sys

from imlmesh_orchestrator.main import main
from imlmesh_runtime.process import logged

if __name__ == "__main__":
    sys.exit(logged(main))
