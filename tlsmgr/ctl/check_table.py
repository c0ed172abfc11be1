"""check_table - the checks of `tlsmgrctl check`: one row and one function each

Pure functions from the facts to findings. A finding is one sentence of what is wrong, one of why it
matters, and a command that mends it, to be pasted into a shell of root. Add a check: a row in
CHECKS, a case in the test, and nothing else. Nothing is said about what is a matter of taste.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tlsmgr.config.postfix_names import is_postfix_name
from tlsmgr.config.tlsmgr_cf import OUR_NAMES
from tlsmgr.ctl import check_mend as mend
from tlsmgr.ctl.check_facts import Facts, FileFact
from tlsmgr.ctl.quantities import size, span
from tlsmgr.install.launcher import NAME
from tlsmgr.status_object import IN_PLACE, SERVING, Cache

DAY = 86400
LEAST_SHARED_MEMORY = 8 << 20  # bytes; the daemon's part takes less than 1 MiB
UNKNOWN_NAMES = 20  # requests for ticket keys that nobody knows, before it is no accident
UNKNOWN_SHARE = 0.05  # of all requests for ticket keys


class Finding(NamedTuple):
    """What is wrong, why it matters, and the command that mends it."""

    what: str
    why: str
    command: str


class Check(NamedTuple):
    """A row: the name, for scripts and the manual page; what it looks at; the function."""

    name: str
    summary: str
    find: Callable[[Facts], Iterator[Finding]]


def _configuration(facts: Facts) -> Iterator[Finding]:
    if facts.problem:
        yield Finding(
            f"{facts.problem}.",
            "With this configuration tlsmgr does not start.",
            f'"${{EDITOR:-vi}}" {mend.path_of(facts, "main.cf")} && {mend.start_again(facts)}',
        )


def _enabled(facts: Facts) -> Iterator[Finding]:
    if facts.service is not None and facts.service.command != NAME:
        yield Finding(
            f"The tlsmgr service in {facts.instance.directory}/master.cf runs"
            f" {facts.service.command}, not {NAME}.",
            "Postfix uses another tlsmgr, and tlsmgr.cf has no effect.",
            mend.enable(facts),
        )


def _launcher(facts: Facts) -> Iterator[Finding]:
    if _is_enabled(facts) and not facts.has_launcher:
        yield Finding(
            f"{NAME} is missing from Postfix's daemon_directory.",
            "master(8) cannot start tlsmgr, and TLS is turned off in new smtpd(8) processes.",
            mend.enable(facts),
        )


def _fallback(facts: Facts) -> Iterator[Finding]:
    failed = facts.note.state in ("stock", "failed")
    if failed and _is_enabled(facts) and not facts.problem:  # with one, neither of the two starts
        yield Finding(
            f"Postfix's own tlsmgr runs in place of this one: {facts.note.reason or 'no reason'}.",
            "All sessions and ticket keys are lost at each reload, and each update waits for the"
            " disk.",
            mend.enable(facts),
        )


def _process_limit(facts: Facts) -> Iterator[Finding]:
    service = facts.service
    if service is not None and service.process_limit != "1":
        yield Finding(
            f"The process limit of service {service.name} in master.cf is {service.process_limit}.",
            "tlsmgr refuses to start with a process limit other than 1.",
            f"postconf {mend.dash_c(facts)} -F {shlex.quote(service.name)}/unix/process_limit=1"
            f"{mend.then_reload(facts)}",
        )


def _serving(facts: Facts) -> Iterator[Finding]:
    ready = facts.has_launcher and facts.note.state not in ("stock", "failed")
    if facts.status is None and not facts.problem and ready and _is_enabled(facts):
        yield Finding(
            f"The daemon cannot be asked: {facts.silence}.",
            "Either it does not serve, or only root and mail_owner may ask it; limits and the"
            " state were not checked.",
            mend.start_again(facts) if facts.is_root else f"sudo {mend.tlsmgrctl(facts, 'check')}",
        )


def _degraded(facts: Facts) -> Iterator[Finding]:
    status = facts.status
    if status is not None and status.state != SERVING and status.pid != IN_PLACE:
        for reason in status.reasons or (f"its state is {status.state}",):
            if facts.secret_problem and "farm" in reason:
                continue  # the check of the secret has the cause
            yield Finding(
                f"The daemon is degraded: {reason}.",
                "It serves less than is configured; the mail log has the details.",
                mend.start_again(facts),
            )


def _unknown_parameter(facts: Facts) -> Iterator[Finding]:
    for line in facts.tlsmgr_cf:
        if line.name in OUR_NAMES:
            continue
        place = f"{facts.instance.directory}/tlsmgr.cf, line {line.first}"
        if is_postfix_name(line.name):
            yield Finding(
                f"{place}: {line.name} is a parameter of main.cf.",
                "It has no effect in tlsmgr.cf.",
                f"{mend.sed(facts, line, 's/^/#/')}"
                f" && {mend.set_in_main_cf(facts, line.name, line.value)}",
            )
            continue
        near = difflib.get_close_matches(line.name, sorted(OUR_NAMES), 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        yield Finding(
            f"{place}: there is no parameter {line.name}{hint}",
            "It has no effect.",
            mend.rename(facts, line, near[0]) if near else mend.comment_out(facts, line),
        )


def _misplaced_parameter(facts: Facts) -> Iterator[Finding]:
    for name in sorted(OUR_NAMES & facts.main_cf.keys()):
        yield Finding(
            f"{facts.instance.directory}/main.cf sets {name}.",
            "It has no effect there, and postconf(1) warns of it: it belongs in tlsmgr.cf.",
            f"postconf {mend.dash_c(facts)} -X {name} &&"
            f" {mend.set_in_tlsmgr_cf(facts, name, facts.main_cf[name])}",
        )


def _bad_value(facts: Facts) -> Iterator[Finding]:
    for error in facts.errors:
        lines = [line for line in facts.tlsmgr_cf if f": {line.name}: " in error]
        edit = f'"${{EDITOR:-vi}}" {mend.path_of(facts, "tlsmgr.cf")}{mend.then_reload(facts)}'
        yield Finding(
            f"{error}.",
            "The value that is written is not the one that is in force.",
            mend.comment_out(facts, lines[-1]) if lines else edit,
        )


def _server_cache(facts: Facts) -> Iterator[Finding]:
    for cache in facts.caches:
        if cache.cache_type == "smtpd" and cache.cachable and facts.ticket_lifetime:
            yield Finding(
                f"smtpd_tls_session_cache_database is {cache.table}.",
                "Session tickets do the same without a cache, and with OpenSSL 3.0 some clients"
                " fail with both.",
                f"postconf {mend.dash_c(facts)} -X smtpd_tls_session_cache_database"
                f"{mend.then_reload(facts)}",
            )


def _client_cache(facts: Facts) -> Iterator[Finding]:
    level = facts.postfix.get("smtp_tls_security_level", "none")
    old_style = ("smtp_use_tls", "smtp_enforce_tls")
    uses_tls = level not in ("", "none") or any(facts.postfix.get(n) == "yes" for n in old_style)
    name = "smtp_tls_session_cache_database"
    for cache in facts.caches:
        if cache.cache_type == "smtp" and uses_tls and not cache.table:
            yield Finding(
                f"{name} is not set.",
                "No outbound TLS session is ever resumed: each connection does a full handshake.",
                mend.set_in_main_cf(facts, name, mend.own_table("smtp")),
            )


def _cache_type(facts: Facts) -> Iterator[Finding]:
    for cache_type, error in facts.cache_errors.items():
        name = f"{cache_type}_tls_session_cache_database"
        yield Finding(
            f"{name}: {error}.",
            "Nothing is kept in this cache.",
            mend.set_in_main_cf(facts, name, mend.own_table(cache_type)),
        )


def _timeout(facts: Facts) -> Iterator[Finding]:
    lifetimes = {cache.cache_type: cache.timeout for cache in facts.caches if cache.cachable}
    lifetimes["smtpd"] = facts.ticket_lifetime
    for cache_type, lifetime in lifetimes.items():
        name = f"{cache_type}_tls_session_cache_timeout"
        if lifetime > DAY:
            yield Finding(
                f"{name} is {span(lifetime)}.",
                "TLS sessions should not live for more than a day (RFC 5246): a thief of the key"
                " can read all that was sent in that time.",
                mend.set_in_main_cf(facts, name, f"{DAY}s"),
            )


SECRET_MENDS = (
    ("chmod 600", "chmod 600 {file}"),
    ("owned by", "chown root {file}"),
    ("No such file", "scp -p root@OTHER-HOST:{file} {file}"),
)


def _farm_secret(facts: Facts) -> Iterator[Finding]:
    if facts.secret_problem:
        file = shlex.quote(facts.secret_file)
        known = [command for text, command in SECRET_MENDS if text in facts.secret_problem]
        command = (known or [SECRET_MENDS[-1][1]])[0].format(file=file)
        yield Finding(
            f"{facts.secret_file}: {facts.secret_problem}.",
            "This host has ticket keys of its own: a client of the farm that comes here does a"
            " full handshake.",
            f"{command}{mend.then_reload(facts)}",
        )


def _farm_keys(facts: Facts) -> Iterator[Finding]:
    if facts.status is None or not facts.secret_file:
        return
    counters = facts.status.counters
    unknown, asked = counters.get("unknown_keys", 0), counters.get("tktkey", 0)
    if unknown >= UNKNOWN_NAMES and unknown >= UNKNOWN_SHARE * asked:
        yield Finding(
            f"{unknown} of {asked} ticket keys were asked for by a name that is not known here.",
            "Another host of the farm has another secret, another"
            " smtpd_tls_session_cache_timeout, or a wrong clock.",
            f"{mend.tlsmgrctl(facts, 'farm')}  # on each host: all must print the same",
        )


def _open_configuration(facts: Facts) -> Iterator[Finding]:
    for file in facts.files:
        if file.mode is not None and file.mode & 0o022:
            yield _too_open(file, "change how Postfix runs", f"chmod go-w {shlex.quote(file.path)}")
        if file.mode is not None and file.uid not in facts.owner_uids:
            yield Finding(
                f"{file.path} is owned by user ID {file.uid}.",
                "That user can change how Postfix runs.",
                f"chown root {shlex.quote(file.path)}",
            )


def _open_sessions(facts: Facts) -> Iterator[Finding]:
    for file in facts.session_files:
        if file.mode is not None and file.mode & 0o077:
            yield _too_open(file, "read or change sessions", f"chmod 600 {shlex.quote(file.path)}")


def _too_open(file: FileFact, harm: str, command: str) -> Finding:
    return Finding(
        f"{file.path} is open to other users (mode {file.mode:04o}).",
        f"Other users can {harm}.",
        command,
    )


def _cache_limit(facts: Facts) -> Iterator[Finding]:
    caches = facts.status.caches if facts.status is not None else {}
    for settings in facts.caches:
        cache = caches.get(settings.cache_type, Cache())
        oldest = cache.oldest_seconds
        if cache.evicted and oldest is not None and oldest < settings.timeout:
            yield Finding(
                f"{cache.evicted} sessions were removed from the {settings.cache_type} cache to"
                f" make room; the oldest left is {span(oldest)} old, of {span(settings.timeout)}.",
                "Sessions that are removed early cannot be resumed.",
                mend.raise_limit(facts, settings, settings.timeout / max(oldest, 1.0)),
            )


def _shared_memory(facts: Facts) -> Iterator[Finding]:
    memory, path = facts.shared_memory, shlex.quote(facts.shared_memory.path)
    why = "tlsmgr uses unnamed shared memory instead, and logs a warning at each start."
    mount = f"mkdir -p {path} && mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs {path}"
    if memory.mode is None:
        yield Finding(f"{memory.path} is missing.", why, mount)
    elif memory.mode & 0o1777 != 0o1777:
        text = f"{memory.path} cannot be used by mail_owner (mode {memory.mode:04o})."
        yield Finding(text, why, f"chmod 1777 {path}")
    elif memory.free < LEAST_SHARED_MEMORY:
        text = f"{memory.path} is full: {size(memory.free)} are free."
        yield Finding(text, why, f"ls -lS {path}  # remove what fills it")


def _is_enabled(facts: Facts) -> bool:
    """Return whether the daemon is meant to run: started by hand, or named in master.cf."""
    if not facts.instance.is_postfix:
        return True
    return facts.service is not None and facts.service.command == NAME


CHECKS = (
    Check("configuration", "the files main.cf and master.cf can be read", _configuration),
    Check("enabled", "Postfix uses this tlsmgr", _enabled),
    Check("launcher", "Postfix can start this tlsmgr", _launcher),
    Check("fallback", "Postfix's own does not run in its place", _fallback),
    Check("process-limit", "the process limit in master.cf is 1", _process_limit),
    Check("serving", "the daemon answers", _serving),
    Check("degraded", "it serves all that is configured", _degraded),
    Check("unknown-parameter", "no name in tlsmgr.cf is unknown", _unknown_parameter),
    Check("misplaced-parameter", "no parameter of tlsmgr.cf is in main.cf", _misplaced_parameter),
    Check("bad-value", "the values in tlsmgr.cf are valid", _bad_value),
    Check("server-cache", "inbound sessions are in tickets, not in a cache", _server_cache),
    Check("client-cache", "outbound sessions are cached", _client_cache),
    Check("cache-type", "the types of the caches are supported", _cache_type),
    Check("timeout", "sessions live for a day at most", _timeout),
    Check("farm-secret", "the secret of the farm can be used", _farm_secret),
    Check("farm-keys", "the hosts of the farm have the same ticket keys", _farm_keys),
    Check("open-configuration", "only root can change the configuration", _open_configuration),
    Check("open-sessions", "only mail_owner can read the session files", _open_sessions),
    Check("cache-limit", "the caches are large enough", _cache_limit),
    Check("shared-memory", "/dev/shm can be used", _shared_memory),
)
