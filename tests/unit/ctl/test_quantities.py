"""Numbers as people read them."""

from __future__ import annotations

import pytest

from tlsmgr.ctl.quantities import count, latency, share, size, span


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0, "0s"), (59.9, "59s"), (60, "1min"), (61, "1min1s"), (3600, "1h"),
        (11520, "3h12min"), (86400, "1d"), (2 * 86400 + 7200, "2d2h"), (-5, "-5s"),
    ],
)  # fmt: skip
def test_span(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(None, "-"), (0.4, "0us"), (999, "999us"), (1500, "1.5ms"), (2e6, "2.0s")],
)
def test_latency(microseconds: float | None, text: str) -> None:
    assert latency(microseconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (128 << 20, "128.0MiB")],
)
def test_size(number: float | None, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"), (0, "0"), (0.6, "1"), (99_999, "99999"), (100_000, "100k"),
        (123_456, "123k"), (999_600, "1M"), (1_234_567, "1.23M"), (5e9, "5G"), (7e14, "700000G"),
    ],
)  # fmt: skip
def test_count(number: float | None, text: str) -> None:
    assert count(number) == text


def test_share() -> None:
    assert (share(1, 3), share(0, 5), share(1, 0)) == ("33%", "0%", "-")


@pytest.mark.parametrize("power", range(13))
def test_a_count_fits_its_column(power: int) -> None:
    for number in (10**power - 1, 10**power, 10**power + 1, 9.996 * 10**power):
        assert len(count(number)) <= 7
