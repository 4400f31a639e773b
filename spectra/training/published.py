"""What was published of test accuracy, in %: the tables as data, each number written once.

Names of runs are the paper's. Of its numbers it states neither how many training seeds a mean has
nor whether the last epoch or the best one on the test set counts. `SWEEP` and `CLASSWISE_CE` are
read off figures, to about ±0.1; all else is printed.

References:
    Rangwani et al., Escaping saddle points: Tables 1 to 3, the radius figure, the class-wise
        figure and the table of results, https://arxiv.org/abs/2212.13827
    Saddle-LongTail, the README's re-runs of GLMC, https://github.com/val-iisc/Saddle-LongTail
"""

from collections.abc import Mapping
from dataclasses import dataclass

PARTS = ("overall", "head", "mid", "tail")


@dataclass(frozen=True)
class Score:
    """A mean in % with its standard deviation, None of a single value or an unknown one."""

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Row:
    """The accuracies of a method; None where nothing was published."""

    overall: Score
    head: Score | None = None
    mid: Score | None = None
    tail: Score | None = None

    def of(self, part: str) -> Score | None:
        """Give the accuracy over one of `PARTS`."""
        score: Score | None = getattr(self, part)
        return score


def _read(text: str, columns: int) -> tuple[dict[str, Row], ...]:
    """Read lines of a name and `columns` times overall, head, mid and tail, as `71.7±0.1`."""
    tables: tuple[dict[str, Row], ...] = tuple({} for _ in range(columns))
    for line in text.strip().splitlines():
        name, *cells = line.split()
        scores = [Score(*map(float, cell.split("±"))) for cell in cells]
        assert len(scores) == 4 * columns, line
        for i, table in enumerate(tables):
            table[name] = Row(*scores[4 * i : 4 * i + 4])
    return tables


# ResNet-32, ratio 100. The poster prints ±1.2 for the tail of VS+SAM on CIFAR-10-LT.
_CIFAR_10, _CIFAR_100 = _read(
    """
CE            71.7±0.1 90.8±3.6 71.9±0.4 52.3±3.7   38.5±0.5 64.5±0.7 36.8±1.0  8.2±1.0
CE+SAM        73.1±0.3 93.3±0.2 74.1±0.6 51.7±1.0   39.6±0.6 66.5±0.7 38.1±1.1  8.0±0.6
CE+DRW        75.5±0.2 91.6±0.4 74.1±0.4 61.4±0.9   41.0±0.6 61.3±1.3 41.7±0.5 14.7±0.9
CE+DRW+SAM    80.6±0.4 91.4±0.3 78.0±0.4 73.1±0.9   44.6±0.4 61.2±0.8 47.5±0.6 20.7±0.6
LDAM+DRW      77.5±0.5 91.1±0.8 75.7±0.7 66.4±0.2   42.7±0.3 61.8±0.6 42.2±1.5 19.4±0.9
LDAM+DRW+SAM  81.9±0.4 91.0±0.2 79.2±0.5 76.4±1.1   45.4±0.1 64.4±0.3 46.2±0.2 20.8±0.3
VS            78.6±0.3 90.6±0.4 75.8±0.5 70.3±0.5   41.7±0.5 54.4±0.2 41.1±0.6 26.8±1.0
VS+SAM        82.4±0.4 90.7±0.0 79.6±0.5 78.0±0.2   46.6±0.4 56.4±0.4 48.8±0.6 31.7±0.1
""",
    2,
)
# ResNet-50. Head, mid and tail of DRO-LT, and of DisAlign on ImageNet-LT, are of other splits.
_INAT, _IMAGENET = _read(
    """
CE            60.3 72.8 62.7 54.8   42.7 62.5 36.6 12.5
cRT           68.2 73.2 68.8 66.1   50.3 62.5 47.4 29.5
LWS           69.5 71.0 69.8 68.8   51.2 61.8 48.6 33.5
MiSLAS        71.6 73.2 72.4 70.4   52.7 61.7 51.3 35.8
DisAlign      69.5 61.6 70.8 69.9   52.9 61.3 52.2 31.4
DRO-LT        69.7 73.9 70.6 68.9   53.5 64.0 49.8 33.1
CE+DRW        63.0 59.8 64.4 62.3   44.9 57.9 42.2 21.6
CE+DRW+SAM    65.3 60.5 66.2 65.5   47.1 56.6 45.8 28.1
LDAM+DRW      67.5 63.0 68.3 67.8   49.9 61.1 48.2 28.3
LDAM+DRW+SAM  70.1 64.1 70.5 71.2   53.1 62.0 52.1 34.8
""",
    2,
)
TWO_STAGE = frozenset({"cRT", "LWS", "MiSLAS", "DisAlign"})

MAIN: Mapping[str, Mapping[str, Row]] = {  # data set -> method, in the printed order
    "cifar10": _CIFAR_10,
    "cifar100": _CIFAR_100,
    "imagenet-lt": _IMAGENET,
    "inat2018": _INAT,
}
OPTIMISERS: Mapping[str, Mapping[str, Row]] = {  # beside CE+DRW and CE+DRW+SAM of `MAIN`
    "cifar10": {
        "CE+DRW+PGD": Row(Score(77.2), tail=Score(65.0)),
        "CE+DRW+LPF-SGD": Row(Score(78.5), tail=Score(67.2)),
    },
    "cifar100": {
        "CE+DRW+PGD": Row(Score(42.2), tail=Score(17.0)),
        "CE+DRW+LPF-SGD": Row(Score(42.9), tail=Score(15.8)),
    },
}
SWEEP: Mapping[float, Row] = {  # SAM's radius -> CE+DRW+SAM on CIFAR-10-LT, ratio 100
    0.05: Row(Score(77.0), tail=Score(62.8)),
    0.1: Row(Score(78.3), tail=Score(66.1)),
    0.2: Row(Score(79.6), tail=Score(70.1)),
    0.5: Row(Score(80.6), tail=Score(72.2)),
    0.8: Row(Score(77.2), tail=Score(72.9)),
}
# Classes 0 to 9 of CIFAR-10-LT, ratio 100, plain CE.
CLASSWISE_CE = (96.9, 98.5, 83.6, 76.5, 77.2, 63.7, 70.1, 55.7, 48.2, 47.6)
# (data set, ratio, method): what the paper or its README names beside its tables.
FURTHER: Mapping[tuple[str, float, str], Row] = {
    ("cifar10", 10.0, "LDAM+DRW+SAM"): Row(Score(89.4)),
    ("cifar10", 200.0, "LDAM+DRW+SAM"): Row(Score(78.1)),
    ("cifar100", 100.0, "PaCo+SAM"): Row(Score(53.0)),
    ("cifar100", 200.0, "PaCo+SAM"): Row(Score(48.0)),
    ("cifar10", 50.0, "GLMC"): Row(Score(89.81)),
    ("cifar10", 50.0, "GLMC+SAM"): Row(Score(91.56)),
    ("cifar10", 100.0, "GLMC"): Row(Score(87.55)),
    ("cifar10", 100.0, "GLMC+SAM"): Row(Score(89.18)),
    ("cifar100", 50.0, "GLMC"): Row(Score(62.49)),
    ("cifar100", 50.0, "GLMC+SAM"): Row(Score(65.28)),
    ("cifar100", 100.0, "GLMC"): Row(Score(57.63)),
    ("cifar100", 100.0, "GLMC+SAM"): Row(Score(59.01)),
}
