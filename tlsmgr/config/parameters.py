"""The parameters that tlsmgr reads: one table for the code and for the manual pages.

Three parts, in the order of their evaluation: two of Postfix, with its names, defaults, bounds and
order, and ours. Order matters: `$name` is empty for what is neither set nor evaluated before.

Postfix evaluates about a hundred more that mean nothing here. They are left alone: a slip in one
of them stops Postfix's own programs, but not this one.
"""

from tlsmgr.config.common import COMMON
from tlsmgr.config.values import Kind, Parameter

CACHE_TYPES = ("smtpd", "smtp", "lmtp")
"""The session caches, in Postfix's order."""

CACHE_TIMEOUT_LIMIT = 8640000
"""Longest life of a session in seconds: 100 days."""

MIB = 1024 * 1024


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
