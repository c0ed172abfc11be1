"""The parameters that tlsmgr reads: one table for the code and for the manual pages.

Three parts, in the order of their evaluation: two of Postfix, with its names, defaults, bounds and
order, and ours. Order matters: `$name` is empty for what is neither set nor evaluated before.

Postfix evaluates about a hundred more that mean nothing here. They are left alone: a slip in one
of them stops Postfix's own programs, but not this one.
"""

from dataclasses import dataclass

from tlsmgr.config.values import Kind

CACHE_TYPES = ("smtpd", "smtp", "lmtp")
"""The session caches, in Postfix's order."""

CACHE_TIMEOUT_LIMIT = 8640000
"""Longest life of a session in seconds: 100 days."""

MIB = 1024 * 1024


@dataclass(frozen=True)
class Parameter:
    """One row: name, type, default as in a configuration file, what it is for, and bounds.

    Bounds are for a number, the seconds of a time, or the length of a text; None for none. The
    defaults of myhostname and mydomain are worked out at start.
    """

    name: str
    kind: Kind
    default: str
    purpose: str
    minimum: int | None = None
    maximum: int | None = None


COMMON = (
    Parameter(
        "compatibility_level",
        Kind.TEXT,
        "0",
        "The Postfix version whose defaults are wanted; here it decides the default of "
        "smtputf8_enable and the outcome of comparisons with it.",
    ),
    Parameter(
        "syslog_facility",
        Kind.TEXT,
        "mail",
        "The syslog facility of all log lines, as named in syslog.conf(5), in lower case.",
        minimum=1,
    ),
    Parameter(
        "multi_instance_name",
        Kind.TEXT,
        "",
        "The name of this Postfix instance; when set, it takes the place of postfix in log lines.",
    ),
    Parameter(
        "maillog_file",
        Kind.TEXT,
        "",
        "The file to which Postfix logs; when set, log lines go to postlogd(8) instead of syslog.",
    ),
    Parameter(
        "maillog_file_prefixes",
        Kind.TEXT,
        "/var, /dev/stdout",
        "What maillog_file must start with: one of these, separated by comma or blank.",
        minimum=1,
    ),
    Parameter(
        "postlog_service_name",
        Kind.TEXT,
        "postlog",
        "The name of postlogd(8)'s socket in the public directory of the queue.",
        minimum=1,
    ),
    Parameter(
        "daemon_table_open_error_is_fatal",
        Kind.FLAG,
        "no",
        "Whether a session cache that cannot be opened stops the start; "
        "otherwise that cache answers that it found nothing.",
    ),
    Parameter(
        "smtputf8_enable",
        Kind.FLAG,
        "${{$compatibility_level} <level {1} ? {no} : {yes}}",
        "Whether UTF-8 text is left as it is in log lines.",
    ),
    Parameter(
        "myhostname",
        Kind.TEXT,
        "",
        "The name of this host, whose first label is shown in lines for postlogd(8); the default "
        "is the machine's name, with mydomain when that has no dot.",
        minimum=1,
    ),
    Parameter(
        "mydomain",
        Kind.TEXT,
        "",
        "The domain of this host; the default is what follows the first dot of myhostname.",
        minimum=1,
    ),
    Parameter(
        "syslog_name",
        Kind.TEXT,
        "${multi_instance_name?{$multi_instance_name}:{postfix}}",
        "What stands before the program's name in each log line, as in postfix/tlsmgr.",
        minimum=1,
    ),
    Parameter(
        "mail_owner",
        Kind.TEXT,
        "postfix",
        "The user that owns the queue and the data directory, as which the program runs.",
        minimum=1,
    ),
    Parameter(
        "setgid_group",
        Kind.TEXT,
        "postdrop",
        "The group of the set-gid commands; it must not be the group of mail_owner.",
        minimum=1,
    ),
    Parameter(
        "data_directory",
        Kind.TEXT,
        "/var/lib/postfix",
        "The directory of mail_owner for files that are written, wherever they were asked for.",
        minimum=1,
    ),
    Parameter(
        "queue_directory",
        Kind.TEXT,
        "/var/spool/postfix",
        "The directory of the queue and the sockets: where the program works, or is chrooted to.",
        minimum=1,
    ),
    Parameter(
        "default_privs",
        Kind.TEXT,
        "nobody",
        "The user as which mail is delivered; it must not be mail_owner.",
        minimum=1,
    ),
    Parameter(
        "default_database_type",
        Kind.TEXT,
        "hash",
        "The type of a session cache database that is given without one.",
        minimum=1,
    ),
    Parameter(
        "default_cache_db_type",
        Kind.TEXT,
        "lmdb",
        "The type that Postfix 3.11 and later suggest for caches, for use in other values.",
        minimum=1,
    ),
    Parameter(
        "ipc_timeout",
        Kind.TIME,
        "3600s",
        "How long a client may take for a request once it has begun, or to read a reply.",
        minimum=1,
    ),
    Parameter(
        "daemon_timeout",
        Kind.TIME,
        "18000s",
        "How long a process may be stuck before it is taken for hung and replaced.",
        minimum=1,
    ),
)
"""Of main.cf and common to all Postfix programs (mail_params.c)."""

TLSMGR = (
    Parameter(
        "tls_random_reseed_period",
        Kind.TIME,
        "3600s",
        "The longest time between two readings of the entropy source.",
        minimum=1,
    ),
    Parameter(
        "tls_random_prng_update_period",
        Kind.TIME,
        "3600s",
        "The longest time between two updates of the exchange file.",
        minimum=1,
    ),
    *(
        Parameter(
            f"{cache_type}_tls_session_cache_timeout",
            Kind.TIME,
            "3600s",
            f"How long {use} may be used again: at least two minutes, or 0 for not at all.",
            minimum=0,
            maximum=CACHE_TIMEOUT_LIMIT,
        )
        for cache_type, use in (
            ("smtpd", "a session in the smtpd cache, or a session ticket key,"),
            ("smtp", "a session in the smtp cache"),
            ("lmtp", "a session in the lmtp cache"),
        )
    ),
    Parameter(
        "tls_random_bytes",
        Kind.NUMBER,
        "32",
        "How many bytes to take from the entropy source at a time; "
        "at most 255 from a device or a socket.",
        minimum=1,
    ),
    Parameter(
        "tls_random_source",
        Kind.TEXT,
        "dev:/dev/urandom",
        "Where entropy comes from besides the kernel: dev:PATH for a device, egd:PATH for the "
        "socket of an entropy gathering daemon, PATH for a file, or nothing.",
    ),
    Parameter(
        "tls_random_exchange_name",
        Kind.TEXT,
        "${data_directory}/prng_exch",
        "The file that carries random data from one run to the next; empty turns it off.",
    ),
    *(
        Parameter(
            f"{cache_type}_tls_session_cache_database",
            Kind.TEXT,
            "",
            f"The {cache_type} session cache as type:name; empty turns it off.",
        )
        for cache_type in CACHE_TYPES
    ),
    *(
        Parameter(
            f"{cache_type}_tls_loglevel",
            Kind.TEXT,
            "0",
            f"What to log about TLS: from 2 up, or with the word cache, "
            f"all that happens in the {cache_type} session cache.",
        )
        for cache_type in CACHE_TYPES
    ),
)
"""Of main.cf and tlsmgr's own (tlsmgr.c)."""

OURS = (
    Parameter(
        "tlsmgr_worker_processes",
        Kind.NUMBER,
        "0",
        "How many worker processes answer requests; 0 means as many as there are usable CPUs.",
        minimum=0,
        maximum=512,
    ),
    Parameter(
        "tlsmgr_session_encryption",
        Kind.FLAG,
        "yes",
        "Whether sessions are encrypted in the cache files, under a key that is in memory only.",
    ),
    *(
        Parameter(
            f"{cache_type}_tls_session_cache_size_limit",
            Kind.BYTES,
            str(128 * MIB),
            f"How large the {cache_type} session cache may grow before the oldest sessions go.",
            minimum=MIB,
        )
        for cache_type in CACHE_TYPES
    ),
    *(
        Parameter(
            f"{cache_type}_tls_session_cache_entry_limit",
            Kind.NUMBER,
            "0",
            f"How many sessions the {cache_type} session cache may hold before the oldest go; "
            "0 means any number.",
            minimum=0,
        )
        for cache_type in CACHE_TYPES
    ),
    Parameter(
        "tlsmgr_statistics_interval",
        Kind.TIME,
        "600s",
        "The time between two lines with statistics in the log; 0 turns them off.",
        minimum=0,
    ),
)
"""Of tlsmgr.cf."""

PARAMETERS = COMMON + TLSMGR + OURS
