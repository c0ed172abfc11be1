"""Identity, root directory, files and descriptors under master(8)'s options -c and -u."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import pytest
from support.live_processes import descriptors_of
from support.master_child import BOTH, NEEDS_POSTFIX, PATIENCE, MasterChild
from support.raw_client import (
    OK,
    Connection,
    found,
    lookup,
    policy,
    update,
)

pytestmark = NEEDS_POSTFIX

OPTIONS = ("-l", "-t", "unix", "-V")
ALARM = "anon_inode:[eventfd]"  # wakes the janitor
WAYS = pytest.mark.parametrize(
    "way", [(), ("-u",), ("-c",), ("-u", "-c")], ids=["as root", "-u", "-c", "-u -c"]
)


def child_in(way: tuple[str, ...], stock: bool = False) -> MasterChild:
    """A tlsmgr with those options."""
    return MasterChild(stock=stock, options=(*OPTIONS, *way))


def status(pid: int, field: str) -> list[int]:
    """The numbers of a line in /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    (line,) = re.findall(rf"^{field}:(.*)$", text, re.MULTILINE)
    return [int(word) for word in line.split()]


# Identity and root directory.


@BOTH
@WAYS
def test_identity_and_root(way: tuple[str, ...], stock: bool) -> None:
    """All ids, supplementary groups and the root directory, of the parent and of every worker."""
    owner = pwd.getpwnam("postfix")
    with child_in(way, stock) as child:
        with Connection(str(child.socket)) as connection:
            assert connection.ask(policy(b"smtp"))
        if not stock:
            child.wait_until_ready()
        for pid in (child.pid, *(worker.pid for worker in child.workers())):
            if "-u" in way:
                assert status(pid, "Uid") == [owner.pw_uid] * 4
                assert status(pid, "Gid") == [owner.pw_gid] * 4
                groups = os.getgrouplist("postfix", owner.pw_gid)
                assert sorted(status(pid, "Groups")) == sorted(groups)
            else:
                assert status(pid, "Uid") == [0] * 4
                assert status(pid, "Gid") == [0] * 4
                assert set(status(pid, "Groups")) <= {0}
            assert os.readlink(f"/proc/{pid}/root") == (str(child.queue) if "-c" in way else "/")
            assert os.readlink(f"/proc/{pid}/cwd") == str(child.queue)


def test_all_processes_are_in_the_jail() -> None:
    """Not only those with clients: the janitor finds its directories as root, and then enters."""
    owner = pwd.getpwnam("postfix")
    with child_in(("-u", "-c")) as child:
        child.wait_until_ready()
        names = {name_of(pid) for pid in child.group()}
        assert names >= {"tlsmgr-worker", "tlsmgr-janitor", "tlsmgr-control"}
        for pid in child.group():
            assert status(pid, "Uid") == [owner.pw_uid] * 4, name_of(pid)
            assert status(pid, "Gid") == [owner.pw_gid] * 4, name_of(pid)
            assert os.readlink(f"/proc/{pid}/root") == str(child.queue), name_of(pid)


@BOTH
@WAYS
def test_files_belong_to_mail_owner(way: tuple[str, ...], stock: bool) -> None:
    """The next daemon, as root or not, must be able to open them."""
    owner = pwd.getpwnam("postfix")
    with child_in(way, stock) as child:
        with Connection(str(child.socket)) as connection:
            assert connection.ask(update(b"smtp", b"id", b"session")) == OK
        assert child.stop() == 0
        files = [path for path in child.data.iterdir() if path.suffix != ".sessions-lock"]
        assert len(files) == 3
        for file in files:
            assert (file.stat().st_uid, file.stat().st_gid) == (owner.pw_uid, owner.pw_gid), file
            assert file.stat().st_mode & 0o777 == 0o600, file
        child.options = (*OPTIONS, "-u")
        child.start()
        with Connection(str(child.socket)) as connection:
            assert connection.ask(update(b"smtp", b"id", b"session")) == OK
            assert connection.ask(lookup(b"smtp", b"id")) == found(b"session")
        assert child.texts("warning|error|fatal|panic") == []


@WAYS
def test_a_worker_holds_its_heritage_and_nothing_else(way: tuple[str, ...]) -> None:
    with child_in(way) as child:
        child.wait_until_ready()
        parents = descriptors_of(child.pid)
        for worker in child.workers():
            mine = descriptors_of(worker.pid)
            assert {fd: mine.pop(fd) for fd in (0, 1, 2)} == {fd: parents[fd] for fd in (0, 1, 2)}
            kinds = sorted({kind_of(link, child, parents) for link in mine.values()})
            caches = ["smtp cache", "smtpd cache"]
            assert kinds == ["alarm", "epoll", "listener", "log", "pipe", *caches]
            assert parents[5] not in mine.values()


@WAYS
def test_the_janitor_has_directories_and_no_listener(way: tuple[str, ...]) -> None:
    with child_in(way) as child:
        child.wait_until_ready()
        (janitor,) = (pid for pid in child.group() if name_of(pid) == "tlsmgr-janitor")
        parents, mine = descriptors_of(child.pid), descriptors_of(janitor)
        assert {parents[5], parents[6]}.isdisjoint(mine.values())
        others = [link for fd, link in mine.items() if fd > 2 and not link.startswith("pipe:")]
        sockets = [link for link in others if link.startswith("socket:")]
        assert len(sockets) == 2, "the log's and the parent's"
        places = {link.removesuffix(" (deleted)") for link in others} - set(sockets)
        allowed = {str(child.data), "/dev/urandom", "/dev/random", ALARM}
        assert {p for p in places if not p.startswith(f"{child.data}/")} <= allowed
        assert str(child.data) in places


def name_of(pid: int) -> str:
    """The name that ps(1) shows."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def kind_of(link: str, child: MasterChild, parents: dict[int, str]) -> str:
    """The purpose of a worker's descriptor; the link itself if the worker must not have it."""
    cache = re.fullmatch(rf"{child.data}/(smtpd?)_scache\.sessions(-lock)?", link)
    if cache:
        return f"{cache[1]} cache"
    if link == parents[6]:
        return "listener"
    if re.fullmatch(r"socket:\[\d+\]", link) and link in parents.values() and link != parents[5]:
        return "log"
    if re.fullmatch(r"pipe:\[\d+\]", link):
        return "pipe"
    return {"anon_inode:[eventpoll]": "epoll", ALARM: "alarm"}.get(link, link)


AS_MAIL_OWNER = """
import os
import pwd

from tlsmgr import daemon

owner = pwd.getpwnam("postfix")
os.setgroups([])
os.setgid(owner.pw_gid)
os.setuid(owner.pw_uid)
"""


@pytest.mark.parametrize("way", [(), ("-u",)], ids=["", "-u"])
def test_started_by_mail_owner(way: tuple[str, ...]) -> None:
    """Without root nothing changes, and all works."""
    owner = pwd.getpwnam("postfix")
    with MasterChild(options=(*OPTIONS, *way), prelude=AS_MAIL_OWNER) as child:
        child.wait_until_ready()
        for pid in (child.pid, *(worker.pid for worker in child.workers())):
            assert status(pid, "Uid") == [owner.pw_uid] * 4
        with Connection(str(child.socket)) as connection:
            assert connection.ask(update(b"smtp", b"id", b"session")) == OK
            assert connection.ask(lookup(b"smtp", b"id")) == found(b"session")
        before = child.exchange_file()
        assert child.stop() == 0
        assert child.exchange_file() != before
        assert child.texts("warning|error|fatal|panic") == []


def test_no_chroot_without_root() -> None:
    """It does not serve from outside of the jail that was asked for."""
    with MasterChild(options=(*OPTIONS, "-u", "-c"), prelude=AS_MAIL_OWNER) as child:
        assert child.wait(PATIENCE) == 1
        assert len(child.texts("fatal: ")) == 1
