"""The control socket's file: beside the service socket, replaced when stale, removed when ours."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlsmgr.processes.control_socket import ControlSocket, make
from tlsmgr.processes.jail import Identity

ME = Identity("me", os.geteuid(), os.getegid())


@pytest.fixture
def service(tmp_path: Path) -> Iterator[socket.socket]:
    """The service's listening socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "tlsmgr"))
        yield listener


def made(*listeners: socket.socket, identity: Identity = ME) -> ControlSocket:
    endpoint = make(listeners, identity)
    assert endpoint is not None
    return endpoint


def close(endpoint: ControlSocket) -> None:
    endpoint.listener.close()
    os.close(endpoint.directory)


def test_made_and_removed(service: socket.socket, tmp_path: Path) -> None:
    umask = os.umask(0)
    endpoint = made(service)
    assert os.umask(umask) == 0, "as it was"
    status = os.lstat(tmp_path / "tlsmgr-control")
    assert stat.S_IMODE(status.st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "tlsmgr-control"))
        endpoint.listener.accept()[0].close()
    endpoint.remove()
    assert os.listdir(tmp_path) == ["tlsmgr"]
    endpoint.remove()
    close(endpoint)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_it_belongs_to_the_owner_of_the_daemon(service: socket.socket, tmp_path: Path) -> None:
    os.chown(tmp_path, 4242, 4242)
    parents = [path for path in tmp_path.parents if path.stat().st_mode & 0o005 != 0o005]
    for path in parents:
        path.chmod(path.stat().st_mode | 0o005)
    endpoint = made(service, identity=Identity("owner", 4242, 4242))
    status = os.lstat(tmp_path / "tlsmgr-control")
    assert (status.st_uid, status.st_gid) == (4242, 4242)
    close(endpoint)


def test_a_relative_name(
    service: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under master(8); it is removed after a change of directory, too."""
    (tmp_path / "private").mkdir()
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("private/tlsmgr")
        endpoint = made(listener)
    assert (tmp_path / "private/tlsmgr-control").is_socket()
    monkeypatch.chdir("/")
    endpoint.remove()
    assert os.listdir(tmp_path / "private") == ["tlsmgr"]
    close(endpoint)


def test_a_stale_socket_is_replaced(service: socket.socket, tmp_path: Path) -> None:
    first = made(service)
    second = made(service)
    first.remove()
    assert (tmp_path / "tlsmgr-control").is_socket(), "another one's is left"
    second.remove()
    assert not (tmp_path / "tlsmgr-control").exists()
    close(first)
    close(second)


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_what_is_no_socket_is_left(
    service: socket.socket, tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tlsmgr-control"
    if what == "file":
        path.write_text("text")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to("tlsmgr")
    assert make([service], ME) is None
    assert os.path.lexists(path)
    assert (
        f"warning: cannot make the control socket {path}: there is a file that is no socket;"
        in capfd.readouterr().err
    )


def test_a_path_that_is_too_long(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The service socket's is not, by seven bytes."""
    path = str(tmp_path / "x")
    path += "x" * (100 - len(path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert make([listener], ME) is None
    assert "AF_UNIX path too long; tlsmgrctl is of no use" in capfd.readouterr().err
    assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_services_without_a_control_socket() -> None:
    """None of them has a name in the file system."""
    assert make([], ME) is None
    with (
        socket.socket(socket.AF_INET) as inet,
        socket.socket(socket.AF_UNIX) as unnamed,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        inet.bind(("127.0.0.1", 0))
        abstract.bind(b"\0tlsmgr-test-%d" % os.getpid())
        assert make([inet, unnamed, abstract], ME) is None


def test_the_first_named_socket_counts(service: socket.socket, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET) as inet:
        endpoint = made(inet, service)
    assert (tmp_path / "tlsmgr-control").is_socket()
    endpoint.remove()
    close(endpoint)
