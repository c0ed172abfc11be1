"""The control socket under master(8)'s options, in the jail, and for other users."""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.checkout import CHECKOUT
from support.control_client import ask, data_of, status_of
from support.master_child import NEEDS_POSTFIX, MasterChild
from support.raw_client import OK, Connection, tktkey, update
from support.raw_client import data_of as data_of_reply

pytestmark = NEEDS_POSTFIX

OPTIONS = ("-l", "-t", "unix", "-V")
WAYS = pytest.mark.parametrize(
    "way", [(), ("-u",), ("-c",), ("-u", "-c")], ids=["as root", "-u", "-c", "-u -c"]
)
AS_USER = """
import os, sys
os.setgid({gid}); os.setgroups([]); os.setuid({uid})
import socket
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    data = b""
    try:
        s.sendall(b"status\\n")
        while part := s.recv(65536):
            data += part
    except BrokenPipeError:
        data = s.recv(65536)
    except ConnectionResetError:
        pass
sys.stdout.write(data.decode())
"""
DER = bytes.fromhex("3007 020101 02020304")


@WAYS
def test_all_commands(way: tuple[str, ...]) -> None:
    with MasterChild(options=(*OPTIONS, *way)) as child:
        child.wait_until_ready()
        service, path = str(child.socket), Path(f"{child.socket}-control")
        owner = pwd.getpwnam("postfix")
        status = path.lstat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (owner.pw_uid, 0o600)
        with Connection(service) as connection:
            assert connection.ask(update(b"smtp", b"one", DER)) == OK
            assert connection.ask(update(b"smtp", b"two", DER)) == OK
            key = data_of_reply(connection.ask(tktkey()), b"keybuf")
        shown = status_of(service)
        assert shown["config_directory"] == str(child.config)
        assert shown["pid"] == child.pid
        assert [each["name"] for each in shown["ticket_keys"]] == [key[:4].hex()]
        listed = data_of(service, "list smtp match=o")
        assert [(each["id"], each["protocol"]) for each in listed] == [
            ("one", "TLSv1.3"), ("two", "TLSv1.3"),
        ]  # fmt: skip
        assert data_of(service, "drop smtp match=ne") == [{"dropped": 1}]
        assert data_of(service, "rotate")[0]["name"] != key[:4].hex()
        assert ask(service, "list bogus")[0].startswith("error there is no bogus")
        assert child.stop() == 0
        assert not path.exists()
        assert child.texts("panic") == []


def test_its_identity() -> None:
    """That of the workers: mail_owner, in the jail, and the lowest priority of all."""
    with MasterChild(options=(*OPTIONS, "-u", "-c")) as child:
        child.wait_until_ready()
        status_of(str(child.socket))
        (process,) = (
            p for p in psutil.Process(child.pid).children() if p.name() == "tlsmgr-control"
        )
        assert process.uids().real == process.uids().saved == pwd.getpwnam("postfix").pw_uid
        assert os.readlink(f"/proc/{process.pid}/root") == str(child.queue)
        assert process.nice() > child.workers()[0].nice()


def run_as(user: str, path: Path) -> subprocess.CompletedProcess[str]:
    entry = pwd.getpwnam(user)
    program = AS_USER.format(uid=entry.pw_uid, gid=entry.pw_gid)
    return subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60
    )


def test_other_users() -> None:
    """The mode keeps them away; where it does not, the kernel's word on who they are does."""
    with MasterChild(options=(*OPTIONS, "-u")) as child:
        child.wait_until_ready()
        path = Path(f"{child.socket}-control")
        owner = run_as("postfix", path)
        assert json.loads(owner.stdout.splitlines()[0])["pid"] == child.pid
        assert owner.stdout.endswith("\nok\n")
        other = run_as("nobody", path)
        assert "PermissionError" in other.stderr
        for directory in (path, *path.parents):
            if str(directory).startswith(str(child.directory)):
                directory.chmod(0o777)
        other = run_as("nobody", path)
        uid = pwd.getpwnam("postfix").pw_uid
        assert other.stdout == (
            f"error permission denied: only root and user ID {uid} may use this\n"
        )


def test_tlsmgrctl_as_another_user() -> None:
    """One clear line, and exit status 1."""
    with MasterChild(options=(*OPTIONS, "-u")) as child:
        child.wait_until_ready()
        nobody = pwd.getpwnam("nobody")
        program = (
            f"import os, sys\nsys.path.insert(0, {str(CHECKOUT)!r})\n"
            "from tlsmgr.ctl.main import main\n"
            f"os.setgid({nobody.pw_gid}); os.setgroups([]); os.setuid({nobody.pw_uid})\n"
            "sys.exit(main())"
        )
        run = subprocess.run(
            [sys.executable, "-c", program, "--socket", str(child.socket), "status"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (run.returncode, run.stdout) == (1, "")
        assert run.stderr == (
            f"tlsmgrctl: connect to {child.socket}-control: Permission denied;"
            " only root and the owner of the tlsmgr may use it\n"
        )


def test_no_control_socket_without_a_name() -> None:
    """The service goes on if the control socket can't be made, with a warning."""
    child = MasterChild(options=(*OPTIONS, "-u", "-c"))
    path = Path(f"{child.socket}-control")
    path.mkdir()
    with child:
        child.wait_until_ready()
        child.wait_log(
            f"warning: cannot make the control socket private/{path.name}:"
            " there is a file that is no socket;"
        )
        with Connection(str(child.socket)) as connection:
            assert connection.ask(update(b"smtp", b"one", DER)) == OK
        assert child.stop() == 0
        assert path.is_dir()
