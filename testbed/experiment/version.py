"""Which version of this project it is that runs, for results."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def project_version() -> str:
    """The version that is installed."""
    try:
        return version("swap-testbed")
    except PackageNotFoundError:
        return "not installed"
