#!/usr/bin/env bash
# setup/esphome.sh: makes .esphome, a venv with ESPHome alone, locked, and prints the path of its
# program. It is the checker of firmware-configs/esphome; 83 packages that have no place in .venv.
# Does nothing, in a few milliseconds, when nothing changed since it last ended well.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
. setup/say.sh

venv=.esphome
# Two at once in one checkout: the second waits and then finds the work done.
exec 9<requirements
flock 9

state=$({ printf '%s\n' "$root" "${PYTHON:-}"; cat requirements/esphome.txt setup/esphome.sh; } | sha256sum)
if [ "$(cat $venv/set-up.txt 2>/dev/null)" != "$state" ] || ! $venv/bin/python -c '' 2>/dev/null; then
    say "installing ESPHome into $venv"
    attempt "rm -r $venv" setup/uv.sh venv --quiet --clear --python "$(setup/python.sh)" $venv
    # These three have no wheels; they are small, and hashed like the others.
    attempt "check the network and: pip config list" setup/uv.sh pip install \
        --python $venv/bin/python --require-hashes --only-binary :all: \
        --no-binary crcmod --no-binary esptool --no-binary paho-mqtt -r requirements/esphome.txt
    printf '%s\n' "$state" >$venv/set-up.txt
    say "done in $SECONDS s"
fi
printf '%s\n' "$root/$venv/bin/esphome"
