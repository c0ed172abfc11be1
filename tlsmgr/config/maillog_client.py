"""maillog_client - the log destination: from the environment at first, then from main.cf.

The daemon calls `connect_early` before anything else can go wrong, and `connect` once it has the
configuration; both before the jail, which has neither socket. One destination is in use at a time:
postlogd(8) when maillog_file is set, else syslog; with -V also standard error.

Fatal: a maillog_file that maillog_file_prefixes does not allow. A missing socket is not fatal: see
`logsockets`.

Rules: Postfix maillog_client.c, mail_task.c.
"""

import re
from collections.abc import Mapping

from tlsmgr import log
from tlsmgr.config.load import Configuration
from tlsmgr.logsockets import LineSocket, Postlog, Syslog

DEV_LOG = "/dev/log"


def connect_early(
    environment: Mapping[str, str],
    process_name: str,
    *,
    also_stderr: bool = False,
    dev_log: str = DEV_LOG,
) -> None:
    """Log to the destination that master(8) passes in the environment.

    `process_name` is the name of the program in log lines, without a directory.
    """
    postlog = environment.get("POSTLOG_SERVICE", "")
    destination: log.Destination
    if postlog:
        host = environment.get("POSTLOG_HOSTNAME", "") or "amnesiac"
        destination = Postlog((postlog,), host)
    else:
        destination = Syslog("mail", dev_log)
    tag = environment.get("MAIL_LOGTAG", "postfix")
    log.use(destination, f"{tag}/{process_name}", also_stderr=also_stderr)


def connect(
    conf: Configuration,
    process_name: str,
    *,
    also_stderr: bool = False,
    dev_log: str = DEV_LOG,
) -> None:
    """Log to the destination that main.cf names, with its tag and facility.

    With `also_stderr` a person may be looking, so a missing log daemon is a warning.
    """
    destination = _destination_of(conf, dev_log)
    log.use(
        destination,
        f"{conf.text('syslog_name')}/{process_name}",
        keep_utf8=conf.flag("smtputf8_enable"),
        also_stderr=also_stderr,
    )
    if also_stderr and not destination.descriptors():
        log.warning(f"no log daemon listening on {destination.path}; messages are discarded")


def _destination_of(conf: Configuration, dev_log: str) -> LineSocket:
    """Return a connection to postlogd(8) or to syslog."""
    file = conf.text("maillog_file")
    if not file:
        return Syslog(conf.text("syslog_facility"), dev_log)
    prefixes = [
        word for word in re.split(r"[, \t\r\n]+", conf.text("maillog_file_prefixes")) if word
    ]
    if not file.startswith(tuple(prefixes)):
        raise log.Fatal(
            f"maillog_file value '{file}' does not match any prefix in maillog_file_prefixes"
        )
    socket = f"public/{conf.text('postlog_service_name')}"
    paths = (f"{conf.text('queue_directory')}/{socket}", socket)
    return Postlog(paths, conf.text("myhostname"))
