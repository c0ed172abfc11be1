"""The real smtp(8) delivers in parallel over TLS 1.3: no two connections show the same ticket."""

from __future__ import annotations

import re

from support.control_client import data_of, status_of
from support.launcher import launcher
from support.postfix_instance import PostfixInstance, need_postfix, wait_until
from support.recording_sink import RecordingSink
from support.settled_files import write_settled

MESSAGES, AT_ONCE = 40, 8
PATIENCE = 60.0


def deliver(sink: RecordingSink, mode: str) -> tuple[int, int]:
    """Deliver messages, the first alone; return how many lookups hit, and how many are kept."""
    need_postfix("btree")
    parameters = {
        "relayhost": f"[127.0.0.1]:{sink.port}",
        "initial_destination_concurrency": str(AT_ONCE),
        "smtp_destination_concurrency_limit": str(AT_ONCE),
        "smtp_destination_recipient_limit": "1",
        "smtp_connection_cache_on_demand": "no",
    }
    with launcher() as path:
        postfix = PostfixInstance(tlsmgr=path, mail=True, chroot=True)
        postfix.main_cf |= parameters
        write_settled(postfix.config / "tlsmgr.cf", f"tlsmgr_single_use_tickets = {mode}\n")
        with postfix:
            postfix.deliver(1)
            queued = {postfix.inject() for _ in range(MESSAGES - 1)}
            sent = re.compile(r"/smtp\[\d+\]: (\w+): .*status=sent")
            wait_until(lambda: queued <= set(sent.findall(postfix.log())), PATIENCE)
            service = str(postfix.queue / "private" / "tlsmgr")
            hits = status_of(service)["caches"]["smtp"]["hits"]
            listed = data_of(service, "list smtp match=127.0.0.1")
            assert {entry["protocol"] for entry in listed} == {"TLSv1.3"}
            assert all(entry["bytes"] > 100 and entry["age_seconds"] < 600 for entry in listed)
            assert postfix.complaints() == []
            assert postfix.stop() == []
    return hits, len(listed)


def test_no_ticket_is_used_twice() -> None:
    with RecordingSink() as sink:
        hits, kept = deliver(sink, "strict")
    assert sink.connections == MESSAGES
    assert len(sink.tickets) == len(set(sink.tickets)) == hits == sink.resumed
    assert sink.resumed > MESSAGES / 2
    assert kept <= 8


def test_the_last_ticket_of_a_server_stays() -> None:
    with RecordingSink() as sink:
        hits, kept = deliver(sink, "yes")
    assert hits == sink.resumed == MESSAGES - 1
    assert len(set(sink.tickets)) > MESSAGES / 2
    assert 1 <= kept <= 8


def test_without_it_tickets_are_used_again() -> None:
    """As with Postfix's own tlsmgr."""
    with RecordingSink() as sink:
        hits, kept = deliver(sink, "no")
    assert hits == sink.resumed
    assert kept == 1
    assert len(set(sink.tickets)) < len(sink.tickets)
