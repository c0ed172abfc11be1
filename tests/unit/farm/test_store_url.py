"""The URL of the store: its forms, what is shown of it, and mistakes."""

from __future__ import annotations

import pytest

from tlsmgr.farm.store_url import BadUrl, Host, parse

FORMS = {
    "redis://cache": ("redis://cache:6379", "redis://cache:6379"),
    "rediss://u@cache:7000/2?ssl_ca_certs=/x.pem": (
        "rediss://cache:7000/2",
        "rediss://u@cache:7000/2?ssl_ca_certs=/x.pem",
    ),
    "redis://[fc00::3]:1": ("redis://[fc00::3]:1", "redis://[fc00::3]:1"),
    "unix:///run/valkey.sock": ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    "unix://user@/run/s?db=1": ("unix:///run/s", "unix://user@/run/s?db=1"),
    "sentinel://a,b:2/main/3": ("sentinel://a:26379,b:2/main/3", "redis://a:26379"),
    "clusters://a:1,b:2?x=y": ("clusters://a:1,b:2", "rediss://a:1?x=y"),
}


@pytest.mark.parametrize("text", FORMS)
def test_forms(text: str) -> None:
    url = parse(text)
    assert (url.shown, url.plain) == FORMS[text]


def test_hosts() -> None:
    url = parse("sentinel://a,b:2/main")
    assert (url.hosts, url.path) == ((Host("a", 26379), Host("b", 2)), "/main")


MISTAKES = {
    "": "expected one of redis://, ",
    "cache.example.com": "expected one of redis://, ",
    "http://x": "expected one of redis://, ",
    "redis://": "no host",
    "redis://a,b": "more than one host",
    "redis://a:b:c": "malformed host or port",
    "redis://a:99999": "malformed host or port",
    "redis://[": "malformed",
    "redis://u:hidden@host": "a password belongs in the file tlsmgr_farm_store_password_file",
    "redis://:hidden@host": "a password belongs in the file tlsmgr_farm_store_password_file",
    "redis://host?db=1&password=hidden": "a password belongs in the file",
    "sentinel://host/main?password=hidden": "a password belongs in the file",
    "unix:///s?username=u&p%61ssword=hidden": "a password belongs in the file",
    "unix://s": "expected unix:// and the absolute path of a socket",
    "sentinel://host:1,other:2": "no name of a master",
    "cluster:///x": "no host",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes(text: str) -> None:
    with pytest.raises(BadUrl) as caught:
        parse(text)
    assert str(caught.value).startswith(MISTAKES[text])
    assert "hidden" not in str(caught.value)
