"""External sources from inside the jail."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support import egd_server
from support.egd_server import EgdServer
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_children import run
from support.recording_pool import RecordingPool
from support.recording_pool import pool as pool
from support.source_fixtures import finish, opened, time_out
from support.source_fixtures import socket_path as socket_path

from tlsmgr.prng.reseed import Reseeder

NOBODY = 65534


def in_jail(root: Path, prepare: Callable[[], Reseeder], use: Callable[[Reseeder], None]) -> None:
    """Open a source, go to jail in `root` as nobody, and use it there; in a child."""
    if os.getuid() != 0:
        pytest.skip("chroot(2) needs root")
    root.chmod(0o755)

    def work() -> None:
        os.chdir(root)
        reseeder = prepare()
        os.chroot(root)
        os.chdir("/")
        os.setuid(NOBODY)
        use(reseeder)

    run(work)


def test_device_in_the_jail(pool: RecordingPool, tmp_path: Path) -> None:
    def use(reseeder: Reseeder) -> None:
        for now in range(3):
            reseeder.run(now)
        assert [len(data) for data in pool.stirred] == [32] * 3

    in_jail(tmp_path, lambda: opened("dev:/dev/urandom", pool), use)


def test_failed_device_in_the_jail_is_read_again(pool: RecordingPool, tmp_path: Path) -> None:
    fifo = tmp_path / "outside"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    jail = tmp_path / "jail"
    jail.mkdir()

    def use(reseeder: Reseeder) -> None:
        time_out(reseeder, 0.0)
        os.write(writer, b"x")
        finish(reseeder)
        assert pool.stirred == [b"x"]

    in_jail(jail, lambda: opened(f"dev:{fifo}", pool), use)
    os.close(writer)


@pytest.mark.parametrize("relative", [True, False])
def test_egd_below_the_root_of_the_jail_is_connected_again(
    pool: RecordingPool, socket_path: Path, tmp_path: Path, relative: bool
) -> None:
    value = "egd:egd" if relative else f"egd:{tmp_path}/egd"

    def prepare() -> Reseeder:
        reseeder = opened(value, pool)
        finish(reseeder)  # a manner that dies
        return reseeder

    def use(reseeder: Reseeder) -> None:
        finish(reseeder)
        assert [len(data) for data in pool.stirred] == [32]

    with EgdServer(socket_path, egd_server.dying, egd_server.willing):
        socket_path.chmod(0o666)
        in_jail(tmp_path, prepare, use)
