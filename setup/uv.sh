#!/usr/bin/env bash
# setup/uv.sh ARGUMENT...: runs uv with the package index that pip is configured with, so that a
# machine behind a mirror needs no second configuration. uv is the one of PATH, else it is installed
# by pip, hash-pinned, into the private venv `.uv`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
. "$here/say.sh"

private=$root/.uv
pins=$root/requirements/uv.txt

install_uv() {
    local python
    python=$("$here/python.sh")
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$here/debian.sh" python3-venv || exit 1
    fi
    say "installing uv into .uv"
    attempt "rm -r .uv; apt-get install python3-venv" "$python" -m venv --clear "$private"
    attempt "check the network and: pip config list" \
        "$private/bin/python" -m pip install -q --require-hashes --only-binary :all: -r "$pins"
    cp "$pins" "$private/installed.txt"
}

if uv --version >/dev/null 2>&1; then
    uv=uv
    pip=("$("$here/python.sh")" -m pip)
else
    uv=$private/bin/uv
    pip=("$private/bin/python" -m pip)
    if ! cmp -s "$pins" "$private/installed.txt" || ! "$uv" --version >/dev/null 2>&1; then
        install_uv
    fi
fi

settings=$("${pip[@]}" config list 2>/dev/null) || settings=

# pass_on PIP_SETTING UV_VARIABLE SEPARATOR: what the environment says already, even that it
# is empty, stands.
pass_on() {
    local section value
    [ -z "${!2+set}" ] || return 0
    for section in :env: install global; do
        value=$(sed -n "s/^$section\.$1='\(.*\)'$/\1/p" <<<"$settings" | sed 's/\\n/ /g' | xargs)
        if [ -n "$value" ]; then
            export "$2=${value// /$3}"
            return 0
        fi
    done
}

pass_on index-url UV_DEFAULT_INDEX " "
pass_on extra-index-url UV_INDEX " "
pass_on find-links UV_FIND_LINKS ,
pass_on trusted-host UV_INSECURE_HOST " "
pass_on cert SSL_CERT_FILE " "
pass_on default-timeout UV_HTTP_TIMEOUT " "
# pip's own rule: the best version of all indexes. The hashes of the locks make it safe.
export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match}
export UV_PYTHON_DOWNLOADS=never
exec "$uv" "$@"
