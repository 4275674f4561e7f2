"""The commands of those who have cubes: compare, export, verify, and see what was produced."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from scattercube.flows.terminal import OutFile, print_json, say, warn
from scattercube.pipeline.places import root_address
from scattercube.pipeline.plan import in_words

if TYPE_CHECKING:
    from scattercube.pipeline.differences import Differences, Samples


def diff(a: str, b: str, /, *, tolerance: float = 0.0, json: bool = False) -> int:
    """Compare two feature cubes. Exit code 0 if they hold the same, 1 if not.

    What counts is what they hold: Spec, samples by `sample_id`, status, columns and numbers. Other versions of the
    code, another text of the entry or other checksums of the input are shown, and alone do not make cubes differ.

    Parameters
    ----------
    a, b
        The cubes, by path or URL: <store>/<entry>/features/<spec>.
    tolerance
        Numbers are the same where they differ by no more than this share of the larger one.
    json
        One JSON object, for programs.
    """
    from scattercube.pipeline.differences import diff as compare

    found = compare(a, b, tolerance=tolerance)
    if json:
        print_json(found.document())
    else:
        for part in _differences(found):
            say.print(part)
    return 0 if found.same else 1


def export(cube: str, out: OutFile, /) -> int:
    """Write a feature cube as a Parquet file: a row a sample, with its columns, its status and its numbers.

    Parameters
    ----------
    cube
        The cube, by path or URL: <store>/<entry>/features/<spec>.
    out
        The file; one that is there is replaced. Cubes without space or time get a column a path, others one column of
        tensors, which tools that do not know them read as lists.
    """
    from scattercube.pipeline.exports import export as write

    done = write(cube, out)
    say.print(f"{done.n_rows:,} rows of {done.n_columns} columns, {in_words(done.nbytes)}, in {out}")
    return 0


def verify(place: str, /, *, json: bool = False) -> int:
    """Read stores again, and compare all their numbers with the digests of when they were written.

    Exit code 0 if all are the same, 1 if not: then what is wrong is listed.

    Parameters
    ----------
    place
        A cube, a chunk store, or what was a --store, by path or URL: then everything in it.
    json
        One JSON object, for programs: the faults of each store.
    """
    from scattercube.pipeline.produced import faults_of, stores_at

    faults: dict[str, list[str]] = {}
    for at in stores_at(place):
        faults[at] = list(faults_of(at))
        if not json:
            warn.print(f"{at}: {'as it was written' if not faults[at] else f'{len(faults[at])} faults'}", style="dim")
            for sentence in faults[at]:
                say.print(sentence)
    n = sum(map(len, faults.values()))
    if json:
        print_json(faults)
    else:
        say.print(f"{len(faults)} stores: " + ("all numbers are as they were written" if not n else f"{n} faults"))
    return 1 if n else 0


def show_produced(store: str, data: str | None, *, as_json: bool) -> None:
    """List the cubes under a root of stores."""
    from scattercube.pipeline.catalog import data_root
    from scattercube.pipeline.produced import produced

    found = produced(root_address(store), data_root(data))
    if as_json:
        print_json([cube.document() for cube in found])
        return
    table = Table(title=f"{len(found)} cubes under {store}", title_justify="left", show_lines=True)
    table.add_column("cube", overflow="fold")
    table.add_column("Spec, and what a sample has", overflow="fold")
    table.add_column("samples, and state")
    for cube in found:
        name = f"{cube.entry}\n{cube.spec_digest}"
        if cube.problem:
            table.add_row(name, Text(cube.problem), in_words(cube.nbytes))
            continue
        shape = " × ".join(f"{size} {dim}" for dim, size in cube.dims.items() if dim != "sample")
        samples = ", ".join(f"{n:,} {word}" for word, n in cube.samples.items())
        version = f"version {cube.versions[-1]} of " if cube.versions else ""
        state = f"{version}{cube.created[:16].replace('T', ' ')}, {in_words(cube.nbytes)}"
        table.add_row(name, f"{cube.spec}\n{shape}, {cube.dtype}", f"{samples}\n{state}\n{cube.freshness}")
    say.print(table)
    for cube in found:
        if not cube.problem:
            say.print(cube.how_to_open)


def _differences(found: "Differences") -> Sequence[Any]:
    """What ``diff`` shows: tables of what differs, and a last line."""
    parts: list[Any] = []
    for title, pairs in (("defined otherwise", found.defined), ("made from or by something else", found.made)):
        if pairs:
            table = Table("", "a", "b", title=title, title_justify="left")
            for name, (mine, theirs) in pairs.items():
                table.add_row(name, _cell(mine), _cell(theirs))
            parts.append(table)
    rows = {"only in a": found.only_a, "only in b": found.only_b, "numbers": found.numbers}
    rows |= {f"status {change}": samples for change, samples in found.status.items()}
    rows |= {f"column {name}": samples for name, samples in found.columns.items()}
    if any(samples.n for samples in rows.values()):
        table = Table("samples that differ", "how many", "the first", title_justify="left")
        for name, samples in rows.items():
            if samples.n:
                table.add_row(name, f"{samples.n:,}", _first(samples))
        parts.append(table)
    if found.orders:
        table = Table("order", "paths that differ", "largest", "relative", "worst path", "there", "NaN in one")
        for each in found.orders:
            name = str(each.order) if each.array == "scattering" else f"{each.array} {each.order}"
            numbers = (f"{value:.2g}" for value in (each.largest, each.relative))
            paths = f"{each.n_differ} of {each.n_paths}"
            table.add_row(name, paths, *numbers, each.worst_path, f"{each.worst_relative:.2g}", str(each.n_gaps))
        parts.append(table)
    if found.incomparable:
        parts.append(f"numbers were not compared: {found.incomparable}")
    said = "the same" if found.same else "different"
    parts.append(f"{said}: {found.n_common:,} samples are in both")
    return parts


def _cell(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _first(samples: "Samples") -> str:
    return ", ".join(samples.first[:3]) + (" …" if samples.n > 3 else "")
