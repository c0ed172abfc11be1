# Sourced by the other scripts: makes the virtual environment in the checkout when needed.
#
# use_venv EXTRAS     installs this checkout ("" or "[test]") into $root/.venv, once per change of
#                     setup.cfg, and sets $python. Needs Python 3.10 or later with its venv module:
#                     $PYTHON, or else the system's, or else the first in PATH. The system's is
#                     root's alone, as a daemon's should be, and in general the fastest.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
python=$root/.venv/bin/python

die() {
    printf '%s: fatal: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

find_base() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- /usr/bin/python3 python3
    fi
    for needed in ensurepip sys; do # without ensurepip, venv itself says what is missing
        for base; do
            "$base" -c "import sys, $needed; sys.exit(sys.version_info < (3, 10))" 2>/dev/null &&
                return
        done
    done
    die "Python 3.10 or later is needed; PYTHON=/path/to/python3 names one"
}

use_venv() {
    stamp=$root/.venv/installed$1
    if [ -e "$stamp" ] && [ ! "$root/setup.cfg" -nt "$stamp" ] && [ -x "$python" ]; then
        return
    fi
    if [ ! -x "$python" ]; then
        find_base
        "$base" -m venv "$root/.venv" ||
            die "cannot make a virtual environment (on Debian: apt-get install python3-venv)"
    fi
    "$python" -m pip install -qq --disable-pip-version-check --editable "$root$1" >&2 ||
        die "cannot install what tlsmgr needs; see the messages above"
    : >"$stamp"
}
