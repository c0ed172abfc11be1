"""load - the configuration: main.cf, tlsmgr.cf and the -o options, read once and frozen.

The daemon calls `load` before it forks and while it may still read the files. A changed file takes
effect at the next start, which `postfix reload` brings about.

Names and values come from, later ones winning: the defaults of a start by hand (`defaults`),
main.cf, tlsmgr.cf for the parameters that are ours, and -o options for either. All of them can
refer to each other. main.cf may hold any name; one of ours in main.cf is ignored with a warning.

Fatal, with Postfix's texts: a missing main.cf unless it is optional, a line in it that is no
assignment, and a value in it that cannot be expanded, is of the wrong type or is out of bounds.
Nothing about the parameters that are ours is fatal: see `tlsmgr_cf`.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from tlsmgr import log
from tlsmgr.config import syntax, tlsmgr_cf
from tlsmgr.config.expand import Malformed, compatibility_level, expand
from tlsmgr.config.mail_params import DEFAULTS
from tlsmgr.config.parameters import OURS, POSTFIX
from tlsmgr.config.syntax import NOTHING, Warn
from tlsmgr.config.tlsmgr_cf import OUR_NAMES, Setting
from tlsmgr.config.values import Parameter, Value, convert
from tlsmgr.log import Fatal
from tlsmgr.logsockets import FACILITIES

DEFAULT_DIRECTORY = "/etc/postfix"
"""The directory of main.cf unless the environment names another."""

_PROCESS_ID_FROM = "debugger_command"
"""The first parameter that can refer to $process_id; the last of those common to all programs."""


@dataclass(frozen=True)
class Configuration:
    """The values of all parameters in the table, checked; `directory` is where main.cf is.

    `names` are all names of main.cf and the options, with their values as they are written.
    `places` has where the parameters of our own are set, for log lines: a file and line, or -o.
    The files were read after `began`, which is of time.time().

    Each accessor takes the name of a parameter of its type. KeyError or TypeError for another name
    is a defect of the caller.
    """

    directory: str
    values: Mapping[str, Value]
    names: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    began: float = 0.0

    def place(self, name: str) -> str:
        """Return the beginning of a log line about the value of a parameter of our own."""
        return f"{self.places[name]}: {name}" if name in self.places else name

    def text(self, name: str) -> str:
        """Return the value of a TEXT or PATH parameter."""
        value = self.values[name]
        if not isinstance(value, str):
            raise TypeError(f"{name} is no text")
        return value

    def number(self, name: str) -> int:
        """Return the value of a NUMBER parameter, or the bytes of a SIZE parameter."""
        value = self.values[name]
        if isinstance(value, str | bool):
            raise TypeError(f"{name} is no number")
        return value

    def seconds(self, name: str) -> int:
        """Return the value of a TIME parameter, in seconds."""
        return self.number(name)

    def milliseconds(self, name: str) -> int:
        """Return the value of a SHORT_TIME parameter, in milliseconds."""
        return self.number(name)

    def flag(self, name: str) -> bool:
        """Return the value of a FLAG parameter."""
        value = self.values[name]
        if not isinstance(value, bool):
            raise TypeError(f"{name} is no flag")
        return value


def directory_of(environment: Mapping[str, str]) -> str:
    """Return the directory of main.cf: $MAIL_CONFIG, or Postfix's default."""
    return environment.get("MAIL_CONFIG", DEFAULT_DIRECTORY)


def state_directory(environment: Mapping[str, str]) -> str:
    """Return where a start by hand keeps its files: below $XDG_STATE_HOME, or ~/.local/state."""
    base = environment.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification says to ignore such a value
        base = os.path.expanduser("~/.local/state")
    return f"{base}/tlsmgr"


def load(
    directory: str,
    warn: Warn,
    error: Warn = log.error,
    *,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, str] = NOTHING,
    optional: bool = False,
    process_name: str = "tlsmgr",
    service_name: str = "tlsmgr",
) -> Configuration:
    """Return the whole configuration, checked. Raise Fatal for a mistake in main.cf.

    `warn` gets the text of each warning, `error` that of each mistake in a parameter of our own.
    `overrides` are the arguments of -o, in order. `defaults` are values that main.cf can override.
    `optional` says that main.cf may be missing; tlsmgr.cf always may.
    """
    began = time.time()
    given = {"process_name": process_name, "config_directory": directory}
    names = {**defaults, **_main_cf(f"{directory}/main.cf", given, optional, warn)}
    ours = tlsmgr_cf.load(f"{directory}/tlsmgr.cf", warn, error)
    options = [_split_option(option) for option in overrides]
    for name, value in options:
        names[name] = value
        if name in OUR_NAMES:
            ours[name] = Setting(value, tlsmgr_cf.OPTION)
    names.update((name, setting.value) for name, setting in ours.items())
    tlsmgr_cf.warn_of_unknown(dict(options), names.values(), warn)
    names["service_name"] = service_name
    names = {**DEFAULTS, **names}
    values: dict[str, Value] = {}
    for row in POSTFIX:
        if row.name == _PROCESS_ID_FROM:
            names["process_id"] = str(os.getpid())
        values[row.name] = _evaluate(row, values, names, warn)
        _check(row.name, values, f"{directory}/main.cf")
    for row in OURS:
        values[row.name] = tlsmgr_cf.evaluate(row, ours.get(row.name), names, error)
        names.setdefault(row.name, row.default)
    places = {name: setting.place for name, setting in ours.items()}
    return Configuration(
        directory,
        MappingProxyType(values),
        MappingProxyType(names),
        MappingProxyType(places),
        began,
    )


def _main_cf(path: str, given: Mapping[str, str], optional: bool, warn: Warn) -> dict[str, str]:
    """Return the names of main.cf on top of those given, without those that are ours."""
    try:
        names = syntax.load(path, warn, given)
    except FileNotFoundError as error:
        if not optional:
            raise Fatal(f"open {path}: {error.strerror}") from None
        return dict(given)
    for name in sorted(OUR_NAMES & names.keys()):
        warn(f"{path}: ignoring {name}: this parameter belongs in tlsmgr.cf")
        del names[name]
    return names


def _split_option(option: str) -> tuple[str, str]:
    """Return name and value of the argument of a -o option."""
    try:
        return syntax.split_nameval(option)
    except ValueError as error:
        raise Fatal(f'invalid "-o {option}" option value: {error}') from None


def _evaluate(
    row: Parameter, values: Mapping[str, Value], names: dict[str, str], warn: Warn
) -> Value:
    """Return the value of one parameter of Postfix; `values` are those of the rows before it.

    A default that is used becomes a name for the parameters that follow.
    """
    text = expand(names.get(row.name, _default_of(row, values)), names, warn)
    names.setdefault(row.name, text)
    return convert(row.kind, row.name, text, row.minimum, row.maximum)


def _default_of(row: Parameter, values: Mapping[str, Value]) -> str:
    """Return the default of a parameter, not expanded; host names depend on the machine."""
    if row.name == "myhostname":
        host = os.uname().nodename
        return host if "." in host else f"{host}.${{mydomain?{{$mydomain}}:{{localdomain}}}}"
    if row.name == "mydomain":
        return str(values["myhostname"]).partition(".")[2] or "localdomain"
    return row.default


def _check(name: str, values: Mapping[str, Value], path: str) -> None:
    """Check the rules beyond type and bounds that two parameters of main.cf have."""
    text = str(values[name])
    if name == "compatibility_level":
        try:
            compatibility_level(text)
        except Malformed as error:
            raise Fatal(str(error)) from None
    if name == "syslog_facility" and text not in FACILITIES:
        raise Fatal(f"file {path}: parameter {name}: unrecognized value: {text}")
