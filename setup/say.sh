# Sourced by the other set-up scripts: how set-up talks, and how it fails.
# Everything goes to stderr, because python.sh answers on stdout.

say() { printf 'set-up: %s\n' "$*" >&2; }

# attempt HINT COMMAND...: runs the command silently; when it fails, says which one, shows the end
# of its output and what to try, and ends the script.
attempt() {
    local hint=$1 log status=0
    shift
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        say "FAILED ($status): $*"
        tail -n 20 "$log" | sed 's/^/    | /' >&2
        say "try: $hint"
    fi
    rm -f "$log"
    [ "$status" -eq 0 ] || exit "$status"
}
