"""What a store holds, in a few words: what must be the same for a run to go on with it. What grows is no part of it."""

from typing import Any

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.plan import Plan
from scattercube.pipeline.sources import Layout
from scattercube.pipeline.spec import Spec, digest

FORMAT = 3  # raised when a cube of the new code cannot be continued by the old


def of_chunks(entry: Entry, layout: Layout, plan: Plan) -> dict[str, Any]:
    """Return what a chunk store holds."""
    return {
        "format": FORMAT,
        "entry": entry.digest,
        "shape": list(plan.signal_shape[1:]),
        "dtype": str(layout.dtype),
        "spacing": list(layout.spacing),
        "grid": plan.signal_grid.extent(),
    }


def of_cube(spec: Spec, plan: Plan, chunks: dict[str, Any]) -> dict[str, Any]:
    """Return what a feature cube holds, which is made from a chunk store that holds this."""
    return {
        "format": FORMAT,
        "spec": spec.digest,
        "chunks": digest(chunks),
        "shape": list(plan.feature_shape[1:]),
        "grid": plan.feature_grid.extent(),
    }
