#!/usr/bin/env bash
# setup/lock.sh: writes the hash-pinned, universal locks of requirements/ from pyproject.toml.
# Only the default index counts: an extra one may lack the wheels of other machines.
set -euo pipefail
cd "$(dirname "$0")/.."
. setup/say.sh

lock() {
    local output=requirements/$1
    shift
    say "locking $output"
    UV_INDEX='' UV_FIND_LINKS='' setup/uv.sh pip compile "$@" --quiet --upgrade --universal \
        --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
        --output-file "$output" >/dev/null
}

lock runtime.txt pyproject.toml
lock dev.txt pyproject.toml --all-extras --group dev
lock peers.txt requirements/peers.in
lock esphome.txt requirements/esphome.in
lock uv.txt - <<<"uv"
