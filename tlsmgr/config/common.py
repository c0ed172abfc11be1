"""The parameters that all Postfix programs read and that matter here, in the order of evaluation.

The first part of the table in `parameters`, with names, defaults, bounds and order of Postfix's
mail_params.c. A default may refer to a parameter of an earlier row.
"""

from collections.abc import Mapping

from tlsmgr.config.values import Kind, Parameter

DEFAULTS: Mapping[str, str] = {
    "mail_name": "Postfix",
    "command_directory": "/usr/sbin",
    "myorigin": "$myhostname",
    "mynetworks_style": "${{$compatibility_level} <level {2} ? {subnet} : {host}}",
    "inet_interfaces": "all",
    "inet_protocols": "all",
    "default_process_limit": "100",
    "ipc_idle": "5s",
    "ipc_ttl": "1000s",
    "trigger_timeout": "10s",
    "fork_attempts": "5",
    "fork_delay": "1s",
    "deliver_lock_attempts": "20",
    "deliver_lock_delay": "1s",
    "stale_lock_time": "500s",
    "hash_queue_depth": "1",
    "hash_queue_names": "deferred, defer",
    "line_length_limit": "2048",
    "message_size_limit": "10240000",
    "lmdb_map_size": "16777216",
    "berkeley_db_create_buffer_size": "16777216",
    "berkeley_db_read_buffer_size": "131072",
    "process_id_directory": "pid",
    "delay_logging_resolution_limit": "2",
    "mydestination": "$myhostname, localhost.$mydomain, localhost",
    "relay_domains": "${{$compatibility_level} <level {2} ? {$mydestination} : {}}",
}
"""What values may refer to though nothing here reads it: all Postfix programs know its default."""

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
    Parameter(
        "max_idle",
        Kind.TIME,
        "100s",
        "Checked, and without effect: this service does not end for want of work.",
        minimum=1,
    ),
    Parameter(
        "max_use",
        Kind.NUMBER,
        "100",
        "Checked, and without effect: this service does not end after so many clients.",
        minimum=1,
    ),
    Parameter(
        "debugger_command",
        Kind.TEXT,
        "",
        "The shell command that the option -D runs; it can refer to $process_name and $process_id.",
    ),
)
"""Of main.cf and common to all Postfix programs (mail_params.c)."""
