"""tls_log_lines - lines as smtp(8), smtpd(8) and tlsproxy(8) of Postfix log them for TLS

The texts have the form that Postfix 3.7.11 was seen to log. Names and addresses are examples.
"""

from __future__ import annotations

from collections.abc import Iterable

STAMP = "Nov 21 00:30:05"
MX = "mx.example.org[192.0.2.1]:25"
SESSION = "smtp&example.org&mx.example.org&192.0.2.1&&C58958DFFBB5A11748E7E7C249EAB358"
TLS_1_3 = "TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits) key-exchange X25519"
SIGNED = f"{TLS_1_3} server-signature ECDSA (prime256v1)"
FULL = f"{SIGNED} server-digest SHA256"  # a full handshake
RESUMED = SIGNED  # the same session, resumed
TLS_1_2 = "TLSv1.2 with cipher ECDHE-RSA-AES256-GCM-SHA384 (256/256 bits)"


def line(text: str, program: str = "postfix/smtp[100]", stamp: str = STAMP) -> str:
    """Return a line of the host `mail`."""
    return f"{stamp} mail {program}: {text}"


def smtp(
    details: str, program: str = "postfix/smtp[100]", peer: str = MX, stamp: str = STAMP
) -> str:
    """Return the summary of a client's handshake."""
    return line(f"Untrusted TLS connection established to {peer}: {details}", program, stamp)


def smtp_level_2(
    details: str,
    resumed: bool,
    program: str = "postfix/smtp[100]",
    peer: str = MX,
    session: str = SESSION,
    stamp: str = STAMP,
) -> list[str]:
    """Return the lines of a client's handshake at level 2; the cache has the resumed session."""
    return [
        line(f"setting up TLS connection to {peer}", program, stamp),
        line(f'{peer}: TLS cipher list "aNULL:-aNULL:HIGH:MEDIUM"', program, stamp),
        line(f"looking for session {session} in smtp cache", program, stamp),
        *([line(f"reloaded session {session} from smtp cache", program, stamp)] * resumed),
        line("SSL_connect:SSLv3/TLS read server session ticket", program, stamp),
        *([line(f"{peer}: Reusing old session", program, stamp)] * resumed),
        line(f"save session {session} to smtp cache", program, stamp),
        smtp(details, program, peer, stamp),
    ]


def smtpd(
    details: str, resumed: bool | None = None, program: str = "postfix/smtpd[200]"
) -> list[str]:
    """Return the lines of a server's handshake, at level 1 if `resumed` is None."""
    peer = "client.example.net[198.51.100.7]"
    summary = line(f"Anonymous TLS connection established from {peer}: {details}", program)
    if resumed is None:
        return [summary]
    reusing = line(f"{peer}: Reusing old session (RFC 5077 session ticket)", program)
    return [
        line(f"setting up TLS connection from {peer}", program),
        *([reusing] * resumed),
        summary,
    ]


def as_log(lines: Iterable[str]) -> bytes:
    """Return the lines as a file has them."""
    return "".join(f"{each}\n" for each in lines).encode()
