"""Numbers as people read them."""

from __future__ import annotations


def with_error(value: float, error: float | None, digits: int) -> str:
    return f"{value:,.{digits}f}" + ("" if error is None else f" ± {error:,.{digits}f}")


def megabytes(value: float) -> str:
    return f"{value:,.{max(0, 2 - (value >= 10) - (value >= 100))}f}"


def span(widths: list[int]) -> str:
    low, high = min(widths), max(widths)
    return f"{low}" if low == high else f"{low}–{high}"


def counted(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
