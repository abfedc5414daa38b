#!/usr/bin/env bash
# setup/run.sh: makes this checkout ready: Debian packages where they are missing, `.venv` with the
# locked packages, imlmesh itself editable in it. Does nothing, in a few milliseconds, when nothing
# that it depends on has changed since it last ended well.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
. setup/say.sh

# Two at once in one checkout: the second waits and then finds the work done.
exec 9<"$root"
flock 9

PATH=$PATH:/usr/sbin:/usr/local/sbin
missing=()
command -v mosquitto >/dev/null || missing+=(mosquitto)
command -v mosquitto_pub >/dev/null || missing+=(mosquitto-clients)
# networks of namespaces, with a firewall, for tests
command -v ip >/dev/null || missing+=(iproute2)
command -v nft >/dev/null || missing+=(nftables)
# checkers of what we ship: units, user-data
command -v systemd-analyze >/dev/null || missing+=(systemd)
command -v cloud-init >/dev/null || missing+=(cloud-init)
if [ ${#missing[@]} -gt 0 ] && ! setup/debian.sh "${missing[@]}"; then
    say "going on without ${missing[*]}: the tests that need it are skipped"
fi

# The path counts too: a copied or moved checkout must not run the code of the old one.
state=$({ printf '%s\n' "$root" "${PYTHON:-}"; cat requirements/*.txt pyproject.toml setup/*.sh; } | sha256sum)
if [ "$(cat .venv/set-up.txt 2>/dev/null)" = "$state" ] && .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

python=$(setup/python.sh)
version=$("$python" -c 'import platform; print(platform.python_version())')
network="check the network and: pip config list"

if ! .venv/bin/python -c "import platform, sys; sys.exit(platform.python_version() != '$version')" 2>/dev/null; then
    setup/uv.sh --version >/dev/null
    say "making .venv with Python $version"
    attempt "rm -r .venv" setup/uv.sh venv --quiet --clear --python "$python" .venv
fi
rm -f .venv/set-up.txt
say "installing the $(grep -c == requirements/dev.txt) packages of requirements/dev.txt"
attempt "$network" setup/uv.sh pip install --python .venv/bin/python \
    --compile-bytecode --require-hashes --only-binary :all: -r requirements/dev.txt
say "installing imlmesh, editable"
attempt "look at pyproject.toml" setup/uv.sh pip install --python .venv/bin/python \
    --no-deps --no-build-isolation --editable .
printf '%s\n' "$state" >.venv/set-up.txt
say "done in $SECONDS s"
