"""farm_engines - real valkey-server, redis-server and memcached, in private directories, for tests.

An engine is started when it answers, and ended by its process id. Its socket has a short path.
valkey-server is used where it is installed, else redis-server: both speak the same protocol.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from support.daemon_process import wait_for

_Server = TypeVar("_Server", bound="Server")


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip, by name, where none of these programs is installed."""
    is_missing = not any(map(shutil.which, programs))
    return pytest.mark.skipif(is_missing, reason=f"needs {' or '.join(programs)}")


REDIS_PROGRAMS = "valkey-server", "redis-server"
NEEDS_REDIS = needs(*REDIS_PROGRAMS)
NEEDS_MEMCACHED = needs("memcached")


def free_port() -> int:
    """Return a port on loopback that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server program, with its files in a directory of its own. Use `with`."""

    ping, pong = b"", b""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fe-"))
        self.directory.chmod(0o755)
        self.socket = self.directory / "s"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """Return the program and its arguments."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, with nothing stored, and wait until it answers."""
        self.socket.unlink(missing_ok=True)
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self._answers, f"start of {self.command()[0]}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()
        with contextlib.suppress(OSError):
            return bool(self.ask(self.ping).startswith(self.pong))
        return False

    def ask(self, request: bytes) -> bytes:
        """Send a request on a connection of its own; return what comes back first."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.socket))
            connection.sendall(request)
            return connection.recv(1 << 20)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def stop(self) -> None:
        """Kill it, if it runs, and reap it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self: _Server) -> _Server:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory)


class Redis(Server):
    """valkey-server or redis-server on a UNIX-domain socket; ``port`` 0: on that alone.

    With a ``config`` it is a Sentinel that watches a server.
    """

    ping, pong = b"PING\r\n", b"+PONG"

    def __init__(self, *options: str, port: int = 0, config: str = "") -> None:
        super().__init__()
        self.port = port
        if config:
            path = self.directory / "conf"
            path.write_text(config)
            options = (str(path), "--sentinel", *options)
        self._options = options

    @property
    def url(self) -> str:
        """For tlsmgr_farm_store."""
        return f"unix://{self.socket}"

    def command(self) -> Sequence[str]:
        """Return the program and its arguments; nothing is saved unless a test asks for it."""
        program = next(name for name in REDIS_PROGRAMS if shutil.which(name))
        return [
            program, *self._options[:2], "--port", str(self.port), "--bind", "127.0.0.1",
            "--unixsocket", str(self.socket), "--unixsocketperm", "777",
            "--save", "", "--appendonly", "no", "--dir", str(self.directory), *self._options[2:],
        ]  # fmt: skip

    def call(self, *words: str | bytes) -> bytes:
        """Send a command; return the reply as it comes."""
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        request = b"*%d\r\n" % len(parts)
        return self.ask(request + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))

    def stored(self) -> list[bytes]:
        """Return all keys."""
        return [line for line in self.call("KEYS", "*").split(b"\r\n") if line.startswith(b"tls")]


class Memcached(Server):
    """memcached on a UNIX-domain socket."""

    ping, pong = b"version\r\n", b"VERSION"

    def __init__(self, *options: str) -> None:
        super().__init__()
        self._options = options

    def command(self) -> Sequence[str]:
        """Return the program and its arguments."""
        user = ["-u", "root"] if os.geteuid() == 0 else []
        return ["memcached", "-s", str(self.socket), "-a", "777", *user, *self._options]

    def value(self, key: bytes) -> bytes | None:
        """Return what is stored under a key."""
        head, _, rest = self.ask(b"get %b\r\n" % key).partition(b"\r\n")
        return rest.partition(b"\r\n")[0] if head.startswith(b"VALUE") else None
