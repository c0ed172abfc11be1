"""mail_traffic - messages that are sent continuously while something happens to a Postfix system.

Threads submit messages by SMTP and record the queue ids of the accepted ones. At the end all of
them must have been delivered, and every delivery must have used TLS: smtp(8) sends in clear,
without a message in the log, if it gets no random bytes, or if smtpd(8) gets none and so offers no
STARTTLS.
"""

from __future__ import annotations

import contextlib
import re
import smtplib
import threading

from support.growing_log import GrowingLog
from support.postfix_instance import PostfixInstance
from support.postfix_sandbox import wait_until

PATIENCE = 60.0  # seconds until the last delivery on a loaded machine
MAY = {"smtp_tls_security_level": "may"}  # parameters that allow delivery in clear
SOON = {  # parameters that retry deferred messages within the test
    "minimal_backoff_time": "1s",
    "maximal_backoff_time": "1s",
    "queue_run_delay": "1s",
}
MOST_WAITING = 20  # messages that are accepted and not delivered yet
UNWELCOME = "throttling|panic:|fatal:|disabling TLS support|Traceback"  # in any log line


class Traffic:
    """`with` starts and ends it; `wait_for_more` waits for further deliveries inside."""

    def __init__(self, postfix: PostfixInstance, clients: int = 2) -> None:
        self.postfix = postfix
        self.sent: list[str] = []  # queue ids
        self._delivered: set[str] = set()
        self._log = GrowingLog(postfix.log_file)
        self._reading = threading.Lock()
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        while not self._ends.wait(0.01):
            if len(set(self.sent) - self.delivered()) >= MOST_WAITING:
                continue
            with contextlib.suppress(OSError, smtplib.SMTPException):  # try again, as clients do
                self.sent.append(self.postfix.inject())

    def wait_for_more(self, count: int = 10) -> None:
        """Wait until `count` more messages are delivered."""
        goal = len(self.delivered()) + count
        wait_until(lambda: len(self.delivered()) >= goal, PATIENCE)

    def delivered(self) -> set[str]:
        """Return the queue ids of messages that smtp(8) delivered."""
        with self._reading:
            fresh = self._log.fresh().decode()
            found = re.findall(r"/smtp\[\d+\]: (\w+): .*status=sent", fresh)
            self._delivered.update(found)
            return set(self._delivered)

    def expect_all_delivered_over_tls(self) -> None:
        """Assert that all messages were delivered over TLS and that no error was logged."""
        wait_until(lambda: set(self.sent) <= self.delivered(), PATIENCE)
        assert self.sent
        assert deliveries_in_clear(self.postfix.log()) == []
        assert self.postfix.log_lines(UNWELCOME) == []


def deliveries_in_clear(log: str) -> list[str]:
    """Return the log lines of deliveries by an smtp(8) process without TLS."""
    found, established = [], set()
    for line in log.splitlines():
        process = re.search(r"/smtp\[(\d+)\]: ", line)
        if process and "TLS connection established to" in line:
            established.add(process[1])
        elif process and "status=sent" in line and process[1] not in established:
            found.append(line)
        elif process and "status=sent" in line:
            established.remove(process[1])
    return found
