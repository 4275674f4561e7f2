"""What back-ends say alike of what a store holds: identities compared, numbers digested, statuses put together."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scattercube.pipeline.spec import digest
from scattercube.pipeline.stores.protocol import OK, QUARANTINED, ROWS


def lasting(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an identity that is the same in all versions of a store."""
    return {name: value for name, value in identity.items() if name != ROWS}


def difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in what two identities differ; nothing where they do not."""
    names = [name for name in {**held, **wanted} if held.get(name) != wanted.get(name)]
    return "; ".join(f"{name} is {held.get(name)}, this run has {wanted.get(name)}" for name in names)


def digest_of(arrays: Iterable[np.ndarray]) -> str:
    """Return the digest of a key's numbers, array by array: the first half of their SHA-256."""
    content = hashlib.sha256()
    for values in arrays:
        content.update(np.ascontiguousarray(values).data)
    return content.hexdigest()[:32]


def content_digest(identity: Any, events: Iterable[Mapping[str, Any]], versions: Iterable[Mapping[str, Any]]) -> str:
    """Return a digest of a whole store: its identity, the numbers of every recorded key, and marks, if any."""
    marks = [each["marks"] for each in versions if each["marks"]]
    content = [identity, sorted((event["key"], event["digest"]) for event in events)]
    return digest(content + ([marks] if marks else []))


def settled(events: Iterable[Mapping[str, Any]], n_samples: int) -> np.ndarray:
    """Return the status of samples that are made by several keys each: the worst that any of these says."""
    status = np.full(n_samples, OK, np.uint8)
    for sample, code in (pair for event in events for pair in event["not_ok"]):
        if status[sample] != QUARANTINED:
            status[sample] = code
    return status
