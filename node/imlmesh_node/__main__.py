"""`python -m imlmesh_node FOLDER [--broker ADDRESS:PORT]`.

The one rule: the exit code says it: 0 told to end, 1 could not go on, 2 wrong use, 3 a bad folder.
"""

import gc
import sys

# what a start imports and makes stays for good: to look for garbage meanwhile costs a sixth of it
gc.disable()  # until `process.tune`

from imlmesh_node.main import main  # noqa: E402 - see above
from imlmesh_runtime.process import logged  # noqa: E402

if __name__ == "__main__":
    sys.exit(logged(lambda: main(sys.argv[1:])))
