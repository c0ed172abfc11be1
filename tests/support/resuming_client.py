"""resuming_client - resumes one TLS session of an SMTP server again and again, until told to end.

    resuming_client.py PORT READY END

It makes the file READY when it has a session, and ends when there is a file END. Its last line
says how many connections it made after the first, how many of them resumed the first one's session,
and how long the longest took. A connection that fails ends it with a traceback. It runs within a
DebianRoot: standard library only.
"""

from __future__ import annotations

import smtplib
import ssl
import sys
import time
from pathlib import Path

PATIENCE = 30.0  # seconds for one connection
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname = False
CONTEXT.verify_mode = ssl.CERT_NONE


def connect(port: int, session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession]:
    """Do a TLS handshake and say goodbye; return whether it resumed, and the session."""
    client = smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
    client.ehlo()
    code, text = client.docmd("STARTTLS")
    assert code == 220, text
    assert client.sock is not None
    secure = CONTEXT.wrap_socket(client.sock, session=session)
    client.sock, client.file = secure, None
    client.ehlo()  # the ticket comes with the answer
    session, resumed = secure.session, bool(secure.session_reused)
    assert session is not None
    client.quit()
    return resumed, session


def main(port: int, ready: Path, end: Path) -> None:
    """Connect until the end."""
    _, session = connect(port, None)
    ready.touch()
    results = []
    while not end.exists():
        began = time.monotonic()
        resumed, _ = connect(port, session)
        results.append((resumed, time.monotonic() - began))
    resumptions = sum(resumed for resumed, _ in results)
    longest = max(duration for _, duration in results)
    print(f"connections {len(results)}, resumed {resumptions}, longest {longest:.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
