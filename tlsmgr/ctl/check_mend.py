"""check_mend - the commands that mend what `tlsmgrctl check` finds, for a shell of root

Pure functions that return text. Every name and value is quoted. Nothing is run here.
"""

from __future__ import annotations

import shlex

from tlsmgr.config.caches import CacheSettings
from tlsmgr.ctl.check_facts import Facts, Line
from tlsmgr.status_object import Cache

MIB = 1 << 20
LIMIT_STEP = 64  # MiB
LARGEST_LIMIT = 1024 * 1024  # MiB; the maximum of the parameter
SPARE = 1.2  # times what was needed so far


def path_of(facts: Facts, name: str) -> str:
    return shlex.quote(f"{facts.instance.directory}/{name}")


def dash_c(facts: Facts) -> str:
    return f"-c {shlex.quote(facts.instance.directory)}"


def script(facts: Facts, name: str) -> str:
    return shlex.quote(f"{facts.scripts}/{name}")


def tlsmgrctl(facts: Facts, command: str) -> str:
    """Return a command of tlsmgrctl for the same daemon."""
    socket = f"--socket {shlex.quote(facts.instance.socket)}"
    place = dash_c(facts) if facts.instance.directory else socket
    return f"{script(facts, 'tlsmgrctl')} {place} {command}"


def enable(facts: Facts) -> str:
    return f"{script(facts, 'tlsmgr-postfix')} {dash_c(facts)} enable"


def start_again(facts: Facts) -> str:
    """Return the command that starts it once more."""
    if facts.instance.is_postfix:
        return f"postfix {dash_c(facts)} reload || postfix {dash_c(facts)} start"
    directory = f" {dash_c(facts)}" if facts.instance.directory else ""
    return f"{script(facts, 'tlsmgr-start')}{directory}"


def then_reload(facts: Facts) -> str:
    """Return what follows a change of the configuration; started by hand, it is started again."""
    return f" && postfix {dash_c(facts)} reload" if facts.instance.is_postfix else ""


def own_table(cache_type: str) -> str:
    return f"btree:${{data_directory}}/{cache_type}_scache"


def _append(setting: str, path: str) -> str:
    """Return the command that adds a line to a file, whose last line may lack its newline."""
    return f"printf '\\n%s\\n' {setting} >>{path}"


def set_in_main_cf(facts: Facts, name: str, value: str) -> str:
    setting = shlex.quote(f"{name} = {value}")
    if not facts.instance.is_postfix:
        return _append(setting, path_of(facts, "main.cf"))
    return f"postconf {dash_c(facts)} -e {setting}{then_reload(facts)}"


def set_in_tlsmgr_cf(facts: Facts, name: str, value: str) -> str:
    lines = [line for line in facts.tlsmgr_cf if line.name == name]
    before = "".join(f"{sed(facts, line, 's/^/#/')} && " for line in lines)
    setting = shlex.quote(f"{name} = {value}")
    return f"{before}{_append(setting, path_of(facts, 'tlsmgr.cf'))}{then_reload(facts)}"


def comment_out(facts: Facts, line: Line) -> str:
    return sed(facts, line, "s/^/#/") + then_reload(facts)


def rename(facts: Facts, line: Line, name: str) -> str:
    first = Line(line.name, line.value, line.first, line.first)
    return sed(facts, first, f"s/^[^=]*=/{name} =/") + then_reload(facts)


def sed(facts: Facts, line: Line, action: str) -> str:
    place = f"{line.first}" if line.last == line.first else f"{line.first},{line.last}"
    return f"sed -i {shlex.quote(place + action)} {path_of(facts, 'tlsmgr.cf')}"


def raise_limit(facts: Facts, settings: CacheSettings, factor: float) -> str:
    """Return the command for limits that keep sessions for their whole life."""
    cache = facts.status.caches[settings.cache_type] if facts.status is not None else Cache()
    prefix, factor = f"{settings.cache_type}_tls_session_cache", factor * SPARE
    if settings.entry_limit and cache.entries >= 0.9 * settings.entry_limit:
        number = int(settings.entry_limit * factor)
        return set_in_tlsmgr_cf(facts, f"{prefix}_entry_limit", str(number))
    steps = int(settings.size_limit * factor / MIB) // LIMIT_STEP + 1
    limit = min(steps * LIMIT_STEP, LARGEST_LIMIT)
    return set_in_tlsmgr_cf(facts, f"{prefix}_size_limit", f"{limit}M")
