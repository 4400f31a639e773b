"""What a learning curve shows is what metrics.csv says, drops and re-weighting included."""

from pathlib import Path

import numpy as np
import pytest

from spectra.errors import SpectraError
from spectra.figures.learning import learning_curves
from spectra.training import schedules

HEADER = "epoch,lr,weighted,train_loss,train_accuracy,test_loss,test_accuracy,head,mid,tail"
ROWS = [
    "1,0.1,0,2.0,0.2",
    "2,0.1,0,1.0,0.5,1.1,0.5,0.8,0.5,0.2",
    "3,0.001,1,0.5,0.7",
    "4,0.00001,1,0.4,0.8,0.9,0.6,0.7,0.6,0.5",
]


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join([HEADER, *ROWS]) + "\n")
    return path


def test_curves_are_the_numbers_of_the_table(metrics: Path) -> None:
    above, below = learning_curves({"a run": metrics}).axes
    lines = {line.get_label().split()[0]: line for line in above.lines}
    assert above.get_title(loc="left") == "a run"
    for name, expected in {
        "head": (80, 70),
        "mid": (50, 60),
        "tail": (20, 50),
        "all": (50, 60),
    }.items():
        np.testing.assert_allclose(lines[name].get_xdata(), (2, 4))  # only evaluated epochs
        np.testing.assert_allclose(lines[name].get_ydata(), expected)
    assert lines["tail"].get_label() == "tail (50.0)"
    np.testing.assert_allclose(below.lines[0].get_ydata(), (2.0, 1.0, 0.5, 0.4))


def test_the_schedule_is_marked_where_it_changes(metrics: Path) -> None:
    for ax in learning_curves({"a run": metrics}).axes:
        marks = {line.get_xdata()[0]: line.get_linestyle() for line in ax.lines[-2:]}
        assert marks == {2.0: "-.", 3.0: ":"}  # re-weighting, and a drop of the rate alone
    (legend,) = learning_curves({"a run": metrics, "again": metrics}).legends
    handles = {text.get_text(): line.get_linestyle() for text, line in zip(
        legend.get_texts(), legend.legend_handles, strict=True
    )}  # fmt: skip
    assert handles == {"re-weighting starts": "-.", "learning rate drops": ":"}


def test_a_cosine_has_no_drop(tmp_path: Path) -> None:
    """Towards its end it halves, and quarters, from epoch to epoch."""
    path, cells = tmp_path / "metrics.csv", ",1.0,0.5,1.0,0.5,0.9,0.5,0.1"
    rates = [schedules.cosine_rate(e, base=0.1, warmup=0, epochs=20) for e in range(1, 21)]
    rows = [f"{epoch},{rate},0{cells}" for epoch, rate in enumerate(rates, start=1)]
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    assert rates[-1] < 0.5 * rates[-2]
    figure = learning_curves({"a run": path})
    assert not figure.legends
    for ax in figure.axes:
        assert not [line for line in ax.lines if line.get_linestyle() in (":", "-.")]


@pytest.mark.parametrize("text", [HEADER + "\n1,0.1,0,2.0,0.2\n", "epoch\nmany\n", ""])
def test_other_files_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(SpectraError) as caught:
        learning_curves({"": path})
    assert "\n" not in str(caught.value)
