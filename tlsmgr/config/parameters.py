"""parameters - the table of all parameters that tlsmgr reads, for the code and the manual pages.

It has three parts, in the order of evaluation: two of Postfix, with its names, defaults, bounds and
order, and ours. Order matters: `$name` is empty for a name that is neither set nor evaluated yet.

Postfix evaluates about a hundred more that mean nothing here. They are not checked: a mistake in
one of them stops Postfix's own programs, but not this one.
"""

from tlsmgr.config.mail_params import COMMON
from tlsmgr.config.values import SIZE_UNITS, Kind, Parameter

CACHE_TYPES = ("smtpd", "smtp", "lmtp")
"""The session caches, in Postfix's order."""

SINGLE_USE = NO, YES, STRICT = "no", "yes", "strict"
"""Whether a TLS 1.3 session is forgotten once a lookup gave it out: tlsmgr_single_use_tickets."""

CACHE_TIMEOUT_LIMIT = 8640000
"""Longest life of a session in seconds: 100 days."""

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
            f"How long {item} may be used. Less than two minutes counts as two minutes, and 0 "
            f"turns {feature} off.",
            minimum=0,
            maximum=CACHE_TIMEOUT_LIMIT,
        )
        for cache_type, item, feature in (
            (
                "smtpd",
                "a session in the smtpd cache, or a session ticket key,",
                "the cache and the ticket keys",
            ),
            ("smtp", "a session in the smtp cache", "the cache"),
            ("lmtp", "a session in the lmtp cache", "the cache"),
        )
    ),
    Parameter(
        "tls_random_bytes",
        Kind.NUMBER,
        "32",
        "How many bytes to read from the entropy source at a time: "
        "at most 255 from a device or a socket.",
        minimum=1,
    ),
    Parameter(
        "tls_random_source",
        Kind.TEXT,
        "dev:/dev/urandom",
        "The source of entropy besides the kernel: dev:PATH for a device, egd:PATH for the socket "
        "of an entropy gathering daemon, PATH for a file, or empty for none.",
    ),
    Parameter(
        "tls_random_exchange_name",
        Kind.TEXT,
        "${data_directory}/prng_exch",
        "The file that carries random data from one run to the next. Empty turns it off.",
    ),
    *(
        Parameter(
            f"{cache_type}_tls_session_cache_database",
            Kind.TEXT,
            "",
            f"The {cache_type} session cache as type:name. Empty turns it off.",
        )
        for cache_type in CACHE_TYPES
    ),
    *(
        Parameter(
            f"{cache_type}_tls_loglevel",
            Kind.TEXT,
            "0",
            f"The TLS log level. From 2 up, or with cache in the list, each event in the "
            f"{cache_type} session cache is logged.",
        )
        for cache_type in CACHE_TYPES
    ),
)
"""Of main.cf, and read by Postfix's own tlsmgr too (tlsmgr.c)."""

OURS = (
    Parameter(
        "tlsmgr_worker_processes",
        Kind.NUMBER,
        "0",
        "The number of worker processes that answer requests. 0 means one for each CPU that the "
        "process may use.",
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
            Kind.SIZE,
            "128M",
            f"The size limit of the {cache_type} session cache. At the limit the oldest sessions "
            "are removed.",
            minimum=SIZE_UNITS["M"],
            maximum=1024 * SIZE_UNITS["G"],
        )
        for cache_type in CACHE_TYPES
    ),
    *(
        Parameter(
            f"{cache_type}_tls_session_cache_entry_limit",
            Kind.NUMBER,
            "0",
            f"The largest number of sessions in the {cache_type} session cache; 0 means no limit. "
            "At the limit the oldest sessions are removed.",
            minimum=0,
        )
        for cache_type in CACHE_TYPES
    ),
    Parameter(
        "tlsmgr_single_use_tickets",
        Kind.CHOICE,
        NO,
        "Whether a lookup in the smtp or lmtp cache forgets the TLS 1.3 session that it gives out, "
        "so that connections do not use the same session ticket. Then up to 8 such sessions are "
        "kept for each cache id. With yes, the last one of an id stays; with strict, it does not.",
        choices=SINGLE_USE,
    ),
    Parameter(
        "tlsmgr_statistics_interval",
        Kind.TIME,
        "600s",
        "The time between two log lines with statistics; 0 turns them off.",
        minimum=0,
    ),
    Parameter(
        "tlsmgr_handover",
        Kind.FLAG,
        "yes",
        "Whether sessions, ticket keys and statistics go over to the next process at a reload.",
    ),
    Parameter(
        "tlsmgr_farm_secret_file",
        Kind.PATH,
        "",
        "The file with the secret from which all hosts of a farm derive the same session ticket "
        "keys; see tlsmgr-farm(7). Empty means that this host has keys of its own.",
    ),
    Parameter(
        "tlsmgr_farm_store",
        Kind.TEXT,
        "",
        "The Valkey or Redis server in which all hosts of a farm share their sessions, as a URL; "
        "see tlsmgr-farm(7). It needs tlsmgr_farm_secret_file. Empty means that sessions are not "
        "shared.",
    ),
    Parameter(
        "tlsmgr_farm_store_password_file",
        Kind.PATH,
        "",
        "The file with the password for tlsmgr_farm_store in its first line. Empty means no "
        "password.",
    ),
    Parameter(
        "tlsmgr_farm_caches",
        Kind.TEXT,
        "smtp, lmtp, smtpd",
        "The session caches that are shared in tlsmgr_farm_store, separated by comma or blank.",
    ),
    Parameter(
        "tlsmgr_farm_deadline",
        Kind.SHORT_TIME,
        "50ms",
        "The longest time that a lookup waits for the answer of tlsmgr_farm_store, or of a "
        "memcache: table, when the session is not in the cache of this host.",
        minimum=1,
        maximum=10000,
    ),
)
"""Of tlsmgr.cf."""

POSTFIX = COMMON + TLSMGR
"""Of main.cf."""

PARAMETERS = POSTFIX + OURS
