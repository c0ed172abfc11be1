"""quantities - numbers as people read them: times, sizes, counts and shares, in few columns

Pure functions. Each returns at most 8 characters for any number that occurs, and "-" for None.
"""

from __future__ import annotations

_SPANS = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))
_SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_POWERS = (("G", 10**9), ("M", 10**6), ("k", 10**3))


def span(seconds: float | None) -> str:
    """Return a time in its two largest units without a blank between them, as `3h12min`."""
    if seconds is None:
        return "-"
    sign, whole = ("-" if seconds < 0 else ""), int(abs(seconds))
    for unit, length, smaller, part in _SPANS:
        if whole >= length:
            rest = whole % length // part
            return f"{sign}{whole // length}{unit}" + (f"{rest}{smaller}" if rest else "")
    return f"{sign}{whole}s"


def latency(microseconds: float | None) -> str:
    """Return a short time, as `12us`, `1.5ms` or `2.0s`."""
    if microseconds is None:
        return "-"
    for unit, length in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= length:
            return f"{microseconds / length:.1f}{unit}"
    return f"{microseconds:.0f}us"


def size(number: float | None) -> str:
    """Return a number of bytes, as `1.5MiB`."""
    if number is None:
        return "-"
    for unit, length in _SIZES:
        if number >= length:
            return f"{number / length:.1f}{unit}"
    return f"{number:.0f}B"


def count(number: float | None) -> str:
    """Return a number: as it is up to five digits, then as `123k` or `1.23M`."""
    if number is None:
        return "-"
    if number < 99_999.5:
        return f"{number:.0f}"
    unit, power = next((u, p) for u, p in _POWERS if number >= 0.9995 * p)
    value = number / power
    return f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"


def share(part: float, whole: float) -> str:
    """Return how much of the whole a part is, as `97%`; "-" of nothing."""
    return f"{100 * part / whole:.0f}%" if whole > 0 else "-"
