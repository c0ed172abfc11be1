"""store_url - the URL of tlsmgr_farm_store, checked without the client library.

    redis://HOST[:PORT][/DATABASE]          rediss:// with TLS
    unix:///PATH/OF/SOCKET
    sentinel://HOST[:PORT],.../MASTER       sentinels:// with TLS
    cluster://HOST[:PORT],...               clusters:// with TLS

Before HOST, or the path, there may be `USER@`. Options of the client library may follow `?`. The
password is in a file of its own, because tlsmgr.cf can be read by all: a password in the URL is
refused. Pure; a mistake is a BadUrl.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

SCHEMES = ("redis", "rediss", "unix", "sentinel", "sentinels", "cluster", "clusters")
_PORTS = {"sentinel": 26379, "sentinels": 26379}
_PLAIN = {
    "sentinel": "redis",
    "sentinels": "rediss",
    "cluster": "redis",
    "clusters": "rediss",
}
DEFAULT_PORT = 6379


class BadUrl(Exception):
    """The URL cannot be used; the text is the reason, and quotes nothing."""


class Host(NamedTuple):
    """The address of a server."""

    name: str
    port: int


class StoreUrl(NamedTuple):
    """The parts of a URL. ``path`` is that of the socket, or what follows the hosts."""

    scheme: str
    user: str
    hosts: tuple[Host, ...]
    path: str
    query: str

    @property
    def shown(self) -> str:
        """The URL for log lines: without user and options."""
        hosts = ",".join(f"{_bracketed(name)}:{port}" for name, port in self.hosts)
        return f"{self.scheme}://{hosts}{self.path}"

    @property
    def plain(self) -> str:
        """The URL of the first host alone, as the client library reads it."""
        user = f"{self.user}@" if self.user else ""
        host = f"{_bracketed(self.hosts[0].name)}:{self.hosts[0].port}" if self.hosts else ""
        path = self.path if self.scheme in ("redis", "rediss", "unix") else ""
        query = f"?{self.query}" if self.query else ""
        return f"{_PLAIN.get(self.scheme, self.scheme)}://{user}{host}{path}{query}"


def parse(text: str) -> StoreUrl:
    """Return the parts of a URL. Raises BadUrl."""
    scheme, colon, rest = text.partition("://")
    if not colon or scheme not in SCHEMES:
        raise BadUrl(f"expected one of {', '.join(f'{name}://' for name in SCHEMES)}")
    try:
        parts = urlsplit(f"//{rest}")
    except ValueError:
        raise BadUrl("malformed") from None
    user, _, hosts = parts.netloc.rpartition("@")
    if ":" in user or "password" in parse_qs(parts.query, keep_blank_values=True):
        raise BadUrl("a password belongs in the file tlsmgr_farm_store_password_file")
    port = _PORTS.get(scheme, DEFAULT_PORT)
    found = tuple(_host(host, port) for host in hosts.split(",") if host)
    _check(scheme, found, parts.path)
    return StoreUrl(scheme, user, found, parts.path, parts.query)


def _check(scheme: str, hosts: tuple[Host, ...], path: str) -> None:
    if scheme == "unix":
        if hosts or not path.startswith("/"):
            raise BadUrl("expected unix:// and the absolute path of a socket")
    elif not hosts:
        raise BadUrl("no host")
    elif scheme.startswith("redis") and len(hosts) > 1:
        raise BadUrl("more than one host")
    elif scheme.startswith("sentinel") and not path.strip("/"):
        raise BadUrl("no name of a master")


def _host(text: str, default_port: int) -> Host:
    try:
        parts = urlsplit(f"//{text}")
        name, port = parts.hostname, parts.port
    except ValueError:
        raise BadUrl("malformed host or port") from None
    if not name:
        raise BadUrl("malformed host or port")
    return Host(name, default_port if port is None else port)


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name else name
