"""The control socket of the real daemon: each request, and what it shows of each process."""

from __future__ import annotations

import re
import signal
import stat
import time
from pathlib import Path

import psutil
from support.control_client import ControlConnection, ask, data_of, status_of
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.live_processes import descriptors_of
from support.raw_client import (
    NO_SESSION,
    OK,
    Connection,
    delete,
    expect_seed,
    found,
    lookup,
    seed,
    tktkey,
    update,
)
from support.raw_client import data_of as data_of_reply

from tlsmgr.status_object import Latency, parse

SESSION = bytes.fromhex("3007 020101 02020304")  # the beginning of an SSL_SESSION of TLS 1.3
DEFECT = """
from tlsmgr.processes.control_commands import _TABLE, RotateRequest
_TABLE[RotateRequest] = lambda commands, request: iter([1 // 0])
"""
AT_ONCE = (
    "from tlsmgr.processes import auxiliaries\nauxiliaries.YOUNG = 0.0"  # is a successor forked
)
NO_PRIORITIES = """
import os
def nice(step):
    raise PermissionError(1, "Operation not permitted")
os.nice = nice
"""
NO_LOOKS = "from tlsmgr.processes import filewatch\nfilewatch.WATCH_INTERVAL = 600.0"
STRANGE = b"a b%\n\x1b[2J\xff"


def store(daemon: Daemon, *ids: bytes, cache_type: bytes = b"smtp") -> None:
    with Connection(daemon.socket_path) as connection:
        for cache_id in ids:
            assert connection.ask(update(cache_type, cache_id, SESSION)) == OK


def has(daemon: Daemon, cache_id: bytes) -> bool:
    with Connection(daemon.socket_path) as connection:
        reply = connection.ask(lookup(b"smtp", cache_id))
    assert reply in (NO_SESSION, found(SESSION))
    return reply != NO_SESSION


def control_process(daemon: Daemon) -> psutil.Process:
    (process,) = (p for p in daemon.processes() if p.name() == "tlsmgr-control")
    return process


def test_status(daemon: Daemon) -> None:
    began = time.monotonic()
    with Connection(daemon.socket_path) as connection:
        expect_seed(connection, 32)
        connection.ask(update(b"smtp", b"one", SESSION))
        connection.ask(lookup(b"smtp", b"one"))
        connection.ask(lookup(b"smtp", b"none"))
        connection.ask(lookup(b"bogus", b"none"))
        connection.ask(delete(b"smtpd", b"none"))
        key = data_of_reply(connection.ask(tktkey()), b"keybuf")
        wait_for(lambda: status_of(daemon.socket_path)["caches"]["smtp"]["entries"], "its entry")
        wait_for(lambda: parse(status_of(daemon.socket_path)).latency["tktkey"].count, "the times")
        status = parse(status_of(daemon.socket_path))
    assert (status.state, status.reasons) == ("serving", ())
    assert status.pid == daemon.pid
    assert {worker.pid for worker in status.workers} == daemon.worker_pids()
    assert sum(worker.clients for worker in status.workers) == 1
    assert sum(worker.requests for worker in status.workers) == 7
    assert set(status.caches) == {"smtpd", "smtp", "lmtp"}
    smtp = status.caches["smtp"]
    assert (smtp.lookups, smtp.hits, smtp.updates, smtp.deletes) == (2, 1, 1, 0)
    assert smtp.entries == 1
    assert 0 < smtp.bytes < smtp.size_limit == 128 << 20
    assert smtp.oldest_seconds is not None
    assert 0 <= smtp.oldest_seconds < 60
    assert (status.caches["smtpd"].deletes, status.caches["smtpd"].oldest_seconds) == (1, None)
    (shown,) = status.ticket_keys
    assert (shown.name, shown.serves) == (key[:4].hex(), "new")
    assert status.next_rotation_seconds is not None
    assert 1700 < status.next_rotation_seconds <= 1799
    assert status.prng.source == "dev:/dev/urandom"
    assert status.prng.reseeds >= 1
    assert status.prng.exchange_saved_seconds is not None
    counted = {"seed": 1, "update": 1, "lookup": 3, "delete": 1, "tktkey": 1, "policy": 0}
    assert {kind: times.count for kind, times in status.latency.items()} == counted
    for kind, times in status.latency.items():
        assert (times.p50_us is not None) == bool(counted[kind])
        if counted[kind]:
            assert times.max_us is not None
            assert 0 < times.max_us < (time.monotonic() - began) * 1e6
    assert {name: status.counters[name] for name in counted} == counted
    assert status.counters["connections"] == 1


def test_a_refused_request_is_timed(daemon: Daemon) -> None:
    """As one answered at once, by a worker that has answered no seed, or none for a while."""
    workers = daemon.worker_pids()
    began = time.monotonic()
    for refused in range(1, 5):
        with Connection(daemon.socket_path) as connection:
            assert connection.ask(seed(0)).startswith(b"status\x004294967294\0")
        wait_for(lambda n=refused: seed_times(daemon).count == n, "its time")  # type: ignore[misc]
    total = seed_times(daemon).sum_us
    assert total is not None
    assert 0 < total < (time.monotonic() - began) * 1e6
    assert daemon.worker_pids() == workers


def seed_times(daemon: Daemon) -> Latency:
    return parse(status_of(daemon.socket_path)).latency["seed"]


def test_a_generator_that_lacks_its_source_and_its_file(make_daemon: MakeDaemon) -> None:
    """It serves all the same, and says that it is degraded until they can be used."""
    daemon = make_daemon(start=False)
    source, directory = daemon.state / "entropy", daemon.state / "prng_exch"
    directory.mkdir()
    daemon.arguments += [
        "-o", f"tls_random_source={source}", "-o", f"tls_random_exchange_name={directory}",
        "-o", "tls_random_reseed_period=1", "-o", "tls_random_prng_update_period=1",
    ]  # fmt: skip
    daemon.start()

    def reasons() -> list[str]:
        return list(status_of(daemon.socket_path)["reasons"])

    wait_for(lambda: len(reasons()) == 2, "both reasons")
    assert reasons() == [
        f"the entropy source {source} cannot be used; the log says why",
        "the PRNG exchange file cannot be updated; the log says why",
    ]
    with Connection(daemon.socket_path) as connection:
        expect_seed(connection, 32)
    source.write_bytes(bytes(range(256)))
    directory.rmdir()
    wait_for(lambda: reasons() == [], "that all is well")


def test_counts_of_dead_workers_are_kept(daemon: Daemon) -> None:
    with Connection(daemon.socket_path) as connection:
        expect_seed(connection, 32)
        connection.ask(lookup(b"smtp", b"none"))
        # A worker adds the times of its replies to the histograms once a second.
        wait_for(
            lambda: parse(status_of(daemon.socket_path)).latency["lookup"].count == 1,
            "the time of the lookup",
        )
        for worker in daemon.workers():
            worker.kill()
        connection.read_to_end()
    wait_for(lambda: status_of(daemon.socket_path)["state"] == "serving", "new workers")
    status = parse(status_of(daemon.socket_path))
    assert status.caches["smtp"].lookups == status.latency["lookup"].count == 1
    assert status.latency["seed"].count == status.counters["seed"] == 1


def test_list_and_drop(daemon: Daemon) -> None:
    store(daemon, b"host1", b"host2", STRANGE)
    listed = data_of(daemon.socket_path, "list smtp")
    assert [each["id"] for each in listed] == ["host1", "host2", "a%20b%25%0A%1B[2J%FF"]
    assert listed[0] == {
        "id": "host1", "age_seconds": listed[0]["age_seconds"], "bytes": 9, "protocol": "TLSv1.3",
    }  # fmt: skip
    assert 0 <= listed[0]["age_seconds"] < 60
    matching = data_of(daemon.socket_path, "list smtp match=t2")
    assert [each["id"] for each in matching] == ["host2"]
    assert data_of(daemon.socket_path, "list smtpd") == []
    assert data_of(daemon.socket_path, "drop smtp match=%20b%25") == [{"dropped": 1}]
    assert [has(daemon, cache_id) for cache_id in (b"host1", b"host2", STRANGE)] == [
        True, True, False,
    ]  # fmt: skip
    assert data_of(daemon.socket_path, "drop smtp all") == [{"dropped": 2}]
    assert not has(daemon, b"host1")
    assert data_of(daemon.socket_path, "list smtp") == []
    daemon.wait_for_log("control socket: dropped 2 smtp sessions$")


def test_rotate(daemon: Daemon) -> None:
    """The key before still opens its tickets."""
    with Connection(daemon.socket_path) as connection:
        before = data_of_reply(connection.ask(tktkey()), b"keybuf")
        (made,) = data_of(daemon.socket_path, "rotate")
        after = data_of_reply(connection.ask(tktkey()), b"keybuf")
        assert after != before
        assert made == {"name": after[:4].hex()}
        assert data_of_reply(connection.ask(tktkey(before[:16])), b"keybuf") == before
    shown = [(key.name, key.serves) for key in parse(status_of(daemon.socket_path)).ticket_keys]
    assert shown == [(after[:4].hex(), "new"), (before[:4].hex(), "old")]
    daemon.wait_for_log(f"the session ticket key for new tickets is now {after[:4].hex()}$")


def test_what_cannot_be_done(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        "tlsmgr_worker_processes=1", "lmtp_tls_session_cache_database=",
        "smtpd_tls_session_cache_timeout=0",
    )  # fmt: skip
    assert ask(daemon.socket_path, "list lmtp") == [
        "error there is no lmtp session cache (there are: smtp)"
    ]
    assert ask(daemon.socket_path, "drop x match=y") == [
        "error there is no x session cache (there are: smtp)"
    ]
    assert ask(daemon.socket_path, "rotate") == [
        "error session tickets are off: smtpd_tls_session_cache_timeout is 0"
    ]


def test_the_socket(daemon: Daemon) -> None:
    """Mode 0600; removed at the end; the service socket has its six requests and no other."""
    path = Path(f"{daemon.socket_path}-control")
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    with Connection(daemon.socket_path) as connection:
        connection.send(b"status\n\0\0\0")
        assert connection.read_list() == b"status\x004294967294\0\0"
    assert daemon.stop() == 0
    assert not path.exists()


def test_a_stale_socket_is_replaced(make_daemon: MakeDaemon) -> None:
    killed = make_daemon()
    path = Path(f"{killed.socket_path}-control")
    killed.send(signal.SIGKILL)
    killed.wait()
    wait_for(lambda: not killed.processes(), "end of all processes")
    assert path.is_socket()
    daemon = make_daemon(state=str(killed.state))
    assert status_of(daemon.socket_path)["pid"] == daemon.pid


def test_a_control_process_that_dies_is_replaced(make_daemon: MakeDaemon) -> None:
    """Nobody else notices."""
    daemon = make_daemon(sabotage=AT_ONCE)
    victim = control_process(daemon)
    workers = daemon.worker_pids()
    with Connection(daemon.socket_path) as connection:
        victim.kill()
        daemon.wait_for_log(f"warning: control process pid {victim.pid} killed by signal 9")
        wait_for(
            lambda: {p.name() for p in daemon.processes()} >= {"tlsmgr-control"}, "the next one"
        )
        assert status_of(daemon.socket_path)["state"] == "serving"
        expect_seed(connection, 8)
    assert daemon.worker_pids() == workers


def test_sigterm_ends_it_in_order(make_daemon: MakeDaemon) -> None:
    """As `postfix stop` sends it to all processes; if the parent goes on, another one starts."""
    daemon = make_daemon(sabotage=AT_ONCE)
    victim = control_process(daemon)
    victim.terminate()
    wait_for(lambda: not victim.is_running(), "its end")
    assert status_of(daemon.socket_path)["state"] == "serving"
    assert "control process pid" not in daemon.log()


def test_a_defect_is_a_traceback_in_the_log(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(sabotage=DEFECT)
    daemon.may_panic = True
    assert status_of(daemon.socket_path)["pid"] == daemon.pid
    with ControlConnection(daemon.socket_path) as connection:
        connection.send(b"rotate\n")
        assert connection.read_to_end() == b""
    daemon.wait_for_log("panic: ZeroDivisionError")
    daemon.wait_for_log(r"warning: control process pid \d+ exit status 1")


def test_a_file_that_it_finds_removed_is_made_new(make_daemon: MakeDaemon) -> None:
    """The janitor, which looks at the files once in ten minutes here, is called."""
    daemon = make_daemon(sabotage=NO_LOOKS)
    before = control_process(daemon)
    store(daemon, b"id")
    (daemon.directory / "smtp_scache.sessions").unlink()
    (line,) = ask(daemon.socket_path, "list smtp")
    assert re.fullmatch("error .*No such file or directory", line)
    daemon.wait_for_log("smtp_scache.sessions was damaged or removed: recreated empty")
    wait_for(lambda: not before.is_running(), "the end of the one that has the old file")
    assert ask(daemon.socket_path, "list smtp") == ["ok"]
    assert "control process pid" not in daemon.log()


def test_a_hit_rate_that_falls_to_nothing(make_daemon: MakeDaemon) -> None:
    """An hour of half a second."""
    daemon = make_daemon(sabotage="from tlsmgr.processes import jobs\njobs.HOUR = 0.5")
    store(daemon, b"one")
    with Connection(daemon.socket_path) as connection:

        def look_up(cache_id: bytes, pattern: str) -> bool:
            connection.send(lookup(b"smtp", cache_id) * 200 + update(b"smtp", b"one", SESSION))
            for _ in range(201):
                connection.read_list()
            return re.search(pattern, daemon.log()) is not None

        deadline = time.monotonic() + 1.1
        while time.monotonic() < deadline:
            look_up(b"one", "")
        warning = "warning: smtp session cache: 0 of [0-9]+ lookups in the last hour found a sess"
        wait_for(lambda: look_up(b"none", warning), "the warning")
        again = "smtp session cache: lookups find sessions again"
        wait_for(lambda: look_up(b"one", again), "the end of it")


def test_it_holds_no_other_descriptor(daemon: Daemon) -> None:
    """Not the service socket, for one: it can answer no client there."""
    targets = descriptors_of(control_process(daemon).pid).values()
    assert len([target for target in targets if target.startswith("socket:")]) == 1
    assert not [target for target in targets if re.search(r"urandom|prng_exch|scache", target)]


def test_it_answers_where_the_system_lets_no_process_change_its_priority(
    make_daemon: MakeDaemon,
) -> None:
    """As systemd's filter of system calls, or that of a container, may do."""
    daemon = make_daemon(sabotage=NO_PRIORITIES)
    assert status_of(daemon.socket_path)["state"] == "serving"
    assert not re.search("panic|warning", daemon.log())
