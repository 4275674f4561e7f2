"""Fourth stage: one self-contained page about a run, from the stores, the journals, the scores and the run file."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from scattercube.pipeline import charts
from scattercube.pipeline.exhibits import exhibit_of
from scattercube.pipeline.exhibits.view import CURVE_SAMPLES, View
from scattercube.pipeline.places import Places
from scattercube.pipeline.plan import in_words
from scattercube.pipeline.produced import how_to_open
from scattercube.pipeline.quarantine import Quarantined, quarantined
from scattercube.pipeline.stores.files import files_at, read_file, replace_file
from scattercube.pipeline.stores.opening import open_cube
from scattercube.pipeline.stores.protocol import ABSENT, OK, PARTIAL, QUARANTINED, REMOVED, SUPERSEDED

if TYPE_CHECKING:
    import xarray as xr

MATRIX_CLASSES = 30  # beyond, a list of confusions says more than a matrix
BAD_ROWS, CONFUSED_PAIRS = 20, 20
UNITS = {"pixel": "px", "voxel": "voxels", "sample": "samples"}


def report(places: Places) -> str:
    """Write the page and return its address.

    Every section stands alone: without labels, without a fit, without a first order or without a usable sample, those
    that have nothing to show say why.

    Raises
    ------
    StoreError
        A store is not there or damaged, or the page cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    cube, chunks = open_cube(places.cube), open_cube(places.chunks)
    journals = {"ingest": places.chunk_store.events(), "extract": places.cube_store.events()}
    run, fitted = _json(places.run_file), _json(places.scores)
    scores = fitted if "heads" in fitted else None
    view = View(cube, chunks, np.flatnonzero(np.isin(cube["status"].values, (OK, PARTIAL))))
    shown = exhibit_of(view)
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    page.filters |= {"nbytes": in_words, "percent": _percent, "figure": _figure}
    html = page.get_template("report.html.j2").render(
        title=cube.attrs.get("title") or places.entry_name,
        places=places,
        attrs=cube.attrs,
        entry=yaml.safe_load(cube.attrs.get("entry", "")) or {},
        counts=_counts(cube, places),
        sizes={str(name): size for name, size in cube["scattering"].sizes.items()},
        selection=_selection(view),
        exhibit=f"exhibits/{shown.template}",
        examples=shown.examples(view),
        filters=shown.filters(view),
        energies=shown.energies(view),
        n_shown=len(view.rows),
        n_classes=len(view.classes),
        curve_samples=CURVE_SAMPLES,
        bands=charts.BANDS,
        colour_bar=charts.colour_bar(),
        has_coverage="coverage" in cube,
        scores=scores,
        best=_best(scores) if scores else None,
        regression=_regression(scores) if scores else None,
        target_name=_target_name(cube),
        nothing=fitted.get("nothing", "no head has been fitted to this cube yet"),
        bad=_bad(quarantined(places)),
        stages=[_stage(name, events) for name, events in journals.items() if events],
        run=run,
        versions=json.loads(cube.attrs.get("versions", "{}")),
        checksums=json.dumps(json.loads(cube.attrs.get("input_checksums", "{}")), indent=1, ensure_ascii=False),
        matrix_classes=MATRIX_CLASSES,
        how_to_open=how_to_open(places.cube),
    )
    replace_file(places.page, html.encode() + _shown(fitted.get("input_digest", "")))
    return places.page


def shows(places: Places, inputs: str) -> bool:
    """Whether there is a page that shows the scores of these inputs: a run may have ended between the two."""
    folder, _, name = places.page.rpartition("/")
    last = _shown(inputs)
    return files_at(folder).read_end(name, len(last)) == last


def _shown(inputs: str) -> bytes:
    """The last line of a page: what the scores that it shows were fitted to."""
    return f"<!-- scores of {inputs} -->\n".encode()


def _json(address: str) -> dict[str, Any]:
    return dict(json.loads(read_file(address) or b"{}"))


def _counts(cube: "xr.Dataset", places: Places) -> dict[str, int]:
    status = cube["status"].values
    states = {"ok": OK, "partial": PARTIAL, "quarantined": QUARANTINED, "absent": ABSENT}
    states |= {"superseded": SUPERSEDED, "removed": REMOVED}
    return {name: int(np.sum(status == code)) for name, code in states.items()} | {
        "samples": len(status),
        "nbytes": sum(int(variable.nbytes) for name, variable in cube.data_vars.items() if name != "status"),
        "stored_nbytes": files_at(places.cube).nbytes(),
    }


def _selection(view: View) -> str:
    """The line of Python that selects by physics, for the highest of the orders 2 and 1 that the cube has."""
    for order in (2, 1):
        paths = view.order == order
        scales = view.columns.get(f"scale{order}", np.zeros(0))
        if paths.any() and len(scales):
            scale, unit = _rounded_down(float(np.max(scales[paths]))), view.unit(f"scale{order}")
            chosen = f"(cube.order == {order}) & (cube.scale{order} >= {scale:g})"
            above = f"{scale:g} {UNITS.get(unit, unit)} and above"
            return f"coarse = cube.scattering.isel(path=({chosen}).values)  # {above}"
    order = int(view.order.max())
    name = "smooth" if order == 0 else "highest"
    return f"{name} = cube.scattering.isel(path=cube.order.values == {order})"


def _rounded_down(value: float) -> float:
    """Three figures that are no more than the value: what is compared with them must not fail by rounding."""
    rounded = float(f"{value:.3g}")
    return rounded if rounded <= value else rounded - 10.0 ** (np.floor(np.log10(value)) - 2)


def _target_name(cube: "xr.Dataset") -> str:
    """What heads predict where that is a number; empty where they tell classes."""
    return str(cube["target"].attrs.get("long_name", "target")).partition(",")[0] if "target" in cube.coords else ""


def _regression(scores: Mapping[str, Any]) -> dict[str, Any] | None:
    """The regressor with the smallest error, and the drawing of its predictions; None where heads tell classes."""
    if scores["task"] != "regression":
        return None
    name = min(scores["heads"], key=lambda one: scores["heads"][one]["mae"])
    head = scores["heads"][name]
    true, predicted = np.array(head["pairs"])
    svg = charts.predictions(true, predicted, scores["unit"])
    return {"name": name, "head": head, "svg": svg, "n_shown": len(head["pairs"][0])}


def _best(scores: Mapping[str, Any]) -> dict[str, Any] | None:
    """The head with the highest accuracy, its confusion matrix by rows, and its most frequent confusions."""
    if scores["task"] != "classification":
        return None
    name = max(scores["heads"], key=lambda one: scores["heads"][one]["accuracy"])
    head, classes = scores["heads"][name], scores["classes"]
    matrix = np.array(head["confusion"])
    wrong = matrix - np.diag(np.diag(matrix))
    pairs = [divmod(int(flat), len(classes)) for flat in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED_PAIRS]]
    return {
        "name": name,
        "head": head,
        "rows": [
            {"label": label, "counts": counts, "shares": [count / max(1, sum(counts)) for count in counts]}
            for label, counts in zip(classes, matrix.tolist(), strict=True)
        ],
        "pairs": [(classes[true], classes[said], int(wrong[true, said])) for true, said in pairs if wrong[true, said]],
    }


def _bad(records: Sequence[Quarantined]) -> dict[str, Any]:
    reasons = Counter(record.reason for record in records).most_common()
    return {"n": len(records), "reasons": reasons, "rows": records[:BAD_ROWS]}


def _stage(name: str, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the journal of a stage, whatever run wrote it."""
    parts = {part: sum(event[f"{part}_s"] for event in events) for part in ("read", "compute", "write")}
    total = {part: sum(event[part] for event in events) for part in ("n_samples", "nbytes_in", "nbytes_out")}
    if any("," in event["key"] for event in events):  # fields: many keys make one sample
        total["n_samples"] = len({event["key"].partition(",")[0] for event in events})
    busy = max(sum(parts.values()), 1e-9)
    return {
        "name": name,
        "n_keys": len(events),
        "parts": parts,
        "shares": {part: seconds / busy for part, seconds in parts.items()},
        "peak_nbytes": max((event.get("peak_nbytes", 0) for event in events), default=0),
        "retried": sum(event["attempt"] > 1 for event in events),
        "samples_per_s": total["n_samples"] / busy,
        "nbytes_in_per_s": total["nbytes_in"] / busy,
        "nbytes_out_per_s": total["nbytes_out"] / busy,
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _figure(value: float) -> str:
    """At least three significant figures; whole numbers and what exceeds a thousand in full, in groups of three."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.3g}"
