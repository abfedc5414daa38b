#!/usr/bin/env bash
# setup/debian.sh PACKAGE...: installs Debian packages as root or through `sudo -n`, and keeps the
# services that they bring from starting, now and at the next boot. Ends with 1 where that is
# impossible; asks nothing.
set -euo pipefail
. "$(dirname "$0")/say.sh"

if ! command -v apt-get >/dev/null; then
    say "no apt-get here; install by this system's own means: $*"
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        say "no right to install; run: sudo apt-get install $*"
        exit 1
    fi
    exec sudo -n bash "$0" "$@"
fi

policy=/usr/sbin/policy-rc.d
kept=$policy.before-imlmesh
mark="# imlmesh set-up: no service starts during this install"

# Renaming keeps the old file exactly, be it a link or odd in its rights. What a killed set-up left
# behind is put right by the next one.
restore() {
    if grep -qsF "$mark" "$policy"; then rm -f "$policy"; fi
    if [ -e "$kept" ] || [ -L "$kept" ]; then mv "$kept" "$policy"; fi
}
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

restore
if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$kept"; fi
printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
chmod 755 "$policy"

# Only its checker is wanted: this file, its own switch, keeps it from acting at any boot.
case " $* " in *" cloud-init "*)
    mkdir -p /etc/cloud
    : >/etc/cloud/cloud-init.disabled
esac

export DEBIAN_FRONTEND=noninteractive
say "updating the package lists"
apt-get -o DPkg::Lock::Timeout=60 update -qq >/dev/null 2>&1 ||
    say "apt-get update failed; trying with the lists that are here"
say "installing $* (their services stay stopped)"
attempt "apt-get update && apt-get install $*" \
    apt-get -o DPkg::Lock::Timeout=60 install -y --no-install-recommends "$@"

for package in "$@"; do
    dpkg -L "$package" | sed -n 's,^/etc/init\.d/,,p' | while read -r service; do
        update-rc.d "$service" disable >/dev/null 2>&1 || say "$service may start at the next boot"
    done
done
