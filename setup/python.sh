#!/usr/bin/env bash
# setup/python.sh: prints the path of the Python that set-up uses: $PYTHON, else the python3 of
# this machine when it is 3.11 or newer, else a newer one beside it, else Debian's, by apt.
set -euo pipefail
here=$(dirname "$0")
. "$here/say.sh"

find_python() {
    local name
    for name in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        "$name" -c 'import sys; sys.version_info >= (3, 11) or sys.exit(1); print(sys.executable)' \
            2>/dev/null && return
    done
    return 1
}

if ! find_python; then
    say "no Python 3.11 or newer"
    "$here/debian.sh" python3 python3-venv || exit 1
    find_python || { say "try: install Python 3.11 or newer, then: make setup PYTHON=/its/path"; exit 1; }
fi
