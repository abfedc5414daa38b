"""`python -m imlmesh_node FOLDER [--broker ADDRESS:PORT]`.

The one rule: the exit code says it: 0 told to end, 1 could not go on, 2 wrong use, 3 a bad folder.
"""

import sys

from imlmesh_node.main import main
from imlmesh_runtime.process import logged

if __name__ == "__main__":
    sys.exit(logged(lambda: main(sys.argv[1:])))
