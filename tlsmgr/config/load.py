"""The configuration: main.cf, tlsmgr.cf and the -o options, read once and frozen.

`load` is what the daemon calls, before it forks and while it may still read the files. A changed
file takes effect at the next start, which is what `postfix reload` brings about.

Names and values come from, later ones winning: what this program was built to assume when a person
starts it (`defaults`), main.cf, tlsmgr.cf for the parameters that are ours, and -o options for
either. All of them can refer to each other. main.cf may hold any name; a name in tlsmgr.cf that is
not ours, and one of ours in main.cf, is ignored with a warning.

Fatal: a missing main.cf unless it is optional, a line that is no assignment, a value that cannot
be expanded or is of the wrong type or out of bounds. The texts are Postfix's.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tlsmgr.config import syntax
from tlsmgr.config.common import DEFAULTS
from tlsmgr.config.expand import Malformed, compatibility_level, expand
from tlsmgr.config.parameters import OURS, PARAMETERS
from tlsmgr.config.syntax import NOTHING, Warn
from tlsmgr.config.values import Parameter, Value, convert
from tlsmgr.log import Fatal
from tlsmgr.logsockets import FACILITIES

DEFAULT_DIRECTORY = "/etc/postfix"
"""Where main.cf is when nobody says otherwise."""

PROCESS_ID_FROM = "debugger_command"
"""The first parameter that can refer to $process_id; the last of those common to all programs."""

OUR_NAMES = frozenset(parameter.name for parameter in OURS)


@dataclass(frozen=True)
class Configuration:
    """The values of all parameters in the table, checked; `directory` is where main.cf is.

    Each accessor takes the name of a parameter of its type; KeyError or TypeError for another is
    a defect of the caller.
    """

    directory: str
    values: Mapping[str, Value]

    def text(self, name: str) -> str:
        """The value of a TEXT parameter."""
        value = self.values[name]
        if not isinstance(value, str):
            raise TypeError(f"{name} is no text")
        return value

    def number(self, name: str) -> int:
        """The value of a NUMBER or BYTES parameter."""
        value = self.values[name]
        if isinstance(value, str | bool):
            raise TypeError(f"{name} is no number")
        return value

    def seconds(self, name: str) -> int:
        """The value of a TIME parameter, in seconds."""
        return self.number(name)

    def flag(self, name: str) -> bool:
        """The value of a FLAG parameter."""
        value = self.values[name]
        if not isinstance(value, bool):
            raise TypeError(f"{name} is no flag")
        return value


def directory_of(environment: Mapping[str, str]) -> str:
    """The directory with main.cf: $MAIL_CONFIG, or Postfix's default."""
    return environment.get("MAIL_CONFIG", DEFAULT_DIRECTORY)


def load(
    directory: str,
    warn: Warn,
    *,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, str] = NOTHING,
    optional: bool = False,
    process_name: str = "tlsmgr",
    service_name: str = "tlsmgr",
) -> Configuration:
    """Read and check the whole configuration.

    `overrides` are the arguments of -o, in order. `defaults` lie under main.cf. `optional` says
    that main.cf may be missing; tlsmgr.cf always may. `warn` gets the text of each warning.
    Fatal for anything wrong.
    """
    given = {"process_name": process_name, "config_directory": directory}
    names = {**defaults, **main_cf(f"{directory}/main.cf", given, optional, warn)}
    names.update(tlsmgr_cf(f"{directory}/tlsmgr.cf", warn))
    for option in overrides:
        name, value = override(option)
        names[name] = value
    names["service_name"] = service_name
    names = {**DEFAULTS, **names}
    values: dict[str, Value] = {}
    for row in PARAMETERS:
        if row.name == PROCESS_ID_FROM:
            names["process_id"] = str(os.getpid())
        values[row.name] = evaluate(row, values, names, warn)
        check(row.name, values, f"{directory}/main.cf")
    return Configuration(directory, MappingProxyType(values))


def main_cf(path: str, given: Mapping[str, str], optional: bool, warn: Warn) -> dict[str, str]:
    """The names given before and those of main.cf, without those that belong in tlsmgr.cf."""
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


def tlsmgr_cf(path: str, warn: Warn) -> dict[str, str]:
    """The names of tlsmgr.cf that are ours."""
    try:
        names = syntax.load(path, warn)
    except FileNotFoundError:
        return {}
    for name in sorted(names.keys() - OUR_NAMES):
        warn(f"{path}: ignoring unknown parameter: {name}")
        del names[name]
    return names


def override(option: str) -> tuple[str, str]:
    """Split the argument of a -o option into name and value."""
    try:
        return syntax.split_nameval(option)
    except ValueError as error:
        raise Fatal(f'invalid "-o {option}" option value: {error}') from None


def evaluate(
    row: Parameter, values: Mapping[str, Value], names: dict[str, str], warn: Warn
) -> Value:
    """The value of one parameter, after those in `values`.

    A default that is used becomes a name for the parameters that follow.
    """
    text = expand(names.get(row.name, default_of(row, values)), names, warn)
    names.setdefault(row.name, text)
    return convert(row.kind, row.name, text, row.minimum, row.maximum)


def default_of(row: Parameter, values: Mapping[str, Value]) -> str:
    """The default of a parameter, not expanded. Names of hosts depend on machine and domain."""
    if row.name == "myhostname":
        host = os.uname().nodename
        return host if "." in host else f"{host}.${{mydomain?{{$mydomain}}:{{localdomain}}}}"
    if row.name == "mydomain":
        return str(values["myhostname"]).partition(".")[2] or "localdomain"
    return row.default


def check(name: str, values: Mapping[str, Value], path: str) -> None:
    """What else must hold of two parameters of main.cf, which is at `path`."""
    text = str(values[name])
    if name == "compatibility_level":
        try:
            compatibility_level(text)
        except Malformed as error:
            raise Fatal(str(error)) from None
    if name == "syslog_facility" and text not in FACILITIES:
        raise Fatal(f"file {path}: parameter {name}: unrecognized value: {text}")
