"""What is quarantined now: the records of both journals, without those that were mended or are gone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from scattercube.pipeline.growth import Ledger, Retries
from scattercube.pipeline.places import Places
from scattercube.pipeline.stores.files import read_file
from scattercube.pipeline.stores.protocol import QUARANTINED, Store


@dataclass(frozen=True)
class Quarantined:
    """A sample that cannot be used, and why.

    Attributes
    ----------
    sample_id
        Its name: member, and position in it.
    source
        Archive and member.
    reason
        The class of the fault: ``unreadable``, ``wrong-shape``, ``non-finite``, ``too-large`` or ``missing``.
    message
        What was wrong.
    stage
        Which stage found it: ``ingest`` or ``extract``.
    attempts
        How many runs have read it, or tried to: those that recorded it, and those that found it as it was.
    last
        When the last one did, ISO 8601 in UTC.
    """

    sample_id: str
    source: str
    reason: str
    message: str
    stage: str
    attempts: int
    last: str


def quarantined(places: Places) -> list[Quarantined]:
    """Return what is quarantined in the chunk store and the cube, in the order of their rows.

    Raises
    ------
    StoreError
        A store is damaged.
    """
    found: dict[str, Quarantined] = {}
    for store in (places.chunk_store, places.cube_store):
        if store.versions():
            found |= {record.sample_id: record for record in _of(store) if record.sample_id not in found}
    if found and (retries := Ledger.of(read_file(places.ledger)).retries):
        rows = slice(0, places.chunk_store.versions()[-1].n_rows)
        names, members = (places.chunk_store.read(name, rows).tolist() for name in ("sample_id", "member"))
        for name, member in dict(zip(names, members, strict=True)).items():  # a name stands at superseded rows too
            if name in found and member in retries and found[name].stage == "ingest":
                found[name] = _tried_again(found[name], retries[member])
    return list(found.values())


def _tried_again(record: Quarantined, retries: Retries) -> Quarantined:
    last = max(record.last, _as_text(retries.last))
    return replace(record, attempts=record.attempts + retries.times, last=last)


def _as_text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _of(store: Store) -> Iterator[Quarantined]:
    events = store.events()
    tried: dict[str, list[tuple[float, str, dict[str, str]]]] = {}
    for event in events:
        for record in event["bad"]:
            tried.setdefault(record["sample_id"], []).append((event["started"], event["stage"], record))
    (n_rows,) = {version.n_rows for version in store.versions()[-1:]}
    rows = slice(0, n_rows)
    status = store.read("status", rows)
    if not np.any(status == QUARANTINED):
        return
    for name in store.read("sample_id", rows)[status == QUARANTINED].tolist():
        if name in tried:
            started, stage, record = max(tried[name], key=lambda one: one[0])
            yield Quarantined(**record, stage=stage, attempts=len(tried[name]), last=_as_text(started))
