"""Real daemons that share sessions through a real redis-server: what is found, and what is not."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from support.control_client import status_of
from support.daemon_clients import ask
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.farm_engines import NEEDS_REDIS, Redis
from support.farm_secret import EXAMPLE_KEY, file_text, write
from support.raw_client import (
    NO_SESSION,
    OK,
    Connection,
    data_of,
    delete,
    found,
    lookup,
    seed,
    tktkey,
    update,
)
from support.settled_files import write_settled

from tlsmgr.status_object import parse

pytestmark = NEEDS_REDIS
SESSION = b"the session of a host\0" * 70


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A secret file that holds since long ago."""
    path = tmp_path_factory.mktemp("farm") / "farm.secret"
    return write(path, file_text({"2026-11-01": EXAMPLE_KEY}))


@pytest.fixture(scope="module")
def running() -> Iterator[Redis]:
    """A redis-server that runs."""
    with Redis() as server:
        yield server


@pytest.fixture
def redis(running: Redis) -> Redis:
    """The same, empty."""
    assert running.call("FLUSHALL") == b"+OK\r\n"
    return running


Pair = tuple[Daemon, Daemon]


@pytest.fixture(scope="module")
def pair(secret: Path, running: Redis) -> Iterator[Pair]:
    """Two daemons that share sessions. A test has cache ids of its own."""
    daemons = [Daemon(*options(secret, running)) for _ in range(2)]
    try:
        one, other = (shares(daemon.start()) for daemon in daemons)
        yield one, other
    finally:
        for daemon in daemons:
            daemon.clean_up()


def options(secret: Path, store: Redis | str, *more: str) -> Sequence[str]:
    """For a daemon with one worker, whose clients are patient: this machine may be busy."""
    return (
        f"tlsmgr_farm_secret_file={secret}",
        f"tlsmgr_farm_store={store if isinstance(store, str) else store.url}",
        "tlsmgr_farm_deadline=10s",
        "tlsmgr_worker_processes=1",
        *more,
    )


def shares(daemon: Daemon) -> Daemon:
    """Wait until the engine has answered."""
    daemon.wait_for_log("answers: sessions are shared$")
    return daemon


def process_named(daemon: Daemon, name: str) -> psutil.Process:
    """Return the only process of a daemon that has this name."""
    found = [process for process in daemon.processes() if process.name() == name]
    assert len(found) == 1, found
    return found[0]


def counts(daemon: Daemon) -> dict[str, int]:
    """Stop the daemon; return the counts of its last line."""
    daemon.stop()
    line = [line for line in daemon.lines() if line.startswith("statistics: ")][-1]
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line)}


def test_a_session_of_one_host_is_found_on_another(pair: Pair, redis: Redis) -> None:
    one, other = pair
    for cache_type in (b"smtp", b"lmtp", b"smtpd"):
        request = update(cache_type, b"id of " + cache_type, SESSION + cache_type)
        assert ask(one.socket_path, request) == OK
    wait_for(lambda: len(redis.stored()) == 3, "three sessions in the engine")
    for cache_type in (b"smtp", b"lmtp", b"smtpd"):
        request = lookup(cache_type, b"id of " + cache_type)
        assert ask(other.socket_path, request) == found(SESSION + cache_type)
    redis.call("FLUSHALL")
    for cache_type in (b"smtp", b"lmtp", b"smtpd"):
        request = lookup(cache_type, b"id of " + cache_type)
        assert ask(other.socket_path, request) == found(SESSION + cache_type), "stored here as well"


def test_the_status_has_the_farm(pair: Pair, redis: Redis) -> None:
    """Both have the key that `tlsmgrctl farm` shows, and count what they asked."""
    one, other = (parse(status_of(daemon.socket_path)) for daemon in pair)
    for status, daemon in ((one, pair[0]), (other, pair[1])):
        assert (status.state, status.reasons) == ("serving", ())
        assert status.farm is not None
        (store,) = status.farm.stores
        assert (store.answers, sorted(store.caches)) == (True, ["lmtp", "smtp", "smtpd"])
        reply = ask(daemon.socket_path, tktkey())
        assert status.farm.key == data_of(reply, b"keybuf")[:4].hex()
    assert one.farm is not None
    assert other.farm is not None
    assert one.farm.key == other.farm.key
    assert ask(pair[0].socket_path, lookup(b"smtp", b"in no status")) == NO_SESSION
    farm = parse(status_of(pair[0].socket_path)).farm
    assert farm is not None
    assert farm.asked == one.farm.asked + 1


def test_an_engine_cannot_make_the_farm_process_large(pair: Pair) -> None:
    """Its memory is bounded by the kernel, whatever a client library reads."""
    for daemon in pair:
        limit, _ = process_named(daemon, "tlsmgr-farm").rlimit(psutil.RLIMIT_DATA)
        assert limit == 80 << 20


def usage(process: psutil.Process) -> tuple[int, float]:
    """How often it woke up so far, and the seconds of processor time that it used."""
    return process.num_ctx_switches().voluntary, sum(process.cpu_times()[:2])


def test_without_requests_they_sleep(pair: Pair) -> None:
    """None of the processes polls, and none spins."""
    processes = [process for daemon in pair for process in daemon.processes()]
    names = {process.name().removeprefix("tlsmgr-") for process in processes}
    assert names >= {"worker", "janitor", "control", "keeper", "farm"}
    began, before = time.monotonic(), [usage(process) for process in processes]
    time.sleep(1.0)
    after, seconds = [usage(process) for process in processes], time.monotonic() - began
    for process, (wakes, used), (wakes_now, used_now) in zip(processes, before, after):
        assert (wakes_now - wakes) / seconds < 100, process.name()
        assert (used_now - used) / seconds < 0.25, process.name()


def test_nothing_readable_in_the_engine_or_the_farm_process(pair: Pair, redis: Redis) -> None:
    one, other = pair
    for number in range(20):
        request = update(b"smtp", b"mx.of-nobody.example&%d" % number, SESSION)
        assert ask(one.socket_path, request) == OK
    wait_for(lambda: len(redis.stored()) == 20, "sessions in the engine")
    for number in range(20):
        request = lookup(b"smtp", b"mx.of-nobody.example&%d" % number)
        assert ask(other.socket_path, request) == found(SESSION)
    assert redis.call("SAVE") == b"+OK\r\n"
    dump = (redis.directory / "dump.rdb").read_bytes()
    assert dump.count(b"tlsmgr:1:smtp:") == 20
    assert all(0 < int(redis.call("PTTL", key)[1:]) <= 3600_000 for key in redis.stored())
    for daemon in pair:
        memory = memory_of(process_named(daemon, "tlsmgr-farm"))
        assert b"tlsmgr:1:smtp:" in memory
        for text in (b"of-nobody.example", SESSION[:20], EXAMPLE_KEY):
            assert text not in dump
            assert text not in memory


def memory_of(process: psutil.Process) -> bytes:
    """Return all memory of a process that it can write to."""
    parts = []
    with open(f"/proc/{process.pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if match:
                start, end = (int(text, 16) for text in match.groups())
                memory.seek(start)
                parts.append(memory.read(end - start))
    return b"".join(parts)


def test_a_delete_reaches_the_engine(pair: Pair, redis: Redis) -> None:
    one, other = pair
    assert ask(one.socket_path, update(b"smtp", b"to delete", SESSION)) == OK
    wait_for(redis.stored, "a session in the engine")
    assert ask(one.socket_path, delete(b"smtp", b"to delete")) == OK
    wait_for(lambda: not redis.stored(), "no session in the engine")
    assert ask(other.socket_path, lookup(b"smtp", b"to delete")) == NO_SESSION


def test_local_first_misses_remembered_and_only_the_caches_that_are_named(
    make_daemon: MakeDaemon, secret: Path, redis: Redis
) -> None:
    daemon = shares(make_daemon(*options(secret, redis, "tlsmgr_farm_caches=smtp")))
    assert ask(daemon.socket_path, update(b"lmtp", b"id", SESSION)) == OK
    assert ask(daemon.socket_path, update(b"smtp", b"id", SESSION)) == OK
    wait_for(redis.stored, "a session in the engine")
    assert ask(daemon.socket_path, lookup(b"lmtp", b"other")) == NO_SESSION
    assert ask(daemon.socket_path, lookup(b"smtp", b"id")) == found(SESSION)
    assert [key[:14] for key in redis.stored()] == [b"tlsmgr:1:smtp:"]
    for _ in range(5):
        assert ask(daemon.socket_path, lookup(b"smtp", b"nothing")) == NO_SESSION
    assert counts(daemon)["farm_lookups"] in (1, 2)


def test_one_client_waits_and_others_do_not(pair: Pair, redis: Redis) -> None:
    """With an engine that hangs and a long deadline. The client that waits has sent more."""
    daemon, _ = pair
    redis.send(signal.SIGSTOP)
    with Connection(daemon.socket_path) as first, Connection(daemon.socket_path) as second:
        first.send(lookup(b"smtp", b"waits") + seed(16))
        for number in range(100):
            assert len(second.ask(seed(16))) > 16
            assert second.ask(update(b"smtp", b"mine %d" % number, SESSION)) == OK
            assert second.ask(lookup(b"smtp", b"mine %d" % number)) == found(SESSION)
        redis.send(signal.SIGCONT)
        assert first.read_list() == NO_SESSION
        assert first.read_list().startswith(b"status\x000\0seed\0")


def test_a_worker_that_ends_answers_who_waits(pair: Pair, redis: Redis) -> None:
    """It found nothing; a connection that just closes would cost the client a second."""
    daemon, _ = pair
    (worker,) = daemon.workers()
    redis.send(signal.SIGSTOP)
    try:
        with Connection(daemon.socket_path) as client:
            client.send(lookup(b"smtp", b"waits for the end"))
            client.wait_until_taken()
            worker.terminate()
            assert client.read_to_end() == NO_SESSION
    finally:
        redis.send(signal.SIGCONT)
    wait_for(lambda: len(daemon.workers()) == 1 and worker not in daemon.workers(), "a worker")


def test_a_client_that_goes_while_it_waits(pair: Pair, redis: Redis) -> None:
    daemon, _ = pair
    redis.send(signal.SIGSTOP)
    (worker,) = daemon.workers()
    for number in range(20):
        with Connection(daemon.socket_path) as gone:
            gone.send(lookup(b"smtp", b"gone %d" % number))
            gone.wait_until_taken()
    with Connection(daemon.socket_path) as other:
        used = sum(worker.cpu_times()[:2])
        for _ in range(50):
            other.ask(seed(8))
            time.sleep(0.01)
        assert sum(worker.cpu_times()[:2]) - used < 0.3, "it is not busy with those that left"
    redis.send(signal.SIGCONT)
    assert ask(daemon.socket_path, lookup(b"smtp", b"after that")) == NO_SESSION


@pytest.mark.parametrize("victim", ["tlsmgr-farm", "tlsmgr-keeper", "tlsmgr-worker"])
def test_a_process_that_is_killed_comes_back(pair: Pair, redis: Redis, victim: str) -> None:
    one, other = pair
    end = len(one.log())
    killed = process_named(one, victim)
    killed.kill()
    wait_for(lambda: not killed.is_running(), "its end")
    if victim != "tlsmgr-worker":
        one.wait_for_log("answers: sessions are shared$", start=end)
    wait_for(lambda: len(one.workers()) == 1, "a worker")
    cache_id = b"after the death of " + victim.encode()
    assert ask(other.socket_path, update(b"smtp", cache_id, SESSION)) == OK
    wait_for(redis.stored, "a session in the engine")
    assert ask(one.socket_path, lookup(b"smtp", cache_id)) == found(SESSION)
    names = sorted(process.name() for process in one.processes())
    assert names.count("tlsmgr-farm") == names.count("tlsmgr-keeper") == 1


def test_no_process_and_no_module_without_a_store(make_daemon: MakeDaemon, secret: Path) -> None:
    """With the secret of a farm alone; the daemon says at its end which modules it had."""
    tell = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sorted(sys.modules), 'end of modules', file=sys.stderr))\n"
    )
    daemon = make_daemon(f"tlsmgr_farm_secret_file={secret}", sabotage=tell)
    names = {process.name() for process in daemon.processes()}
    assert not names & {"tlsmgr-farm", "tlsmgr-keeper"}
    daemon.stop()
    modules = daemon.log().splitlines()[-1].split()
    assert modules[-3:] == ["end", "of", "modules"]
    assert not [m for m in modules if re.search(r"redis|memcache|farm_|farm\.(seal|engine)", m)]


def test_the_client_library_is_in_the_farm_process_only(
    make_daemon: MakeDaemon, secret: Path, redis: Redis
) -> None:
    tell = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*[m for m in sys.modules if m.startswith('redis')],"
        " 'end of modules', file=sys.stderr))\n"
    )
    daemon = shares(make_daemon(*options(secret, redis), sabotage=tell))
    daemon.stop()
    assert daemon.log().splitlines()[-1] == "end of modules"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "tlsmgr_farm_store",
            "redis://u:hidden@host",
            "a password belongs in the file tlsmgr_farm_store_password_file;"
            " sessions are not shared",
        ),
        (
            "tlsmgr_farm_store",
            "http://host",
            "expected one of redis://, rediss://, unix://, sentinel://, sentinels://, cluster://,"
            " clusters://; sessions are not shared",
        ),
        ("tlsmgr_farm_caches", "smpt lmtp", 'unknown session cache "smpt" is ignored'),
    ],
)
@pytest.mark.parametrize("is_option", [True, False])
def test_a_mistake_is_one_error_line_that_says_where(
    make_daemon: MakeDaemon,
    secret: Path,
    tmp_path: Path,
    name: str,
    value: str,
    reason: str,
    is_option: bool,
) -> None:
    settings = dict(option.split("=", 1) for option in options(secret, "unix:///nowhere"))
    settings[name] = value
    if is_option:
        daemon = make_daemon(*(f"{key}={text}" for key, text in settings.items()))
        place = "option -o"
    else:
        file = tmp_path / "tlsmgr.cf"
        write_settled(file, "".join(f"{key} = {text}\n" for key, text in settings.items()))
        daemon = make_daemon(arguments=("-c", str(tmp_path)))
        place = f"{file}, line {list(settings).index(name) + 1}"
    (line,) = [line for line in daemon.lines() if line.startswith("error: ")]
    assert line == f"error: {place}: {name}: {reason}"
    assert ask(daemon.socket_path, update(b"smtp", b"id", SESSION)) == OK
    assert ask(daemon.socket_path, lookup(b"smtp", b"id")) == found(SESSION)
