"""run - the Python side of the scripts: import a script's program, and call its main().

    run.py [--text] SCRIPT [argument ...]

When a program or a package that it needs cannot be imported, the script is run again with the
reason in $TLSMGR_IMPORT_FAILED: then venv.sh repairs the environment. Should the import fail once
more, it is a defect of the program, and Python shows where. With --text nothing is imported
beforehand and nothing repaired: help, the version, or a command of tlsmgr-postfix that must work
without packages. In a reload tlsmgr-start imports nothing beforehand either: that was tried a
moment ago, and clients wait. When tlsmgr-postfix itself cannot be imported, the checkout is what
broke: one line says so, and how to use Postfix's own tlsmgr without this program.

A reader of the output that has gone is no error: the exit status is 1, and no line is printed.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

NOT_SERVING = 2  # the exit status of tlsmgr-postfix status
FAILED = "TLSMGR_IMPORT_FAILED"
RELOAD = "TLSMGR_RELOAD"  # see tlsmgr.reexec
ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

PROGRAMS = {  # the module with main(), and what it imports only when it has work to do
    "tlsmgr-bench": ("bench.main",),
    "tlsmgr-postfix": ("tlsmgr.install.__main__",),
    "tlsmgr-start": ("tlsmgr.standalone", "tlsmgr.daemon"),
    "tlsmgrctl": ("tlsmgr.ctl.main",),
}


def load(script: str, only_text: bool) -> Callable[[], int]:
    """Return main() of the script's program."""
    module, *others = PROGRAMS[os.path.basename(script)]
    sys.path[:0] = [ROOT, f"{ROOT}/tests"] if module == "bench.main" else [ROOT]
    repaired = os.environ.pop(FAILED, None) is not None
    try:
        for other in [] if only_text or RELOAD in os.environ else others:
            importlib.import_module(other)
        main: Callable[[], int] = importlib.import_module(module).main
    except Exception as error:
        if module == "tlsmgr.install.__main__":
            give_up(f"{type(error).__name__}: {error}".splitlines()[0])
        if repaired or only_text or sys.prefix == sys.base_prefix:
            raise
        os.environ[FAILED] = f"{type(error).__name__}: {error}".splitlines()[0]
        os.execv(script, [script, *sys.argv[1:]])
    return main


def give_up(reason: str) -> NoReturn:
    """End tlsmgr-postfix, which needs no package: a repair of the environment would not help."""
    print(
        f"tlsmgr-postfix: fatal: the checkout {ROOT} is damaged: {reason}; restore it, or use"
        " Postfix's own tlsmgr: postconf -F tlsmgr/unix/command=tlsmgr && postfix reload",
        file=sys.stderr,
    )
    sys.exit(NOT_SERVING if "status" in sys.argv[1:] else 1)


def run(main: Callable[[], int]) -> int:
    """Return the exit status; what was printed has been written by then."""
    try:
        status = main()
    except SystemExit as end:  # argparse, after --help
        status = int(end.code or 0)
    except BrokenPipeError:
        status = 1
    return after_output(status)


def after_output(status: int) -> int:
    """Write what is left of the output. Return the exit status, which is a failure if that fails.

    Say why, unless the program did, or the reader has gone.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the flush when Python ends
        if status != 1 and not isinstance(error, BrokenPipeError):
            program = os.path.basename(sys.argv[0])
            print(f"{program}: fatal: cannot write the output: {error.strerror}", file=sys.stderr)
        return status or 1
    return status


if __name__ == "__main__":
    text = sys.argv[1] == "--text"
    name = sys.argv[2 if text else 1]
    del sys.argv[1 : 3 if text else 2]
    sys.argv[0] = name
    sys.exit(run(load(name, text)))
