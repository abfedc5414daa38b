"""`python -m imlmesh_orchestrator`."""

import sys

from imlmesh_orchestrator.main import script

sys.exit(script())
