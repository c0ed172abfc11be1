"""farm_caches - which session caches tlsmgr_farm_caches names, and the error for a name of none.

A module of its own, as the text of the error belongs to the farm's page; the daemon and
`tlsmgrctl check` have it from here.
"""

from collections.abc import Callable

from tlsmgr.config.load import Configuration
from tlsmgr.config.parameters import CACHE_TYPES

PARAMETER = "tlsmgr_farm_caches"


def farm_caches(conf: Configuration, error: Callable[[str], object]) -> list[str]:
    """Return the names of caches in the parameter, sorted; call `error` for each other name."""
    names = sorted(set(conf.text(PARAMETER).replace(",", " ").split()))
    for name in names:
        if name not in CACHE_TYPES:
            error(f'{conf.place(PARAMETER)}: unknown session cache "{name}" is ignored')
    return [name for name in names if name in CACHE_TYPES]
