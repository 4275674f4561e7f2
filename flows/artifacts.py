"""What a finished run leaves in Prefect: tables of scores and quarantine, a picture, a summary with links."""

from dataclasses import asdict

import numpy as np
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from scattercube.flows.summary import conclusion
from scattercube.pipeline.charts import confusion, predictions
from scattercube.pipeline.job import Outcome
from scattercube.pipeline.quarantine import quarantined

QUARANTINE_ROWS = 100


def publish_artifacts(outcome: Outcome) -> None:
    """Create the artifacts of a run; one that did nothing leaves only its summary."""
    places, title = outcome.prepared.places, outcome.prepared.entry.title
    create_markdown_artifact(key="summary", markdown="\n\n".join(conclusion(outcome)), description=title)
    if outcome.nothing_new:
        return
    create_table_artifact(key="phases", table=outcome.phases, description=f"{title}: phases, seconds and shards")
    bad = [asdict(record) for record in quarantined(places)]
    if bad:
        shown = f"{len(bad)} quarantined records, the first {min(len(bad), QUARANTINE_ROWS)}"
        create_table_artifact(key="quarantine", table=bad[:QUARANTINE_ROWS], description=f"{title}: {shown}")
    if outcome.fitted is not None and outcome.fitted.scores is not None:
        scores = outcome.fitted.scores
        figures = {"accuracy": "accuracy", "standard error": "error_se"}
        if scores["task"] == "regression":
            figures = {"mean absolute error": "mae", "standard error": "mae_se", "R²": "r2"}
        rows = [
            {"on": on, "head": name} | {title: one[figure] for title, figure in figures.items()}
            for on in ("heads", "baseline")
            for name, one in scores[on].items()
        ]
        create_table_artifact(key="scores", table=rows, description=scores["summary"])
        if scores["task"] == "regression":
            best = min(scores["heads"].values(), key=lambda one: one["mae"])
            true, found = np.array(best["pairs"])
            key, picture = "predictions", predictions(true, found, scores["unit"], alone=True)
        else:
            best = max(scores["heads"].values(), key=lambda one: one["accuracy"])
            key, picture = "confusion", confusion(np.array(best["confusion"]), scores["classes"])
        create_image_artifact(key=key, image_url=picture, description=f"{title}, {best['title']}")
