"""How a version of a plain store begins: what is written before the first shard, and what its run folder holds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scattercube.pipeline.errors import StoreError
from scattercube.pipeline.spec import digest
from scattercube.pipeline.stores import checks
from scattercube.pipeline.stores.contents import difference, lasting
from scattercube.pipeline.stores.documents import (
    ROOT_DOCUMENT,
    appended,
    documents,
    metadata_of,
    refuse_other_arrays,
    zarr_store,
)
from scattercube.pipeline.stores.files import PARTIAL_FILE, REMEDY, Files
from scattercube.pipeline.stores.protocol import IDENTITY
from scattercube.pipeline.stores.states import VERSIONS, WAITING, State

if TYPE_CHECKING:
    import xarray as xr

_JOURNAL = "journal-"


def journal(number: int) -> str:
    """Return the name of the log of a version's finished keys."""
    return f"{_JOURNAL}{number}"


def waiting(
    number: int,
    document: Mapping[str, Any] | None,
    arrays: Sequence[str],
    first: int,
) -> dict[str, Any]:
    """Describe a version that is begun (`State.begun`); without a document, one that is about to."""
    identity = document["attributes"][IDENTITY] if document else ""
    return {
        "number": number,
        "token": f"{number}:{digest(identity)}",
        "arrays": list(arrays),
        "first": first,
        "marks": [],
        "settled": False,
        "document": document,
    }


def wait(run: Files, begun: Mapping[str, Any]) -> None:
    """Write down what is begun."""
    run.write(WAITING, json.dumps(begun).encode())


def begin(group: Files, run: Files, state: State, template: "xr.Dataset", first: int) -> None:
    """Begin a version that is neither published nor begun, in place of one that is given up.

    Raises
    ------
    StoreError
        What is there is something else.
    """
    _refuse_another(group, state, json.loads(template.attrs[IDENTITY]), first)
    published = State(state.url, state.root)
    arrays, number = [str(name) for name in template.data_vars], published.number + 1
    if first:
        refuse_other_arrays(state.url, published.metadata, template)
    # From here on what stands in the group is ours, and what was begun before is not to be gone on with.
    wait(run, waiting(number, None, arrays, first))
    run.forget(journal(number))
    if first:
        for name in list(checks.leftovers(published, group)):
            group.remove(name)
        document = _grown(group, published, template, first)
    else:
        group.clear()
        made = documents(template)
        document = json.loads(made.pop(ROOT_DOCUMENT))
        for name, content in made.items():
            group.write(name, content)
    wait(run, waiting(number, document, arrays, first))


def give_up(run: Files, number: int) -> None:
    """Let go of a version that was begun."""
    run.remove(WAITING)
    run.forget(journal(number))


def forget(run: Files) -> None:
    """Remove all that the run folder says of a store."""
    for name in list(run.names()):
        if name == WAITING or name.startswith(_JOURNAL):
            run.remove(name)


def leftovers(run: Files, state: State) -> Iterator[str]:
    """Yield partial files, journals of no version, and what waited for nothing."""
    number = state.number
    for name in run.names():
        if name == WAITING and state.begun is None and not state.cut_off:
            yield name
        of = name.removeprefix(_JOURNAL).partition("/")[0].removesuffix(".jsonl")
        if name.endswith(PARTIAL_FILE) or (name.startswith(_JOURNAL) and of.isdecimal() and int(of) > number):
            yield name


def _refuse_another(group: Files, state: State, wanted: Mapping[str, Any], first: int) -> None:
    held = state.identity()
    if held is None:
        if not state.cut_off and next(iter(group.names()), None) is not None:
            raise StoreError(f"{state.url}: holds something that no run has made; choose another --store")
        held = wanted
    if held.get("format", 0) > wanted.get("format", 0):
        raise StoreError(
            f"{state.url}: is of format {held['format']}, of a newer scattercube; this one knows up to format "
            f"{wanted.get('format', 0)}: update it, or choose another --store"
        )
    if lasting(held) != lasting(wanted) or (state.n_published and not first):
        raise StoreError(f"{state.url}: holds another cube: {difference(held, wanted)}; {REMEDY}")
    if first != state.n_published:
        raise StoreError(
            f"{state.url}: has {state.n_published} published samples; new ones were to be put behind {first}; run again"
        )


def _grown(group: Files, published: State, template: "xr.Dataset", first: int) -> dict[str, Any]:
    """Write the new rows of all columns, and return the document of the group with them."""
    document: dict[str, Any] = json.loads(json.dumps(published.root))
    source = zarr_store(published.url)
    for name, metadata in metadata_of(document).items():
        if metadata["dimension_names"][:1] == ["sample"]:
            if name in template.coords:
                column = template.variables[name]
                for file, content in appended(published.url, name, metadata, column, first, source).items():
                    group.write(file, content)
            metadata["shape"][0] = template.sizes["sample"]
    held = document["attributes"]
    bare = json.loads(documents(template[[]])[ROOT_DOCUMENT])
    document["attributes"] = {**bare["attributes"], VERSIONS: held[VERSIONS]}
    if "coordinates" in held:  # xarray's list of them
        document["attributes"]["coordinates"] = held["coordinates"]
    return document
