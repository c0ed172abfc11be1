# Sourced by the other scripts: makes the virtual environment in the checkout when needed.
#
# use_venv EXTRAS     installs this checkout ("" or "[test]") into $root/.venv, once per change of
#                     setup.cfg, and sets $python. Needs python3 3.10 or later with its venv module;
#                     PYTHON names another interpreter.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
python=$root/.venv/bin/python

die() {
    printf '%s: fatal: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

use_venv() {
    stamp=$root/.venv/installed$1
    if [ -e "$stamp" ] && [ ! "$root/setup.cfg" -nt "$stamp" ] && [ -x "$python" ]; then
        return
    fi
    base=${PYTHON:-python3}
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        die "Python 3.10 or later is needed; PYTHON=/path/to/python3 names one"
    [ -x "$python" ] || "$base" -m venv "$root/.venv" ||
        die "cannot make a virtual environment (on Debian: apt-get install python3-venv)"
    "$python" -m pip install -qq --disable-pip-version-check --editable "$root$1" >&2 ||
        die "cannot install what tlsmgr needs; see the messages above"
    : >"$stamp"
}
