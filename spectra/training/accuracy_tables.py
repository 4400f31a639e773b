"""Set accuracies beside the published ones, as markdown; what has not been run is an empty cell."""

from collections.abc import Iterable, Sequence

from ..writing import Table
from . import published
from .accuracies import Accuracies, Group, named, published_of
from .published import PARTS, Row, Score
from .table import ENTRIES, method_name

TITLES = {
    "digits": "long-tailed digits",
    "cifar10": "CIFAR-10-LT",
    "cifar100": "CIFAR-100-LT",
    "imagenet-lt": "ImageNet-LT",
    "inat2018": "iNaturalist 2018",
}
_OURS = ("ours, %", "head", "mid", "tail")
_PUBLISHED = ("published, %", "head", "mid", "tail")
_HEADER = ("run", *_OURS, *_PUBLISHED, "difference", "runs")


def main_table(found: Accuracies, dataset: str) -> Table:
    """Set the paper's rows of a data set, by its protocol alone (Tables 1 and 2)."""
    rows = (
        _row(method, found.cell(dataset, method), published_of(dataset, method))
        for method in methods(dataset)
    )
    return _table(_HEADER, rows)


def other_table(found: Accuracies, dataset: str) -> Table:
    """Set every other run of a data set: shorter ones, other batches, radii, ratios or steps."""
    shown = [found.cell(dataset, method) for method in methods(dataset)]
    rows = []
    for group in found.groups(dataset):
        if group not in shown:
            twin = any(cell is not None and cell.label == group.label for cell in shown)
            label = f"{group.label}, {group.recipe.precision}" if twin else group.label
            rows.append(_row(label, group, group.published))
    return _table(_HEADER, sorted(rows, key=_order))


def optimiser_table(found: Accuracies, dataset: str) -> Table:
    """Set CE+DRW with the steps that are said to leave saddle points (Table 3)."""
    rows = []
    for method in ("CE+DRW", "CE+DRW+PGD", "CE+DRW+LPF-SGD", "CE+DRW+SAM"):
        _, ours, _, _, tail, paper, _, _, goal, *rest = _row(
            method, found.cell(dataset, method), published_of(dataset, method)
        )
        rows.append((method, ours, tail, paper, goal, *rest))
    header = ("run", "ours, %", "tail", "published, %", "tail", "difference", "runs")
    return _table(header, rows)


def radius_table(found: Accuracies) -> Table:
    """Set CE+DRW+SAM on CIFAR-10-LT by SAM's radius, with what is read off the paper's figure."""
    rows = []
    for rho, row in published.SWEEP.items():
        group = found.cell("cifar10", "CE+DRW+SAM", rho=rho)
        _, ours, _, _, tail, paper, _, _, goal, *rest = _row(f"{rho:g}", group, row)
        rows.append((f"{rho:g}", ours, tail, paper, goal, *rest))
    header = ("ρ", "ours, %", "tail", "published, %", "tail", "difference", "runs")
    return _table(header, rows)


def large_table(found: Accuracies) -> Table:
    """Set both large data sets side by side, with the two-stage methods that the paper lists."""
    sets = ("inat2018", "imagenet-lt")
    rows = []
    for method in published.MAIN[sets[0]]:
        row = [method, "yes" if method in published.TWO_STAGE else "no"]
        for data in sets:
            cells = _row(method, found.cell(data, method), published_of(data, method))
            row += [cells[1], *cells[5:9]]
        rows.append(tuple(row))
    heads = (f"{TITLES[data]}: {name}" for data in sets for name in ("ours, %", *_PUBLISHED))
    header = (name if "%" in name else name.split(": ")[1] for name in heads)
    return Table(("run", "two-stage", *header), tuple(rows), (0, 1))


def further_table(found: Accuracies) -> Table:
    """Set what is published of other ratios and of methods that this trainer does not have."""
    rows = []
    for (data, ratio, method), row in published.FURTHER.items():
        group = found.cell(data, method, ratio=ratio)
        _, ours, *_ = cells = _row(method, group, row)
        goal = f"{row.overall.mean:g}"  # some are printed to two decimals
        rows.append((TITLES[data], f"{ratio:g}", method, ours, goal, *cells[-2:]))
    header = ("data", "ratio", "run", "ours, %", "published, %", "difference", "runs")
    return _table(header, rows, words=3)


def page(found: Accuracies, dataset: str, command: str) -> str:
    """Write the page of a data set: the paper's rows, all other runs, and where they are from."""
    held = found.groups(dataset)
    recipe = next(r for e in ENTRIES.values() if (r := e.recipe).dataset == dataset)
    ratio = "" if recipe.imbalance == "none" else f", ratio {recipe.ratio:g}"
    lines = [f"# Test accuracy on {TITLES[dataset]}{ratio}", ""]
    lines += [str(main_table(found, dataset)), ""]
    if (others := other_table(found, dataset)).rows:
        lines += ["Runs of other protocols, each named by what differs:", "", str(others), ""]
    sources = [name for group in held for run in group.runs for name in run.sources]
    lines += [f"Remade by `{command}`.", ""]
    if sources:
        lines += [f"Read from {', '.join(f'`{name}`' for name in sources)}.", ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes(found, dataset)), ""])


def notes(found: Accuracies, dataset: str) -> list[str]:
    """List what has to be known of the numbers, and which files were not counted."""
    others = {
        group.label: group.source
        for group in found.groups(dataset)
        if group.published and not group.source.startswith("paper")
    }
    told = [
        "Accuracy in % on the whole test set after the last epoch; ± is the standard deviation "
        "over training seeds, and a value without it is one run."
    ]
    if published.MAIN.get(dataset):
        rest = ", where no other source is named" if others else ""
        told.append(
            f"Published{rest}: Rangwani et al. (2022), which does not say how many seeds a mean "
            "has, nor whether the last epoch counts or the best one on the test set."
        )
    told += [f"Published beside {label}: {source}." for label, source in others.items()]
    cells = [found.cell(dataset, method) for method in methods(dataset)]
    if other := sorted({c.recipe.precision for c in cells if c} - {"float32"}):
        told.append(
            f"The protocol is float32; {' and '.join(other)} in the last column says where it was "
            "another precision."
        )
    climbs = [c.recipe for c in cells if c and c.recipe.step == "sam"]
    if climbs and not any(recipe.bn_both_passes for recipe in climbs):
        told.append(
            "SAM: batch norm's running statistics are taken at w alone; in the released code they "
            "move in both passes (`--bn-both-passes`)."
        )
    for method in dict.fromkeys(method_name(group.recipe) for group in found.groups(dataset)):
        name = named(dataset, method)
        if name and (about := ENTRIES[name].about).startswith("paper; "):
            told.append(f"{method}: {about.removeprefix('paper; ')}.")
    return told + list(found.notes)


def methods(dataset: str) -> tuple[str, ...]:
    """List the paper's runs of a data set in its order; the digits have those of CIFAR."""
    return tuple(published.MAIN.get(dataset, published.MAIN["cifar10"]))


def _table(header: Sequence[str], rows: Iterable[tuple[str, ...]], words: int = 1) -> Table:
    """Set a table whose first columns are words, and whose last says which runs it is of."""
    return Table(tuple(header), tuple(rows), (*range(words), len(header) - 1))


def _order(row: tuple[str, ...]) -> list[str]:
    return row[0].split(", ")  # as a whole, "CE+DRW+SAM" would stand before "CE+DRW, 50 epochs"


def _row(label: str, group: Group | None, row: Row | None) -> tuple[str, ...]:
    """Set nine cells: the label, ours and published over `PARTS`; then difference and runs."""
    ours = [None if group is None else group.of(part) for part in PARTS]
    goals = [None if row is None else row.of(part) for part in PARTS]
    difference = ""
    if ours[0] is not None and goals[0] is not None:
        difference = f"{ours[0].mean - goals[0].mean:+.1f}".replace("-", "−")
    seeds = "" if group is None else group.seeds
    return (label, *map(_cell, ours), *map(_cell, goals), difference, seeds)


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.mean:.1f}" + ("" if score.std is None else f" ± {score.std:.1f}")
