"""What a cascade of portable primitives goes through: filters of one scale, and the prefixes that they meet."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Step:
    """What some filters of one scale do to some of the prefixes that lead there.

    Parameters
    ----------
    scales
        (j1, …, jm), the last that of the filters.
    filters, prefixes
        Which of the group's filters, which of the prefixes.
    rows
        The output rows of (filters, prefixes), flattened.
    longer
        Filters and prefixes as new prefixes; None where no path goes on.
    """

    scales: tuple[int, ...]
    filters: slice
    prefixes: slice
    rows: Rows
    longer: Rows | None
