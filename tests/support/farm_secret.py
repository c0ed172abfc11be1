"""farm_secret - the example secret of tlsmgr-farm(7), and secret files for tests."""

from __future__ import annotations

import base64
import calendar
import time
from collections.abc import Mapping
from pathlib import Path

DAY = 86400
EXAMPLE_DATE = "2026-11-25"
EXAMPLE_KEY = bytes.fromhex("abcdef0123456789" * 4)
EXAMPLE = f"{EXAMPLE_DATE} q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k=\n"


def at(text: str) -> int:
    """Return the time of `YYYY-MM-DD HH:MM:SS` (UTC), in seconds."""
    return calendar.timegm(time.strptime(text, "%Y-%m-%d %H:%M:%S"))


def day(date: str) -> int:
    """Return the number of a day, given as YYYY-MM-DD."""
    return at(f"{date} 00:00:00") // DAY


def today() -> str:
    """Return today's date (UTC)."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def file_text(keys: Mapping[str, bytes]) -> str:
    """Return the text of a secret file with these secrets by date."""
    return "".join(f"{date} {base64.b64encode(key).decode()}\n" for date, key in keys.items())


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    """Make or change a secret file and return its path."""
    path.write_text(text)
    path.chmod(mode)
    return path
