"""`python -m imlmesh_node FOLDER`."""

import sys

from imlmesh_node.main import script

if __name__ == "__main__":
    sys.exit(script(sys.argv[1:]))
