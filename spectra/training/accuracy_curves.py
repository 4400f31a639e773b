"""What the figures of accuracies show, as plain numbers: classes, and SAM's radius."""

from ..data import DataSpec
from . import published
from .accuracies import Accuracies, Group
from .finished import split
from .published import PARTS, Score
from .table import method_name

Value = tuple[float, float | None]  # mean and standard deviation, in %


def beside_published(found: Accuracies, dataset: str) -> dict[str, tuple[Value, ...]]:
    """Give class-wise accuracies of CE and CE+DRW by the paper's protocol, and the published CE."""
    curves: dict[str, tuple[Value, ...]] = {}
    if dataset == "cifar10":
        curves["CE, published"] = tuple((value, None) for value in published.CLASSWISE_CE)
    for method in ("CE", "CE+DRW"):
        if group := found.cell(dataset, method):
            curves[f"{method}, ours"] = _classes(group)
    return curves


def sgd_beside_sam(
    found: Accuracies, dataset: str, method: str = "CE+DRW"
) -> dict[str, dict[str, tuple[Value, ...]]]:
    """Give class-wise accuracies with SGD and with SAM, for each protocol that both were run by.

    Returns:
        Protocol -> run -> (C,), the unchanged one first; where none has both, what there is of it.
    """
    groups = found.groups(dataset)
    unchanged = "the paper's protocol" if dataset in published.MAIN else "its named recipe"
    pairs: dict[str, dict[str, tuple[Value, ...]]] = {}
    for sgd in (g for g in groups if method_name(g.recipe) == method):
        for sam in (g for g in groups if method_name(g.recipe) == f"{method}+SAM"):
            protocol = sgd.label.removeprefix(method)
            same = protocol == sam.label.removeprefix(f"{method}+SAM")
            if same and sgd.recipe.precision == sam.recipe.precision:
                said = protocol.removeprefix(", ") or unchanged
                title = f"{method}: {said}, {sgd.recipe.precision}"
                pairs[title] = {"SGD": _classes(sgd), "SAM": _classes(sam)}
    if pairs:
        return dict(sorted(pairs.items(), key=lambda pair: unchanged not in pair[0]))
    cells = {"SGD": found.cell(dataset, method), "SAM": found.cell(dataset, f"{method}+SAM")}
    curves = {step: _classes(group) for step, group in cells.items() if group is not None}
    return {f"{method}: no pair of one protocol yet": curves}


def radii(found: Accuracies, dataset: str) -> dict[str, dict[float, dict[str, Value]]]:
    """Give the accuracies of CE+DRW+SAM by radius: protocol -> radius -> part -> value."""
    curves: dict[str, dict[float, dict[str, Value]]] = {}
    for group in found.groups(dataset):
        if method_name(group.recipe) == "CE+DRW+SAM":
            rest = [text for field, text in group.changes if field != "rho"]
            label = ", ".join(["ours", *rest, group.recipe.precision])
            values = {part: _value(group.of(part)) for part in PARTS}
            curves.setdefault(label, {})[group.recipe.rho] = values
    return curves


def published_radii(dataset: str) -> dict[float, dict[str, Value]]:
    """Give the published sweep of the radius, which is of CIFAR-10-LT: radius -> part -> value."""
    if dataset != "cifar10":
        return {}
    return {
        radius: {part: _value(score) for part in PARTS if (score := row.of(part)) is not None}
        for radius, row in published.SWEEP.items()
    }


def head_mid_tail(found: Accuracies, dataset: str) -> dict[str, tuple[int, ...]]:
    """Split the classes of a data set whose counts fall with the label."""
    return split(DataSpec(dataset), range(len(found.names(dataset)), 0, -1))


def _classes(group: Group) -> tuple[Value, ...]:
    return tuple(map(_value, group.classwise))


def _value(score: Score) -> Value:
    return score.mean, score.std
