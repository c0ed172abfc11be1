# Sourced by the other scripts. Finds the checkout, makes its virtual environment, runs programs.
#
# Sets $self, this script's real path; $root, the checkout; $python, the environment's interpreter.
#
# use_venv EXTRAS     Have $root/.venv hold what setup.cfg requires ("" or with "[test]"). When it
#                     is ready, this starts no process. Else it is made or repaired.
# check_venv EXTRAS   The same, and every package is imported once (0.3 s).
# use_tools DIRECTORY Have $python be a new environment in DIRECTORY, made with $base.
# any_python          Set $python to an interpreter, with or without the packages.
# print_version       Print the script's name and the version.
# run ARGUMENTS       Become the program that this script stands for.
# run_text ARGUMENTS  The same for a call that needs none of the packages.
#
# Root runs this, so nothing is run from the current directory, and the caller's environment and
# pip settings are left out. pip reads /etc/pip.conf, which is root's own: a mirror goes there.
# It installs wheels whose hashes are in scripts/locks/, and nothing else. With TLSMGR_BUILD=1 it
# may compile a package from its source, whose hash is there too. This checkout itself is not
# installed: a path file makes the environment find it.

self=$(readlink -f -- "$0")
root=$(dirname -- "$(dirname -- "$self")")
python=$root/.venv/bin/python
environment=$root/scripts/environment.py
locks=$root/scripts/locks

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    say "fatal: $*"
    exit 1
}

# Run a command from / with a small environment. Of the caller's only the search path and a proxy
# are kept; temporary files and caches go below .venv.
clean() (
    cd / && exec env -i "PATH=$PATH" LC_ALL=C.UTF-8 "HOME=$root/.venv/tmp" \
        ${own_tmp:+"TMPDIR=$root/.venv/tmp"} \
        ${http_proxy:+"http_proxy=$http_proxy"} ${HTTP_PROXY:+"HTTP_PROXY=$HTTP_PROXY"} \
        ${https_proxy:+"https_proxy=$https_proxy"} ${HTTPS_PROXY:+"HTTPS_PROXY=$HTTPS_PROXY"} \
        ${no_proxy:+"no_proxy=$no_proxy"} ${NO_PROXY:+"NO_PROXY=$NO_PROXY"} "$@"
)

# Run a Python with these arguments. An empty file, as a full disk leaves one, would be run as a
# shell script, with success.
run_python() { # PYTHON ...
    [ -s "$1" ] && clean "$@" 2>/dev/null
}

# Set $base to a Python 3.10 or later: $PYTHON, or else the system's, or else the first in PATH.
# The system's is root's alone, as a daemon's should be, and in general the fastest. One that can
# import the modules that are named goes before one that cannot.
find_base() { # MODULES
    if [ -n "${PYTHON:-}" ]; then
        set -- "$1" "$PYTHON"
    else
        set -- "$1" /usr/bin/python3 python3
    fi
    modules=$1
    shift
    for needed in "$modules" sys; do
        for base; do
            base=$(command -v -- "$base") || continue
            case $base in
                /*) ;;
                *) base=$PWD/$base ;;
            esac
            run_python "$base" -I -c \
                "import sys, $needed; sys.exit(sys.version_info < (3, 10))" && return
        done
    done
    [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python 3.10 or later"
    die 'needs Python 3.10 or later (on Debian: apt-get install python3 python3-venv);' \
        'PYTHON=/path/to/python3 names one'
}

any_python() {
    is_ready '' && run_python "$python" -I -c '' && return
    find_base sys
    python=$base
}

# Print the names of the lock files for the extras. This starts no process, as is_ready must not.
lock_names() { # EXTRAS
    lock_list=${1#[}
    lock_list=${lock_list%]}
    printf 'run'
    while [ -n "$lock_list" ]; do
        printf ' %s' "${lock_list%%,*}"
        case $lock_list in
            *,*) lock_list=${lock_list#*,} ;;
            *) lock_list= ;;
        esac
    done
}

# The stamp names the checkout and the interpreter, and is as new as what was installed.
is_ready() { # EXTRAS
    stamp=$root/.venv/installed$1
    [ -x "$python" ] && [ -r "$stamp" ] && [ ! "$root/setup.cfg" -nt "$stamp" ] || return 1
    for lock in $(lock_names "$1"); do
        [ ! "$locks/$lock.lock" -nt "$stamp" ] || return 1
    done
    { IFS= read -r place && IFS= read -r interpreter; } <"$stamp" || return 1
    [ "$place" = "$root" ] && [ "$python" -ef "$interpreter" ]
}

is_chosen() { # whether $PYTHON, if set, is what .venv is made with
    [ -z "${PYTHON:-}" ] || [ "$PYTHON" -ef "$python" ] && return
    find_base sys
    [ "$(clean "$base" -I "$environment" base)" -ef "$python" ]
}

use_venv() { # EXTRAS
    if [ -z "${TLSMGR_IMPORT_FAILED:-}" ] && is_ready "$1"; then
        is_chosen && return
        die "$root/.venv is made with $(readlink -f -- "$python"), not with $PYTHON;" \
            "to change that: rm -r $root/.venv"
    fi
    ( # one at a time: the lock is on the checkout's directory, and ends with this subshell
        flock -n 9 || {
            say "waits for another one that prepares $root/.venv"
            flock 9
            [ -n "${TLSMGR_IMPORT_FAILED:-}" ] || ! is_ready "$1" || exit 0
        }
        prepare "$1"
    ) 9<"$root" || exit 1
}

check_venv() { # EXTRAS
    if is_ready "$1"; then
        TLSMGR_IMPORT_FAILED=$(clean "$python" -I "$environment" check "$1" 2>&1)
    fi
    use_venv "$1"
    unset TLSMGR_IMPORT_FAILED
}

# Make or repair .venv. Called with the lock.
prepare() { # EXTRAS
    [ ! -e "$root/packaged" ] || refuse "$1"
    if [ -e "$root/.venv" ]; then
        [ -w "$root/.venv" ] || unwritable "$root/.venv"
        say "repairs or updates $root/.venv${TLSMGR_IMPORT_FAILED:+ ($TLSMGR_IMPORT_FAILED)}"
    fi
    fresh=
    if ! is_chosen || ! run_python "$python" -I -c \
        'import sys, pip; sys.exit(sys.version_info < (3, 10))'; then
        create
    fi
    install "$1"
    if ! problem=$(clean "$python" -I "$environment" check "$1" 2>&1); then
        [ -z "$fresh" ] || die "$problem"
        create
        install "$1"
        problem=$(clean "$python" -I "$environment" check "$1" 2>&1) || die "$problem"
    fi
    clean "$python" -I "$environment" stamp "$1" || die "cannot write into $root/.venv"
}

# In a package the environment is part of it; its mark has the command that installs it again.
refuse() { # EXTRAS
    [ -z "$1" ] || die "the package does not have what this needs; a checkout fetches it"
    die "$root is damaged${TLSMGR_IMPORT_FAILED:+ ($TLSMGR_IMPORT_FAILED)}; to repair it:" \
        "$(cat "$root/packaged")"
}

unwritable() { # PATH
    [ ! -O "$1" ] || die "cannot write to $1: is its file system mounted read-only?"
    die "cannot write to $1: run this once as $(stat -c %U -- "$1"), whose it is"
}

create() {
    [ -w "$root" ] || unwritable "$root"
    find_base 'venv, ensurepip'
    run_python "$base" -I -c 'import venv, ensurepip' ||
        die "$base lacks its venv module (on Debian: apt-get install python3-venv)"
    rm -rf -- "$root/.venv" || unwritable "$root/.venv"
    say "makes a virtual environment in $root/.venv with $base"
    own_tmp=yes # ensurepip leaves its files when control-C ends it
    mkdir -p -- "$root/.venv/tmp" && problem=$(clean "$base" -I -m venv "$root/.venv" 2>&1) || {
        rm -rf -- "$root/.venv"
        die "cannot make $root/.venv with $base: $(printf '%s' "$problem" | tail -n 1)"
    }
    own_tmp=
    fresh=yes
}

use_tools() { # DIRECTORY
    own_tmp=yes
    mkdir -p -- "$root/.venv/tmp"
    clean "$base" -I -m venv --clear "$1" >/dev/null 2>&1 ||
        die "$base lacks its venv module (on Debian: apt-get install python3-venv)"
    python=$1/bin/python
}

fetch() { # LOG NAME-OF-LOCK ...
    log=$1
    shift
    for lock; do
        set -- "$@" --requirement "$locks/$lock.lock"
        shift
    done
    clean "$python" -I -m pip --isolated --disable-pip-version-check --no-input --no-cache-dir \
        --timeout 60 --retries 3 --log "$log" install --require-hashes $how "$@"
}

# pip shows its progress on a terminal; when it fails, its full log stays in .venv.
fetch_all() { # NAME-OF-LOCK ...
    if [ -t 2 ]; then
        fetch "$root/.venv/pip.log" "$@" >&2 || explain
    else
        fetch "$root/.venv/pip.log" "$@" >/dev/null 2>&1 || explain
    fi
}

install() { # EXTRAS
    rm -rf -- "$root/.venv/pip.log" "$root/.venv/tmp"
    mkdir -p -- "$root/.venv/tmp" || die "cannot write into $root/.venv"
    names=$(clean "$python" -I "$environment" names "$1") || die "cannot read $root/setup.cfg"
    say "fetches what is missing of $names from the Python Package Index"
    own_tmp=yes
    how='--only-binary :all:'
    if [ "${TLSMGR_BUILD:-}" = 1 ]; then
        fetch_all build
        how=--no-build-isolation
    fi
    # shellcheck disable=SC2046
    fetch_all $(lock_names "$1")
    own_tmp=
    rm -rf -- "$root/.venv/tmp" "$root/.venv/pip.log"
}

# The one line of what to do about pip's failure.
explain() {
    rm -rf -- "$root/.venv/tmp"
    if grep -q 'No space left on device' "$log"; then
        die "no space left for $root/.venv"
    elif grep -q 'CERTIFICATE_VERIFY_FAILED' "$log"; then
        die 'cannot verify the certificate of the Python Package Index; "cert = FILE" in' \
            "/etc/pip.conf names other authorities; details are in $log"
    elif grep -qE 'name resolution|unreachable|NewConnectionError|refused|timed out|NameResol' \
        "$log"; then
        die 'cannot reach the Python Package Index: is there a network? A proxy goes into' \
            "https_proxy, a mirror into /etc/pip.conf; details are in $log"
    elif grep -q 'DO NOT MATCH THE HASHES' "$log"; then
        die 'the Python Package Index, or a mirror, gave a file that is not the one in' \
            "$locks; nothing of it was installed; details are in $log"
    elif grep -qE "error: command '|No such file or directory: '(gcc|cc|.*-gcc)'|Python\.h" \
        "$log"; then
        die 'a package has to be compiled for this Python (on Debian: apt-get install gcc' \
            "python3-dev); details are in $log"
    fi
    missing=$(sed -n 's/.*ERROR: No matching distribution found for \([^ =]*\).*/\1/p' "$log")
    if [ -n "$missing" ] && [ "${TLSMGR_BUILD:-}" != 1 ]; then
        die "there is no ready-made file of $missing for this Python and this machine;" \
            'TLSMGR_BUILD=1 has it compiled, or PYTHON=/path/to/python3 names another Python;' \
            "details are in $log"
    fi
    die "$(sed -n 's/^[^ ]* *ERROR: //p' "$log" | head -n 1); details are in $log"
}

print_version() {
    sed -n "s/^__version__ = \"\(.*\)\"\$/${0##*/} \1/p" "$root/tlsmgr/__init__.py"
}

run() {
    exec "$python" -I "$root/scripts/run.py" "$self" "$@"
}

run_text() {
    exec "$python" -I "$root/scripts/run.py" --text "$self" "$@"
}

# Whether the arguments ask for nothing but help or the version, which need no environment.
asks_for_text() {
    for argument; do
        case $argument in
            -h | --help | --version) return ;;
            --) return 1 ;;
        esac
    done
    return 1
}
