"""checkout - the paths of this checkout and of the tests' data."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
DATA = CHECKOUT / "tests" / "data"
