"""Both kinds of shared memory and semaphores, for tests that must pass with either."""

import posix_ipc
import pytest

KINDS = ("posix", "unnamed")


def refuse_posix(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have posix_ipc refuse objects of these classes, as a security policy may."""

    def refuse(*_: object, **__: object) -> None:
        raise posix_ipc.PermissionsError("No permission to make this")

    for name in names:
        monkeypatch.setattr(posix_ipc, name, refuse)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test once with each kind; import this name to have it, and ask for it first."""
    if request.param == "unnamed":
        refuse_posix(monkeypatch, "SharedMemory", "Semaphore")
    return str(request.param)
