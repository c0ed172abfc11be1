"""mail_params - the parameters that all Postfix programs read, as far as they matter here.

The first part of the table in `parameters`, with the names, defaults, bounds and order of Postfix's
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
"""Defaults of parameters that are not read here, but that a value may refer to."""

COMMON = (
    Parameter(
        "compatibility_level",
        Kind.TEXT,
        "0",
        "The Postfix version whose defaults apply. It decides the default of smtputf8_enable "
        "and comparisons of levels in values.",
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
        "The name of this Postfix instance. When set, log lines start with it instead of postfix.",
    ),
    Parameter(
        "maillog_file",
        Kind.TEXT,
        "",
        "The log file of Postfix. When set, log lines go to postlogd(8) instead of syslog.",
    ),
    Parameter(
        "maillog_file_prefixes",
        Kind.TEXT,
        "/var, /dev/stdout",
        "The beginnings that maillog_file may have, separated by comma or blank.",
        minimum=1,
    ),
    Parameter(
        "postlog_service_name",
        Kind.TEXT,
        "postlog",
        "The name of the socket of postlogd(8), in the directory public of the queue.",
        minimum=1,
    ),
    Parameter(
        "daemon_table_open_error_is_fatal",
        Kind.FLAG,
        "no",
        "Whether a session cache of an unsupported type stops the start. Otherwise lookups in "
        "that cache find nothing.",
    ),
    Parameter(
        "smtputf8_enable",
        Kind.FLAG,
        "${{$compatibility_level} <level {1} ? {no} : {yes}}",
        "Whether log lines may contain UTF-8. Otherwise each byte that is not ASCII is logged "
        "as ?.",
    ),
    Parameter(
        "myhostname",
        Kind.TEXT,
        "",
        "The name of this host. Lines for postlogd(8) show its first label. The default is "
        "the name of the machine, followed by mydomain if it has no dot.",
        minimum=1,
    ),
    Parameter(
        "mydomain",
        Kind.TEXT,
        "",
        "The domain of this host. The default is the part of myhostname after the first dot.",
        minimum=1,
    ),
    Parameter(
        "syslog_name",
        Kind.TEXT,
        "${multi_instance_name?{$multi_instance_name}:{postfix}}",
        "The text before the name of the program in each log line, as in postfix/tlsmgr.",
        minimum=1,
    ),
    Parameter(
        "mail_owner",
        Kind.TEXT,
        "postfix",
        "The user that owns the queue and data_directory. The program runs as this user.",
        minimum=1,
    ),
    Parameter(
        "setgid_group",
        Kind.TEXT,
        "postdrop",
        "The group of the set-gid commands. It must not be the group of mail_owner.",
        minimum=1,
    ),
    Parameter(
        "data_directory",
        Kind.TEXT,
        "/var/lib/postfix",
        "The directory, owned by mail_owner, for files whose own directory has another owner.",
        minimum=1,
    ),
    Parameter(
        "queue_directory",
        Kind.TEXT,
        "/var/spool/postfix",
        "The directory of the queue and the sockets. It is the working directory, and with "
        "chroot the root directory.",
        minimum=1,
    ),
    Parameter(
        "default_privs",
        Kind.TEXT,
        "nobody",
        "The user that external mail deliveries run as. It must not be mail_owner.",
        minimum=1,
    ),
    Parameter(
        "default_database_type",
        Kind.TEXT,
        "hash",
        "The type of a session cache database that is written without a type.",
        minimum=1,
    ),
    Parameter(
        "default_cache_db_type",
        Kind.TEXT,
        "lmdb",
        "The type that Postfix 3.11 and later recommend for caches, for use in other values.",
        minimum=1,
    ),
    Parameter(
        "ipc_timeout",
        Kind.TIME,
        "3600s",
        "The longest time that a client may take to send a request once it has begun, or to "
        "read a reply.",
        minimum=1,
    ),
    Parameter(
        "daemon_timeout",
        Kind.TIME,
        "18000s",
        "The longest time that a process may be stuck before it is ended and replaced.",
        minimum=1,
    ),
    Parameter(
        "max_idle",
        Kind.TIME,
        "100s",
        "Checked, but without effect: this service does not end when it is idle.",
        minimum=1,
    ),
    Parameter(
        "max_use",
        Kind.NUMBER,
        "100",
        "Checked, but without effect: this service serves any number of clients.",
        minimum=1,
    ),
    Parameter(
        "debugger_command",
        Kind.TEXT,
        "",
        "The shell command that the option -D runs. It may contain $process_name and $process_id.",
    ),
)
"""Of main.cf, and common to all Postfix programs (mail_params.c)."""
