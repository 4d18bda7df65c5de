"""Running pytest files in a guest."""

from __future__ import annotations

from e2e.kernels.boot import Guest

_PYTEST = ("python3", "-m", "pytest", "-p", "no:cacheprovider", "--quiet", "--no-header")
# The repository is read-only there.
_ENVIRONMENT = {"HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis"}


def run_inside(guest: Guest, *words: str, limit_s: float) -> None:
    """Run pytest with a file and other words. Raises AssertionError with all that it said."""
    number = guest.start([*_PYTEST, *words], timeout_s=limit_s, environment=_ENVIRONMENT)
    done = guest.wait(number, limit_s)
    print(done.output)
    assert done.code == 0, done.output
