"""The long-tail draw: published counts, published images, nobody else's random numbers touched."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import spectra.data
from spectra.data import DIGITS_LT, DataSpec, long_tail_counts, open_data
from spectra.data.longtail import draw
from spectra.errors import SpectraError
from tests.made_up import write_list_set

# paper.md 4.2, the table of totals and the row of class counts.
TOTALS = [
    (5000, 10, 10, 20431),
    (5000, 10, 50, 13996),
    (5000, 10, 100, 12406),
    (5000, 10, 200, 11203),
    (500, 100, 10, 19573),
    (500, 100, 50, 12608),
    (500, 100, 100, 10847),
    (500, 100, 200, 9502),
]


@pytest.mark.parametrize(("n_max", "classes", "ratio", "total"), TOTALS)
def test_exponential_counts_sum_to_the_published_totals(n_max, classes, ratio, total):
    spec = DataSpec("cifar10", "exp", ratio)
    assert sum(long_tail_counts(n_max, classes, spec)) == total


def test_exponential_counts_are_the_published_ones_class_by_class():
    expected = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    assert long_tail_counts(5000, 10, DataSpec("cifar10", "exp", 100)) == expected
    assert long_tail_counts(500, 100, DataSpec("cifar100", "exp", 100))[::99] == (500, 5)


def test_step_counts_keep_one_half_whole():
    assert long_tail_counts(5000, 10, DataSpec("cifar10", "step", 100)) == (5000,) * 5 + (50,) * 5
    assert long_tail_counts(9, 3, DataSpec("folder", "step", 2)) == (9, 4, 4)


@pytest.mark.parametrize("shape", ["exp", "step"])
def test_counts_that_are_whole_numbers_lose_no_sample_to_rounding(shape):
    """49 · (1/49) is 0.9999999999999999 in float64."""
    assert long_tail_counts(49, 2, DataSpec("folder", shape, 49)) == (49, 1)
    assert long_tail_counts(98, 2, DataSpec("folder", shape, 49)) == (98, 2)


def test_the_draw_picks_the_rows_of_the_released_procedure():
    """P49: the same rows as seeding NumPy's global generator, in a process of its own."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(7), 60))
    rows, _ = draw(labels, 7, DataSpec("folder", "exp", 12.0))
    code = (
        "import numpy as np, json, sys\n"
        "labels = np.array(json.load(sys.stdin)); np.random.seed(0); out = []\n"
        "for c in range(7):\n"
        "    i = np.where(labels == c)[0]; np.random.shuffle(i)\n"
        "    out += i[:int(60.0 * (1 / 12.0) ** (c / 6.0))].tolist()\n"
        "print(json.dumps(out))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=str(labels.tolist()),
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(rows.tolist()) == done.stdout.strip()


def test_the_draw_leaves_the_global_generator_alone():
    """P49: constructing a data set does not reseed NumPy."""
    before = np.random.get_state()  # noqa: NPY002
    open_data(DIGITS_LT)
    after = np.random.get_state()  # noqa: NPY002
    assert np.array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_the_subset_is_that_of_seed_0_whatever_a_training_is_seeded_with():
    """P49, paper.md 4.2: one subset for all training seeds; the draw has a seed of its own."""
    legacy, state = np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    prints = set()
    try:
        for seed in range(3):
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            prints.add(open_data(DataSpec("digits", "exp", 20)).draw_sha256)
    finally:
        np.random.set_state(legacy)  # noqa: NPY002
        torch.random.set_rng_state(state)
    assert prints == {open_data(DIGITS_LT).draw_sha256}
    assert DIGITS_LT.seed == DataSpec("cifar10", "exp", 100).seed == 0


GLOBAL = re.compile(
    r"(np\.)?random\.(?!RandomState|default_rng|Generator|get_?state|set_?state).*"
    r"|torch\.(random\.|cuda\.)*(manual_seed|seed|set_rng_state)"
    r"|torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial)(_like)?"
)


def test_no_call_of_the_room_draws_from_a_generator_that_is_not_its_own():
    """P49: but for the reader of loaders, which seeds them all and puts every state back."""
    found = set()
    for path in Path(spectra.data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            own = isinstance(node, ast.Call) and "generator" in {k.arg for k in node.keywords}
            if isinstance(node, ast.Call) and not own and GLOBAL.fullmatch(ast.unparse(node.func)):
                found.add((path.name, ast.unparse(node.func)))
    assert found == {("batches.py", "np.random.seed"), ("batches.py", "random.seed")}


def test_opening_any_source_moves_no_global_random_state(tmp_path):
    """P49: a process of its own, for Python's generator, from which beartype draws here."""
    write_list_set(tmp_path)
    code = (
        "import random, sys, numpy as np, torch; from spectra.data import *\n"
        "def states():\n"
        "    legacy = np.random.get_state()\n"
        "    return random.getstate(), legacy[1].tolist(), legacy[2:], "
        "torch.random.get_rng_state().tolist()\n"
        "open_data(DIGITS_LT)\n"  # libraries that are imported on the way are none of ours
        "before = states()\n"
        "for spec in (DIGITS_LT, DataSpec('list', 'exp', 2), DataSpec('folder', 'step', 2)):\n"
        "    samples = open_data(spec, path=sys.argv[1])\n"
        "    export(samples, sys.argv[1] + '/out-' + spec.name, 'train')\n"
        "    samples.frozen(2, seed=1); samples.prepared(generator=torch.Generator())\n"
        "    open_data(path=sys.argv[1] + '/out-' + spec.name)\n"
        "assert states() == before\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_the_draw_does_not_depend_on_how_classes_are_interleaved():
    labels = np.repeat(np.arange(4), 30)
    mixed = np.random.default_rng(0).permutation(labels)
    spec = DataSpec("folder", "exp", 5.0)
    sorted_rows, sorted_positions = draw(labels, 4, spec)
    mixed_rows, mixed_positions = draw(mixed, 4, spec)
    assert np.array_equal(sorted_positions, mixed_positions)
    assert np.array_equal(labels[sorted_rows], mixed[mixed_rows])
    assert not np.array_equal(sorted_rows, mixed_rows)


def test_another_seed_draws_other_samples():
    labels = np.repeat(np.arange(3), 40)
    first, _ = draw(labels, 3, DataSpec("folder", "exp", 4.0, seed=0))
    second, _ = draw(labels, 3, DataSpec("folder", "exp", 4.0, seed=1))
    assert not np.array_equal(first, second)


def test_without_imbalance_all_samples_stay_unshuffled():
    rows, positions = draw(np.array([1, 0, 1, 0]), 2, DataSpec("folder"))
    assert rows.tolist() == [1, 3, 0, 2]
    assert positions.tolist() == [0, 1, 0, 1]


def test_a_ratio_that_empties_a_class_is_refused():
    labels = np.repeat(np.arange(2), 5)
    with pytest.raises(SpectraError, match="ratio up to 5"):
        draw(labels, 2, DataSpec("folder", "exp", 6.0))


def test_an_empty_class_is_refused_by_its_number():
    with pytest.raises(SpectraError, match="class 1 of 3"):
        draw(np.array([0, 2, 2]), 3, DataSpec("folder"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("cifar11",), "known: digits, cifar10"),
        (("cifar10", "linear", 3.0), "exp, step or None"),
        (("cifar10", "exp"), "both or neither"),
        (("cifar10", None, 100.0), "both or neither"),
        (("cifar10", "exp", 0.01), "100, not 0.01"),
        (("cifar10", "exp", float("nan")), "ratio"),
        (("cifar10", "exp", 100.0, -1), "seed"),
        (("folder", None, None, 0, 0), "image size"),
    ],
)
def test_a_description_that_cannot_be_meant_is_refused(arguments, complaint):
    with pytest.raises(SpectraError, match=complaint):
        DataSpec(*arguments)


def test_a_description_survives_its_dictionary():
    spec = DataSpec("cifar10", "exp", 100.0, 3)
    assert DataSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(SpectraError, match="another version"):
        DataSpec.from_dict({"name": "cifar10", "colour": "red"})
