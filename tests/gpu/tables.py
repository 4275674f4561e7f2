"""Tables in Markdown, and numbers as they stand in them."""

import math


def cells(*values: object) -> str:
    return f"| {' | '.join(str(value).replace('|', '¦') for value in values)} |"


def table(head: tuple[str, ...], rows: list[tuple[object, ...]], n_words: int = 2) -> str:
    """Lay out rows in Markdown; the first columns are words, the others numbers."""
    rule = cells(*["---"] * n_words, *["--:"] * (len(head) - n_words))
    return "\n".join([cells(*head), rule, *(cells(*row) for row in rows)])


def short(value: float, unit: float = 1.0) -> str:
    """Three figures of a value in its unit."""
    value /= unit
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(value: float) -> str:
    return "–" if not math.isfinite(value) else f"**{short(value)}×**"


def tiny(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1e}"
