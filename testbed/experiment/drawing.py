"""Figures without a display: a new one from matplotlib, which not every installation has, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FORMATS = ("svg", "png")


class NoFigure(Exception):
    """The figure cannot be drawn; the message is one line."""


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that many inches. Raises NoFigure without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NoFigure("no figure: matplotlib is not installed (pip install 'swap-testbed[figures]')") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, directory: Path, name: str) -> list[Path]:
    """Write the figure into `directory`, in each format; returns the paths."""
    paths = [directory / f"{name}.{form}" for form in FORMATS]
    for path in paths:
        figure.savefig(path, dpi=120)
    return paths
