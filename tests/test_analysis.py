"""The hallway: what `analyze` promises about interruptions, failures, counts and side effects."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spectra
from spectra import (
    Analysis,
    Checkpoint,
    ClassSpectrum,
    ModelSpec,
    Plan,
    Samples,
    SpectraError,
    analyze,
    class_operators,
    hessian_operator,
    probing,
    study,
    together,
)
from spectra.checkpoint import save_checkpoint
from spectra.doctor import PRODUCTS_PER_CERTIFICATE, PRODUCTS_PER_EXAMINATION
from spectra.errors import StorageError
from spectra.gathering import classify
from spectra.hessian import HessianOperator, KeptProducts, Objective
from spectra.krylov import random_start
from spectra.losses import LossSpec, as_loss
from spectra.plan import choose_parts
from spectra.processes import Processes
from spectra.remarks import UNCLASSIFIED, near_chance
from spectra.results import OPEN_MASS
from spectra.resuming import settled
from spectra.study import TRACE_PROBES

CLASSES = 3


def network(seed: int = 0, inputs: int = 4, classes: int = CLASSES) -> nn.Module:
    """A smooth network of 43 parameters whose Hessian is indefinite."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, classes)).eval()


def samples(seed: int = 0, counts: tuple[int, ...] = (9, 5, 2)) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    inputs = torch.randn(len(targets), 4, generator=generator)
    return Samples.from_batches((inputs, targets), num_classes=len(counts))


def checkpoint(model: nn.Module | None = None, loss: LossSpec | None = None) -> Checkpoint:
    return Checkpoint(
        model=model or network(),
        model_spec=ModelSpec("toy", CLASSES),
        data=None,
        loss=loss,
        epoch=3,
        metrics={},
        sha256="ab" * 32,
        file="toy.pt",
    )


def test_the_released_protocol_draws_again_unless_it_is_told_otherwise() -> None:
    assert Plan(protocol="released").augment == "resample"
    assert Plan(protocol="released", split="test").augment == "none"
    assert Plan(protocol="released", augment="none").augment == "none"
    assert Plan().augment == "none"
    with pytest.raises(SpectraError, match="nothing would move, and be called moving"):
        analyze(checkpoint(), Plan(protocol="released", device="cpu"), train=samples())


def test_the_released_protocol_tells_its_ends_alone_on_a_fixed_operator_too() -> None:
    plan = Plan(classes=(1,), steps=6, protocol="released", augment="none", device="cpu")
    (found,) = analyze(checkpoint(), plan, train=samples()).spectra
    assert (found.operator, found.doctor["fixed_operator"]) == ("fixed", True)
    assert found.certificate["rayleigh_quotient"] < 0 < found.lambda_max
    assert found.certificate["lower_bound_95"] is None
    assert found.trace is found.trace_stderr is None
    assert found.negative_mass is found.negative_mass_bounds is found.negative_mass_stderr is None


def test_results_of_another_question_are_not_replaced(tmp_path: Path) -> None:
    """Whatever tells two experiments apart when one is resumed tells them apart here."""
    plan, mine, data = Plan(classes=(0,), steps=3, device="cpu"), checkpoint(), samples()
    found = analyze(mine, plan, train=data, folder=tmp_path)
    before = (tmp_path / "esd.json").read_bytes()
    relabelled = Samples.from_batches((data.inputs, (data.targets + 1) % CLASSES), CLASSES)
    for told, other, asked, train in (
        ("seed", mine, replace(plan, seed=1), data),
        ("batch_size", mine, replace(plan, batch_size=4), data),
        ("loss_function", replace(mine, scale=2.0), plan, data),
        ("network", replace(mine, model_spec=ModelSpec("other", CLASSES)), plan, data),
        ("checkpoint", replace(mine, sha256="cd" * 32), plan, data),
        ("draw", mine, plan, relabelled),
        ("1 more, as class 0", mine, replace(plan, classes=(1,)), data),
        ("unfinished", mine, replace(plan, classes=(0, 1)), data),
    ):
        with pytest.raises(SpectraError, match=rf"\({told}.*--overwrite"):
            analyze(other, asked, train=train, folder=tmp_path)
        assert (tmp_path / "esd.json").read_bytes() == before
    renamed = replace(mine, file="copy.pt")
    analyze(renamed, plan, train=data, folder=tmp_path)  # the same question
    analyze(mine, replace(plan, seed=1), train=data, folder=tmp_path, overwrite=True)

    (spectrum,) = found.spectra
    replace(found, spectra=(replace(spectrum, complete=False),)).save(tmp_path)
    with pytest.raises(SpectraError, match=r"\(unfinished ones\).*--resume"):
        analyze(mine, plan, train=data, folder=tmp_path)
    failed = ClassSpectrum(label="class 0", name="0", count=9, share=0.5, error="no memory")
    replace(found, spectra=(failed,)).save(tmp_path)
    analyze(mine, replace(plan, basis="host"), train=data, folder=tmp_path)  # nothing was there


def test_draws_follow_the_batches_and_so_does_the_question(tmp_path: Path) -> None:
    data = Samples(
        torch.randint(256, (6, 1, 4, 4), dtype=torch.uint8),
        torch.tensor([0, 0, 1, 1, 2, 2]),
        CLASSES,
        ("a", "b", "c"),
        augmentation="crop:1",
    )
    flat = nn.Sequential(nn.Flatten(), network(inputs=16))
    plan = Plan(classes=(0,), steps=2, protocol="released", device="cpu", batch_size=32)
    analyze(checkpoint(flat), plan, train=data, folder=tmp_path)
    with pytest.raises(SpectraError, match=r"batch_size \(32, now 128\)"):
        analyze(checkpoint(flat), replace(plan, batch_size="auto"), train=data, folder=tmp_path)


def test_a_fitted_class_has_the_float64_check_of_its_largest_eigenvalue() -> None:
    """The products' residual knows nothing of probabilities that are off by float32's unit."""
    model = network()
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([16.0, 0.0, 0.0]))
    for loose in (False, True):
        data = samples(counts=(9, 5, 2))
        label = 1 if loose else 0  # class 1 is always wrong: its loss is large
        plan = Plan(classes=(label,), steps=8, device="cpu")
        (single,) = analyze(checkpoint(model), plan, train=data).spectra
        (double,) = analyze(checkpoint(model), replace(plan, dtype="float64"), train=data).spectra
        assert (single.loss < 1e-4) != loose
        apart = abs(single.lambda_max - double.lambda_max)
        assert apart <= single.doctor["noise_floor"] + single.residual_max + double.residual_max


def test_a_bar_that_understands_it_hears_of_what_comes_before_the_products() -> None:
    """A bar of two methods, as any caller may write it, goes on without."""

    class Plain:
        heard: tuple[object, ...] = ()

        def begin(self, products: int, work: int) -> None:
            self.heard = (*self.heard, "begin")

        def tick(self, label: str, products: int, work: int) -> None:
            pass

    class Telling(Plain):
        @contextmanager
        def stage(self, what: str) -> Iterator[None]:
            self.heard = (*self.heard, what)
            yield

    plain, telling = Plain(), Telling()
    for bar in (plain, telling):
        analyze(network(), Plan(steps=3), train=samples(), test=samples(1), progress=bar)
    assert plain.heard == ("begin",)
    classified = ("classifying the train images", "classifying the test images")
    stages = ("gathering the samples", *classified, "comparing ways to compute products")
    assert telling.heard == (*stages, "begin")


def test_a_network_near_chance_on_its_own_training_set_is_told() -> None:
    """Only where all of it was classified: a tail class alone may well be missed."""
    data = samples()
    right, wrong = data.targets == data.targets, data.targets != data.targets
    (line,) = near_chance(wrong, data.targets, data)
    assert "0.0%, near chance" in line
    assert near_chance(right, data.targets, data) == []
    assert near_chance(wrong[:5], data.targets[:5], data) == []
    two = samples(counts=(8, 8))
    fair = torch.arange(16) % 4 > 0  # 75 % of two classes are no chance
    assert near_chance(fair, two.targets, two) == []


def test_the_loss_of_a_fitted_class_is_float64s() -> None:
    """Beside float32's 1 it would be zero: unknown, or worse, called known."""
    model = network()
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.copy_(torch.tensor([25.0, 0.0, 0.0]))
    plan = Plan(classes=(0,), steps=3, device="cpu")
    (found,) = analyze(checkpoint(model), plan, train=samples()).spectra
    assert found.loss == pytest.approx(np.log1p(2 * np.exp(-25.0)), rel=1e-12)


PLAN = Plan(overall=True, per_class=True, steps=8, probes=3, device="cpu")


class Meter:
    """Counts products; interrupts like Ctrl-C when a label has had so many."""

    def __init__(self, label: str = "", after: int = 0) -> None:
        self.label, self.after = label, after
        self.announced = self.work = self.done = self.worked = 0
        self.by_label: dict[str, int] = {}

    def begin(self, products: int, work: int) -> None:
        self.announced, self.work = products, work

    def tick(self, label: str, products: int, work: int) -> None:
        self.done += products
        self.worked += work
        self.by_label[label] = self.by_label.get(label, 0) + products
        if label == self.label and self.by_label[label] > self.after:
            raise KeyboardInterrupt


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "esd.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def same_files(one: Path, other: Path) -> bool:
    a, b = arrays_of(one), arrays_of(other)
    return (
        (one / "esd.json").read_bytes() == (other / "esd.json").read_bytes()
        and a.keys() == b.keys()
        and all(np.array_equal(a[key], b[key]) for key in a)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Plan], Path]:
    """Uninterrupted runs over the images, one a plan."""
    kept: dict[Plan, Path] = {}

    def run(plan: Plan) -> Path:
        if plan not in kept:
            kept[plan] = tmp_path_factory.mktemp("whole")
            analyze(checkpoint(pictures()), plan, train=images(), folder=kept[plan])
        return kept[plan]

    return run


@pytest.mark.parametrize(
    ("augment", "after", "probes"),
    [
        ("none", 3, 0),  # while the doctor examines
        ("none", 8, 0),
        ("none", 12, 1),
        ("none", 18, 2),
        ("none", 25, 2),  # all probes done, the trace not
        ("resample", 12, 1),
        ("resample", 25, 2),
    ],
)
def test_kill_and_resume_equals_an_uninterrupted_run_bit_for_bit(
    augment: str, after: int, probes: int, whole: Callable[[Plan], Path], tmp_path: Path
) -> None:
    """P47: whichever product of the second class is the last; finished probes are kept, too."""
    plan = replace(PLAN, augment=augment, steps=5, overall=False)
    held, data = checkpoint(pictures()), images()
    with pytest.raises(KeyboardInterrupt):
        analyze(held, plan, train=data, folder=tmp_path, progress=Meter("class 1", after))
    partial = Analysis.load(tmp_path)
    assert partial.finished == ("class 0",)
    entry = partial.get("class 1")
    assert (0 if entry is None else entry.probes) == probes
    assert entry is None or not entry.complete

    meter = Meter()
    analyze(held, plan, train=data, folder=tmp_path, resume=True, progress=meter)
    assert same_files(whole(plan), tmp_path)
    assert set(meter.by_label) == {"class 1", "class 2"}  # what was finished is not touched
    assert meter.done == meter.announced
    assert sorted(path.name for path in tmp_path.iterdir()) == ["esd.json", "esd.npz"]


def images() -> Samples:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8, generator=generator)
    targets = torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    return Samples(pixels, targets, 3, ("a", "b", "c"), (0.5,), (0.3,), "crop:1")


def pictures() -> nn.Module:
    return nn.Sequential(nn.Flatten(), *network(inputs=16)).eval()


def test_probes_over_other_samples_are_not_gone_on_with(
    whole: Callable[[Plan], Path], tmp_path: Path
) -> None:
    """The draw of a subset is torch's, which may change from release to release."""
    plan = replace(PLAN, steps=5, overall=False, max_samples=3)
    held, data = checkpoint(pictures()), images()
    with pytest.raises(KeyboardInterrupt):
        analyze(held, plan, train=data, folder=tmp_path, progress=Meter("class 1", 18))
    partial = Analysis.load(tmp_path)
    begun = partial.get("class 1")
    (part,) = choose_parts(replace(plan, per_class=False, classes=(1,)), data, data)
    assert begun.samples_sha256 == data.select(part.index).draw_sha256
    other = replace(begun, samples_sha256="00" * 32, lambda_min=-7.0)
    partial.with_spectrum(other).save(tmp_path)
    analyze(held, plan, train=data, folder=tmp_path, resume=True)
    assert same_files(whole(plan), tmp_path)


def test_resuming_keeps_negative_and_zero_entries_and_tries_failed_ones_again(
    tmp_path: Path,
) -> None:
    """P47: a marker like "value ≤ 0" would compute negative ones again."""
    data, held = samples(), checkpoint()
    done = analyze(held, PLAN, train=data, folder=tmp_path)
    negative = done.get("class 1")
    assert negative is not None
    assert negative.lambda_min < 0
    zero = replace(done.get("class 0"), lambda_min=0.0, nonconvexity=0.0, trace=0.0)
    failed = replace(done.get("class 2"), error="NaN in batch 3", lambda_min=None)
    done.with_spectrum(zero).with_spectrum(failed).save(tmp_path)
    meter = Meter()
    again = analyze(held, PLAN, train=data, folder=tmp_path, resume=True, progress=meter)
    assert set(meter.by_label) == {"class 2"}
    assert again.get("class 0").lambda_min == 0.0
    assert again.get("class 1").lambda_min == negative.lambda_min
    assert again.get("class 2").error is None
    assert again.get("class 2").lambda_min == done.get("class 2").lambda_min


def test_accuracies_that_were_left_out_are_added_without_a_product(tmp_path: Path) -> None:
    data, test, held = samples(), samples(1, counts=(3, 0, 4)), checkpoint()
    given = {"train": data, "test": test}
    whole = analyze(held, PLAN, **given)
    without = analyze(held, PLAN, train=data, folder=tmp_path, accuracies=False)
    assert UNCLASSIFIED in without.notes
    assert all(spectrum.train_accuracy is None for spectrum in without.spectra)
    meter = Meter()
    more = {"folder": tmp_path, "resume": True, "progress": meter}
    found = analyze(held, PLAN, **given, **more)
    assert not meter.by_label
    for kept in (found, Analysis.load(tmp_path)):
        assert UNCLASSIFIED not in kept.notes
        assert [s.train_accuracy for s in kept.spectra] == [s.train_accuracy for s in whole.spectra]
        assert [s.test_accuracy for s in kept.spectra] == [s.test_accuracy for s in whole.spectra]
        assert [s.lambda_max for s in kept.spectra] == [s.lambda_max for s in without.spectra]
    assert found.get("class 1").test_accuracy is None  # it has no test image
    assert found.get("class 1").train_accuracy is not None
    with pytest.MonkeyPatch.context() as patch:  # and then nothing is left to do
        patch.setattr(study.Study, "prepare", lambda *_, **__: pytest.fail("prepared"))
        analyze(held, PLAN, **given, **more)


def test_resuming_may_ask_for_more_and_loses_nothing(tmp_path: Path) -> None:
    data, held = samples(), checkpoint()
    fewer = replace(PLAN, overall=False, per_class=False, classes=(2,))
    first = analyze(held, fewer, train=data, folder=tmp_path)
    meter = Meter()
    more = analyze(held, PLAN, train=data, folder=tmp_path, resume=True, progress=meter)
    assert more.labels == ("overall", "class 0", "class 1", "class 2")
    assert "class 2" not in meter.by_label
    assert more.get("class 2").trace == first.get("class 2").trace


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"steps": 9}, "steps"),
        ({"probes": 4}, "probes"),
        ({"seed": 1}, "seed"),
        ({"dtype": "float64"}, "dtype"),
        ({"split": "test"}, "split"),
        ({"max_samples": 4}, "max_samples"),
        ({"batch_size": 3}, "batch_size"),
        ({"until_converged": 1e-2}, "until_converged"),
        ({"protocol": "released"}, "protocol"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_resuming_with_other_settings_is_refused_by_name(
    changes: dict[str, object], word: str, tmp_path: Path
) -> None:
    data, held = samples(), checkpoint()
    few = replace(PLAN, overall=False, per_class=False, classes=(2,), probes=1, steps=4)
    analyze(held, few, train=data, test=data, folder=tmp_path)
    before = (tmp_path / "esd.json").read_bytes()
    plan = replace(few, **changes)
    with pytest.raises(SpectraError, match=rf"other settings.*{word} \("):
        analyze(held, plan, train=data, test=data, folder=tmp_path, resume=True)
    assert (tmp_path / "esd.json").read_bytes() == before


def test_the_option_that_changed_is_named_and_not_what_it_does_to_the_choices(
    tmp_path: Path,
) -> None:
    """A way that the earlier run has chosen may be none of the new options'."""
    few = Plan(classes=(2,), steps=4, device="cpu")
    done = analyze(checkpoint(), few, train=samples(), folder=tmp_path)
    chosen = {**done.settings, "product": "linearized", "basis": "none"}
    assert settled(few, chosen).product == "linearized"
    for changes, word in (({"protocol": "released"}, "protocol"), ({"augment": "resample"}, "aug")):
        with pytest.raises(SpectraError, match=f"other settings to resume: {word}"):
            settled(replace(few, **changes), chosen)


def test_groups_of_another_training_set_are_not_mixed(tmp_path: Path) -> None:
    test, plan = samples(seed=1), Plan(groups=True, split="test", steps=2, device="cpu")
    analyze(checkpoint(), plan, train=samples(), test=test, folder=tmp_path)
    more, other = replace(plan, per_class=True), samples(counts=(2, 5, 9))
    with pytest.raises(SpectraError, match=r"other settings to resume: groups \("):
        analyze(checkpoint(), more, train=other, test=test, folder=tmp_path, resume=True)
    found = analyze(checkpoint(), more, train=samples(), test=test, folder=tmp_path, resume=True)
    assert len(found.labels) == 6


def test_what_failed_is_tried_again_after_what_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probes of the interrupted class are on disk, where those of the next one go."""
    plan, data = Plan(per_class=True, steps=6, probes=3, device="cpu"), samples()
    real = probing.certify

    def certify(operator: HessianOperator, *given: Any, **options: Any) -> Any:
        if operator.objective.count == 5:
            raise SpectraError("no certificate today")
        return real(operator, *given, **options)

    monkeypatch.setattr(probing, "certify", certify)
    with pytest.raises(KeyboardInterrupt):
        analyze(checkpoint(), plan, train=data, folder=tmp_path, progress=Meter("class 2", 12))
    held = Analysis.load(tmp_path)
    assert [(s.label, s.complete) for s in held.spectra] == [
        ("class 0", True), ("class 1", True), ("class 2", False),
    ]  # fmt: skip
    assert held.get("class 1").error == "no certificate today"
    monkeypatch.undo()
    meter = Meter()
    analyze(checkpoint(), plan, train=data, folder=tmp_path, resume=True, progress=meter)
    assert list(meter.by_label) == ["class 2", "class 1"]
    whole = analyze(checkpoint(), plan, train=data, folder=tmp_path / "whole")
    assert not (tmp_path / "ritz-vectors.pt").exists()
    again = Analysis.load(tmp_path)
    for label in whole.labels:
        ours, theirs = again.get(label), whole.get(label)
        assert (ours.lambda_min, ours.trace) == (theirs.lambda_min, theirs.trace)


def test_groups_are_named_by_their_ends_where_no_other_class_lies_between() -> None:
    plan = Plan(groups=True, device="cpu")
    whole = list(choose_parts(plan, samples(counts=(9, 8, 7, 3, 2, 1)), None))
    assert [part.name for part in whole] == ["classes 0–1", "classes 2–3", "classes 4–5"]
    mixed = list(choose_parts(plan, samples(counts=(9, 1, 7, 2, 3, 8)), None))
    assert [part.name for part in mixed] == ["2 classes"] * 3


def test_resuming_with_another_checkpoint_or_draw_is_refused(tmp_path: Path) -> None:
    few = Plan(classes=(2,), steps=4, device="cpu")
    analyze(checkpoint(), few, train=samples(), folder=tmp_path)
    other = replace(checkpoint(), sha256="cd" * 32)
    with pytest.raises(SpectraError, match="checkpoint"):
        analyze(other, few, train=samples(), folder=tmp_path, resume=True)
    with pytest.raises(SpectraError, match="draw"):
        analyze(checkpoint(), few, train=samples(counts=(9, 5, 3)), folder=tmp_path, resume=True)
    for other, word in (
        (samples(seed=1), "pixels"),
        (replace(samples(), mean=(0.1,) * 4, std=(2.0,) * 4), "mean"),
        (replace(samples(), augmentation="crop:2+flip"), "augmentation"),
    ):
        with pytest.raises(SpectraError, match=word):
            analyze(checkpoint(), few, train=other, folder=tmp_path, resume=True)


def test_other_files_than_the_leaders_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two processes, which hears what the first has told."""
    told: list[Any] = []
    monkeypatch.setattr(Processes, "tell", lambda _, message: told.append(message))
    monkeypatch.setattr(Processes, "hear", lambda _: told[0])
    first, second = (Processes(rank, 2, rank, 2, store=None) for rank in (0, 1))
    plan, mine = Plan(classes=(2,), steps=2, device="cpu"), checkpoint()
    given: dict[str, Any] = {"train": samples(), "test": samples(seed=1)}
    analyze(mine, plan, **given, folder=tmp_path)
    analyze(mine, plan, **given, folder=tmp_path, resume=True, processes=first)
    assert analyze(mine, plan, **given, processes=second).spectra == ()  # nothing is left
    other = replace(mine, sha256="cd" * 32)
    with pytest.raises(SpectraError, match="another checkpoint in process 1 than in process 0"):
        analyze(other, plan, **given, processes=second)
    with pytest.raises(SpectraError, match="another test draw, test images in process 1"):
        analyze(mine, plan, train=given["train"], processes=second)
    for split, own in given.items():
        relabelled = Samples.from_batches((own.inputs, (own.targets + 1) % CLASSES), CLASSES)
        shifted = replace(own, inputs=own.inputs + 1)
        for changed, what in ((relabelled, "draw"), (shifted, "images")):
            with pytest.raises(SpectraError, match=f"another {split} {what} in process 1"):
                analyze(mine, plan, **given | {split: changed}, processes=second)


def test_results_of_other_versions_are_resumed_and_told(tmp_path: Path) -> None:
    few = Plan(classes=(2,), steps=4, device="cpu")
    held = analyze(checkpoint(), few, train=samples())
    elsewhere = {**held.versions, "torch": "1.9.1"}
    replace(held, versions=elsewhere, device="NVIDIA A100", notes=("a line",)).save(tmp_path)
    more = replace(few, classes=(1, 2))
    found = analyze(checkpoint(), more, train=samples(), folder=tmp_path, resume=True)
    assert found.versions["torch"] == held.versions["torch"]
    assert "some results were computed with device NVIDIA A100, torch 1.9.1" in found.notes
    assert "a line" in found.notes
    again = analyze(checkpoint(), more, train=samples(), folder=tmp_path, resume=True)
    assert again.notes == found.notes


class Squares(nn.Module):
    """Overflows in float32 for the inputs of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x * x)


def test_one_class_that_fails_leaves_the_others_results_alone(tmp_path: Path) -> None:
    """P40: the NaN is named, not averaged away."""
    data = samples(counts=(9, 9, 9))
    inputs = data.inputs.clone()
    inputs[10] = 1e30  # not among the samples that the choice of the product looks at
    plan = Plan(per_class=True, steps=5, device="cpu")
    healthy = analyze(checkpoint(Squares()), plan, train=data)
    found = analyze(
        checkpoint(Squares()), plan, train=replace(data, inputs=inputs), folder=tmp_path
    )
    assert found.labels == ("class 0", "class 1", "class 2")
    assert found.get("class 1").error is not None
    assert "NaN" in found.get("class 1").error
    assert found.get("class 1").lambda_min is None
    for label in ("class 0", "class 2"):
        assert found.get(label).error is None
        assert found.get(label).lambda_min == healthy.get(label).lambda_min
    assert Analysis.load(tmp_path).get("class 1").error == found.get("class 1").error
    inputs[10] = torch.nan
    again = analyze(checkpoint(Squares()), plan, train=replace(data, inputs=inputs))
    assert again.get("class 1").error.startswith(
        "got a loss of nan in class 1, from sample 2 of its 9 on (label 1, number 1 of that class"
    )


@pytest.mark.parametrize("sizes", [(1, 16), (3, 5)])
def test_results_do_not_depend_on_the_batches(sizes: tuple[int, int]) -> None:
    plans = [replace(PLAN, dtype="float64", batch_size=size, probes=1) for size in sizes]
    one, other = (analyze(checkpoint(), plan, train=samples()) for plan in plans)
    for a, b in zip(one.spectra, other.spectra, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        for key in ("lambda_min", "lambda_max", "trace", "trace_stderr", "nonconvexity"):
            assert getattr(a, key) == pytest.approx(getattr(b, key), rel=1e-9), key


def test_shares_sum_to_one_and_losses_and_traces_add_up() -> None:
    """Law 1: Σ_c (N_c/N) H_c = H, for the quadratic forms of one and the same probe."""
    found = analyze(checkpoint(), replace(PLAN, dtype="float64"), train=samples())
    overall, *classes = found.spectra
    assert overall.share == 1.0
    assert sum(s.share for s in classes) == pytest.approx(1.0, abs=1e-15)
    assert sum(s.share * s.loss for s in classes) == pytest.approx(overall.loss, rel=1e-12)
    forms = sum(s.share * np.array(s.quadratic_forms) for s in classes)
    np.testing.assert_allclose(forms, overall.quadratic_forms, rtol=1e-10)


def dense(label: str, data: Samples) -> np.ndarray:
    which = data if label == "overall" else data.of_class(int(label.split()[1]))
    return hessian_operator(network(), which, dtype=torch.float64).dense().numpy()


def test_a_full_run_gives_the_dense_matrix_eigenvalues_and_a_certificate_that_holds() -> None:
    """Steps reach the number of parameters: nodes are eigenvalues, and θ = λmin."""
    data = samples()
    plan = replace(PLAN, steps=100, probes=1, dtype="float64")
    for spectrum in analyze(checkpoint(), plan, train=data).spectra:
        values, vectors = np.linalg.eigh(dense(spectrum.label, data))
        scale = abs(values).max()
        assert spectrum.lambda_min == pytest.approx(values[0], abs=1e-10 * scale)
        assert spectrum.lambda_max == pytest.approx(values[-1], abs=1e-10 * scale)
        assert spectrum.converged
        certificate = spectrum.certificate
        theta, floor = certificate["rayleigh_quotient"], certificate["noise_floor"]
        assert floor > 0
        assert theta == pytest.approx(values[0], abs=1e-10 * scale)
        assert theta + floor >= values[0]
        assert certificate["lower_bound_95"] <= values[0] + 1e-10 * scale
        assert abs(values[0]) > 1e-6 * scale  # far beyond the floor
        assert certificate["negative_curvature"] == spectrum.proven == (values[0] < 0)
        assert spectrum.nonconvexity == pytest.approx(max(0.0, -values[0]) / values[-1])
        assert spectrum.trace == pytest.approx(values.sum(), abs=6 * spectrum.trace_stderr)
        assert spectrum.negative_mass_threshold >= 1e-6 * spectrum.lambda_max
        shares = (random_start(len(values), seed=plan.seed, probe=0).numpy() @ vectors) ** 2
        below = shares[values < -spectrum.negative_mass_threshold].sum()
        # Of this one start: T ends before it has counted how often the softmax's zeros are there.
        assert spectrum.negative_mass == pytest.approx(below, abs=1e-8)
        assert spectrum.negative_mass_bounds == pytest.approx((below, below), abs=1e-8)
        assert spectrum.negative_mass_stderr is None


def test_frozen_draws_of_a_class_are_all_copies_of_its_own_images() -> None:
    data, drawing = images(), {"augment": "frozen:3", "seed": 5}
    plan = Plan(classes=(1,), steps=200, dtype="float64", device="cpu", **drawing)
    (found,) = analyze(checkpoint(pictures()), plan, train=data).spectra
    drawn = data.frozen(3, seed=5).of_class(1)
    H = hessian_operator(pictures(), drawn, dtype=torch.float64)
    assert len(drawn) == 3 * found.count == 12
    assert found.loss == pytest.approx(H.objective.value(), rel=1e-12)
    values = np.linalg.eigvalsh(H.dense().numpy())
    assert found.lambda_max == pytest.approx(values[-1], rel=1e-10)
    assert found.lambda_min == pytest.approx(values[0], rel=1e-10)


def test_a_row_tells_no_share_below_zero_where_the_steps_leave_it_open() -> None:
    """Bounds in its place, as columns of their own."""
    data = samples()
    plan = replace(PLAN, steps=5, dtype="float64")
    for spectrum in analyze(checkpoint(), plan, train=data).spectra:
        below = (np.linalg.eigvalsh(dense(spectrum.label, data)) < -1e-12).mean()
        low, high = spectrum.negative_mass_bounds
        assert low <= below <= high
        assert high - low > OPEN_MASS
        assert spectrum.negative_mass_stderr is not None
        row = spectrum.to_row()
        assert row["negative_mass"] is row["negative_mass_stderr"] is None
        known = replace(spectrum, negative_mass_bounds=(0.25, 0.255)).to_row()
        assert known["negative_mass"] == spectrum.negative_mass
        assert (row["negative_mass_low"], row["negative_mass_high"]) == (low, high)
        assert "negative_mass_bounds" not in row


def test_a_short_run_is_bracketed_by_its_certificate_and_its_bound() -> None:
    """θ ≥ λmin always; the 95 % bound lies below λmin here; non-convergence is said."""
    data = samples()
    plan = replace(PLAN, steps=4, probes=2, dtype="float64")
    for spectrum in analyze(checkpoint(), plan, train=data).spectra:
        values = np.linalg.eigvalsh(dense(spectrum.label, data))
        certificate = spectrum.certificate
        assert certificate["rayleigh_quotient"] + certificate["noise_floor"] >= values[0]
        bound = certificate["lower_bound_95"]
        assert bound is None or bound <= values[0]
        near = abs(values - spectrum.lambda_min).min()
        assert near <= spectrum.residual_min + spectrum.doctor["noise_floor"]
        size = max(abs(spectrum.lambda_min), abs(spectrum.lambda_max))
        worst = max(spectrum.residual_min, spectrum.residual_max)
        assert spectrum.converged == (worst <= 1e-3 * size)


def test_a_convex_problem_has_no_proven_negative_curvature() -> None:
    """Softmax regression: λmin = 0 to rounding, whatever sign the Ritz value took."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = nn.Linear(4, CLASSES)
    for dtype in ("float32", "float64"):
        plan = replace(PLAN, steps=15, probes=1, dtype=dtype)
        for spectrum in analyze(checkpoint(linear), plan, train=samples()).spectra:
            assert not spectrum.proven
            assert 0 <= spectrum.nonconvexity < 1e-5
            assert spectrum.negative_mass == 0


def snapshot(model: nn.Module) -> dict[str, object]:
    parameters = list(model.parameters())
    return {
        "weights and buffers": {name: v.clone() for name, v in model.state_dict().items()},
        "requires_grad": [p.requires_grad for p in parameters],
        "grad": [None if p.grad is None else p.grad.clone() for p in parameters],
        "training": [module.training for module in model.modules()],
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "TF32": torch.backends.cudnn.allow_tf32,
        "default dtype": torch.get_default_dtype(),
        "gradients on": torch.is_grad_enabled(),
    }


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize(
    "changes",
    [{}, {"augment": "resample"}, {"augment": "frozen:2"}, {"protocol": "released"}],
    ids=str,
)
def test_nothing_outside_is_touched(changes: dict[str, str]) -> None:
    """Law 7, bit for bit (Python's own generator is left out: beartype draws from it here)."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    model.train()
    model[3].weight.requires_grad_(False)
    model[3].bias.grad = torch.ones(3)
    before = snapshot(model)
    plan = replace(PLAN, steps=3, probes=1, classes=(1,), per_class=False, **changes)
    analyze(checkpoint(model), plan, train=images(), test=images())
    after = snapshot(model)
    assert [what for what in before if not equal(before[what], after[what])] == []


def passes(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, int], Meter]:
    """Count the products of one class by precision, leaving out the choice over a few samples."""
    counted = {"torch.float32": 0, "torch.float64": 0}
    product = Objective.product

    def counting(self: Objective, *args: object, **kwargs: object) -> torch.Tensor:
        if len(self.samples) == 9:
            counted[str(self.dtype)] += 1
        return product(self, *args, **kwargs)

    meter = Meter()
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "product", counting)
        analyze(checkpoint(), plan, train=samples(), progress=meter)
    return counted, meter


def test_a_run_of_m_steps_takes_m_products_and_the_stated_few_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P41: no product is hidden, and the bar counts those that there are."""
    plan = Plan(classes=(0,), steps=7, device="cpu")
    counted, meter = passes(plan, monkeypatch)
    ends = 2  # one product each for the residuals of λmin and λmax
    size = 2  # the certificate's float32 products, for ‖H‖ and the logits
    assert counted["torch.float32"] == 7 + PRODUCTS_PER_EXAMINATION + TRACE_PROBES + ends + size
    assert counted["torch.float64"] == PRODUCTS_PER_CERTIFICATE - size
    assert meter.announced == meter.done == sum(counted.values())
    assert meter.work == meter.worked
    longer, _ = passes(replace(plan, steps=12), monkeypatch)
    assert longer["torch.float32"] - counted["torch.float32"] == 5
    more, meter = passes(replace(plan, probes=3), monkeypatch)
    assert more["torch.float32"] - counted["torch.float32"] == 14
    assert meter.announced == meter.done


def test_steps_end_where_the_space_does() -> None:
    """Softmax regression with two features has 9 parameters; no step is spent beyond."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = nn.Linear(2, CLASSES)
    data = samples()
    meter = Meter()
    narrow = replace(data, inputs=data.inputs[:, :2])
    plan = Plan(steps=50, device="cpu", dtype="float64")
    (spectrum,) = analyze(checkpoint(linear), plan, train=narrow, progress=meter).spectra
    assert spectrum.steps <= 9
    assert meter.announced <= 9 + 30


def test_probes_are_those_of_the_seed_whatever_else_is_computed() -> None:
    data = samples()
    alone = analyze(checkpoint(), Plan(classes=(2,), steps=5, device="cpu"), train=data)
    beside = analyze(checkpoint(), replace(PLAN, steps=5, probes=1), train=data)
    other = analyze(checkpoint(), Plan(classes=(2,), steps=5, seed=1, device="cpu"), train=data)
    a, b, c = (x.get("class 2").runs[0].alphas for x in (alone, beside, other))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def sources() -> dict[str, Callable[[], object]]:
    data = samples()
    pair = (data.inputs, data.targets)
    ragged = [(data.inputs[i:j], data.targets[i:j]) for i, j in itertools.pairwise((0, 7, 13, 16))]
    return {
        "pair": lambda: pair,
        "list": lambda: ragged,
        "loader": lambda: DataLoader(TensorDataset(*pair), batch_size=5),
        "samples": lambda: data,
    }


@pytest.mark.parametrize("name", sources())
def test_any_source_of_batches_gives_the_same_spectrum(name: str) -> None:
    """The README's five lines with a pair of tensors, a list, a loader and samples."""
    operator = class_operators(network(), sources()[name](), dtype=torch.float64)[1]
    run = spectra.lanczos(operator, spectra.random_start(operator.dim, seed=0, probe=0), steps=43)
    certificate = spectra.certify(operator, run.vector(0))
    values = np.linalg.eigvalsh(dense("class 1", samples()))
    assert certificate.rayleigh_quotient == pytest.approx(values[0], abs=1e-10)
    assert certificate.negative_curvature


def test_the_analysis_of_a_loader_equals_that_of_its_samples(tmp_path: Path) -> None:
    loader = sources()["loader"]()
    read = Samples.from_batches(loader, num_classes=3)
    found = analyze(checkpoint(), replace(PLAN, steps=4), train=read, folder=tmp_path)
    direct = analyze(checkpoint(), replace(PLAN, steps=4), train=samples())
    assert found.data["name"] == "own tensors"
    assert found.data["spec"] is None
    assert [s.lambda_min for s in found.spectra] == [s.lambda_min for s in direct.spectra]
    loaded = Analysis.load(tmp_path)
    assert [s.to_dict() for s in loaded.spectra] == [s.to_dict() for s in found.spectra]


def test_a_network_in_memory_is_analysed_like_its_checkpoint(tmp_path: Path) -> None:
    """In the middle of a training loop: no file, a loader, and the network goes on as it was."""
    model, plan = network().train(), replace(PLAN, steps=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = analyze(model, plan, train=sources()["loader"](), test=sources()["list"]())
    direct = analyze(checkpoint(), plan, train=samples(), test=samples())
    assert [s.lambda_min for s in found.spectra] == [s.lambda_min for s in direct.spectra]
    assert found.spectra[1].test_accuracy == direct.spectra[1].test_accuracy is not None
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert found.checkpoint["file"] == "a network in memory"

    analyze(model, plan, train=samples(), folder=tmp_path)
    meter = Meter()
    analyze(model, plan, train=samples(), folder=tmp_path, resume=True, progress=meter)
    assert (meter.announced, meter.done) == (0, 0)
    frozen, bent, moved = network(), network(), network()
    frozen[0].requires_grad_(False)
    bent[1] = nn.ReLU()
    with torch.no_grad():
        moved[0].weight[0, 0] += 1e-3
    for other in (frozen, bent, moved):
        with pytest.raises(SpectraError, match="other settings to resume: checkpoint"):
            analyze(other, plan, train=samples(), folder=tmp_path, resume=True)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(SpectraError, match=r"NaN or infinite weights in 0\.weight"):
        analyze(model, plan, train=samples())


def test_accuracies_pass_over_no_class_that_is_not_asked_for() -> None:
    """Five images of one class must not wait for the whole test set."""
    data = samples()
    objective = Objective.of(network(), data)
    whole, targets = classify(objective, data, list(choose_parts(Plan(overall=True), data, data)))
    assert targets.tolist() == data.targets.tolist()
    few, labels = classify(objective, data, list(choose_parts(Plan(classes=(1,)), data, data)))
    assert labels.tolist() == [1] * 5
    assert torch.equal(few, whole[data.targets == 1])
    one = analyze(
        checkpoint(),
        replace(PLAN, steps=2, overall=False, per_class=False, classes=(1,)),
        train=data,
        test=samples(counts=(3, 0, 2)),
    )
    assert one.spectra[0].train_accuracy == pytest.approx(float(few.double().mean()))
    assert one.spectra[0].test_accuracy is None


def test_a_network_in_memory_says_what_it_is() -> None:
    spec = ModelSpec("digits", 10, head="cosine")
    own = Checkpoint.of(torch.optim.swa_utils.AveragedModel(spec.build()), epoch=7, name="swa")
    assert (own.model_spec, own.head_scale) == (spec, 30.0)
    assert own.described() | {"sha256": ""} == {
        "file": "swa",
        "sha256": "",
        "arch": "digits",
        "epoch": 7,
    }
    assert Checkpoint.of(network()).model_spec == ModelSpec("Sequential", CLASSES)
    assert Checkpoint.of(network()).sha256 == Checkpoint.of(network()).sha256
    assert Checkpoint.of(network().double()).sha256 != Checkpoint.of(network()).sha256


def test_a_network_in_memory_is_not_taken_for_another() -> None:
    """Names alone would make a cosine head of 16 classes of it, and scale its logits by 30."""

    class Similar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
            self.conv3 = nn.Conv2d(16, 16, 3)
            self.linear = nn.Linear(16, 32, bias=False)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

        def get_extra_state(self) -> dict[str, int]:
            return {"kept": 1}

        def set_extra_state(self, state: object) -> None:
            pass

    own = Checkpoint.of(Similar())
    assert own.model_spec == ModelSpec("Similar", 32)
    assert own.head_scale == 1.0
    assert Checkpoint.of(Similar(), 32, loss=LossSpec(scale=30.0)).head_scale == 30.0
    kept = nn.Sequential(nn.Linear(4, 3))
    kept[0].seen = kept(torch.zeros(1, 4))
    with pytest.raises(SpectraError, match="set an activation that is kept"):
        Checkpoint.of(kept)
    with pytest.raises(SpectraError, match="pass one batch through it"):
        Checkpoint.of(nn.LazyLinear(3))


def test_samples_of_one_class_are_enough() -> None:
    data = samples(counts=(5,))
    found = analyze(network(), Plan(steps=3, device="cpu"), train=(data.inputs, data.targets))
    assert found.spectra[0].count == 5


def test_what_cannot_be_analysed_in_memory_is_refused() -> None:
    with pytest.raises(SpectraError, match="all frozen"):
        analyze(network().requires_grad_(False), PLAN, train=samples())
    with pytest.raises(SpectraError, match="no train samples"):
        analyze(network(), PLAN)


def test_what_does_not_fit_together_is_refused_before_any_product() -> None:
    data, held = samples(), checkpoint()
    with pytest.raises(SpectraError, match="no test samples"):
        analyze(held, Plan(split="test", device="cpu"), train=data)
    with pytest.raises(SpectraError, match="--loss ce"):
        analyze(held, Plan(loss="trained", device="cpu"), train=data)
    for more in ({"train": samples(counts=(3, 3, 3, 3))}, {"test": samples(counts=(2, 2, 2, 2))}):
        with pytest.raises(SpectraError, match="3 outputs for 4 classes"):
            analyze(held, Plan(device="cpu"), **({"train": data} | more))
    with pytest.raises(SpectraError, match="expected 0 to 2"):
        analyze(held, Plan(classes=(3,), device="cpu"), train=data)
    empty = Samples.from_batches((data.inputs[:14], data.targets[:14]), num_classes=3)
    with pytest.raises(SpectraError, match="no sample of class 2"):
        analyze(held, Plan(classes=(2,), device="cpu"), train=empty)
    assert analyze(held, Plan(per_class=True, steps=2, device="cpu"), train=empty).labels == (
        "class 0",
        "class 1",
    )
    with pytest.raises(SpectraError, match="augmentation"):
        analyze(held, Plan(augment="resample", device="cpu"), train=data)


def test_the_trained_loss_overall_is_the_weighted_mean() -> None:
    """Σ w_i ℓ_i / Σ w_i, no weight decay; within one class the weights cancel."""
    weights = (0.2, 1.0, 1.8)
    held = checkpoint(loss=LossSpec("ce", weights=weights))
    data = samples()
    trained = analyze(held, replace(PLAN, loss="trained", dtype="float64"), train=data)
    plain = analyze(held, replace(PLAN, dtype="float64"), train=data)
    for c in range(3):
        assert trained.get(f"class {c}").loss == plain.get(f"class {c}").loss
    sums = [weights[c] * data.counts[c] for c in range(3)]
    mean = sum(w * plain.get(f"class {c}").loss for c, w in enumerate(sums)) / sum(sums)
    assert trained.get("overall").loss == pytest.approx(mean, rel=1e-12)


def focal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return (1 - torch.exp(-losses)) ** 2 * losses


def test_any_loss_of_the_caller_is_analysed_as_the_trained_one(tmp_path: Path) -> None:
    data, model, plan = samples(), network(), Plan(per_class=True, steps=4, device="cpu")
    ours = Checkpoint.of(model, loss=LossSpec("focal", gamma=2.0))
    theirs = Checkpoint.of(model, loss=focal)
    plan = replace(plan, loss="trained", dtype="float64")
    found = [
        analyze(held, plan, train=data, folder=tmp_path, overwrite=True) for held in (ours, theirs)
    ]
    for mine, other in zip(*(analysis.spectra for analysis in found), strict=True):
        assert other.loss == pytest.approx(mine.loss, rel=1e-12)
        assert other.lambda_max == pytest.approx(mine.lambda_max, rel=1e-8)
    assert found[0].settings["loss_function"]["gamma"] == 2.0
    assert found[1].settings["loss_function"]["name"] == "focal"
    assert analyze(theirs, plan, train=data, folder=tmp_path, resume=True).finished
    for other in (ours, Checkpoint.of(model, loss=LossSpec("focal", gamma=1.0))):
        with pytest.raises(SpectraError, match="loss_function"):
            analyze(other, plan, train=data, folder=tmp_path, resume=True)
    with pytest.raises(SpectraError, match="reduction"):
        Checkpoint.of(model, loss=torch.nn.CrossEntropyLoss())


def made_focal(gamma: float, **held: float) -> Callable[..., torch.Tensor]:
    def focal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return (1 - torch.exp(-losses)) ** (gamma + held.get("more", 0.0)) * losses

    return focal


class Slotted:
    """A loss whose object has no dictionary."""

    __slots__ = ("gamma",)

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return made_focal(self.gamma)(logits, targets)


class Focal:
    """A loss as an object, and one more as its method."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return made_focal(self.gamma)(logits, targets)

    def doubled(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 2 * self(logits, targets)


class Other(Focal):
    """The same attributes; what the method calls is another thing."""

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits[:, 0]


class Counting(Focal):
    """Changes with every call."""

    calls = 0

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().__call__(logits, targets)


def test_losses_of_one_name_that_differ_in_what_they_hold_are_others(tmp_path: Path) -> None:
    torch_loss = partial(torch.nn.CrossEntropyLoss, reduction="none")
    losses = [
        *(made_focal(1.0), made_focal(2.0), made_focal(1.0, more=1.0)),
        *(partial(made_focal(1.0)), lambda z, t: z[:, 0], lambda z, t: z[:, 1]),
        *(torch_loss(), torch_loss(label_smoothing=0.1)),
        *(Focal(2.0), Focal(5.0), Focal(2.0).doubled, Focal(5.0).doubled, Other(2.0).doubled),
        *(Slotted(2.0), Slotted(5.0)),
    ]
    prints = [as_loss(loss).to_dict()["sha256"] for loss in losses]
    assert len(set(prints)) == len(prints)
    for make in (made_focal, Focal, Slotted, lambda gamma: Focal(gamma).doubled):
        assert as_loss(make(1.0)).to_dict() == as_loss(make(1.0)).to_dict()
    assert as_loss(losses[4]).to_dict()["name"] == "lambda"
    data, plan = samples(), Plan(steps=3, device="cpu", loss="trained")
    first = Checkpoint.of(network(), loss=losses[0])
    analyze(first, plan, train=data, folder=tmp_path)
    assert analyze(first, plan, train=data, folder=tmp_path, resume=True).finished
    for _ in range(2):  # as by a process that has not called it yet
        counting = Checkpoint.of(network(), loss=Counting(1.0))
        assert analyze(counting, plan, train=data, folder=tmp_path / "c", resume=True).finished
    with pytest.raises(SpectraError, match="loss_function"):
        analyze(replace(first, loss=as_loss(losses[1])), plan, train=data, folder=tmp_path,
                resume=True)  # fmt: skip


def test_a_new_analysis_takes_the_place_of_an_old_ones_figures_alone(tmp_path: Path) -> None:
    made = ("esd.csv", "esd.png", "esd-2.pdf")
    theirs = ("esd-talk.png", "esdata.csv", "esd.svg")
    for name in (*made, *theirs):
        (tmp_path / name).touch()
    plan = Plan(steps=2, device="cpu", classes=(9,))
    with pytest.raises(SpectraError):
        analyze(network(), plan, train=samples(), folder=tmp_path)
    assert all((tmp_path / name).exists() for name in made)
    analyze(network(), replace(plan, classes=(1,)), train=samples(), folder=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"esd.json", "esd.npz", *theirs}


def test_networks_that_differ_in_plain_attributes_alone_have_other_fingerprints() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self, **held: object) -> None:
            super().__init__()
            self.net = network()
            vars(self).update(held)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    held = [{"t": 1.0}, {"t": 2.0}, {"t": torch.zeros(3)}, {"t": [torch.ones(3)]}, {"u": 1.0}]
    torch.manual_seed(0)
    first = Scaled()
    prints = []
    for attributes in (*held, {"t": 1.0}):
        model = Scaled(**attributes)
        model.load_state_dict(first.state_dict())
        prints.append(Checkpoint.of(model).sha256)
        assert Checkpoint.of(model.train()).sha256 == prints[-1]
    assert prints[-1] == prints[0]
    assert len(set(prints)) == len(held)


def test_a_loss_that_names_float32_means_the_precision_of_the_logits() -> None:
    data, model = samples(), network()
    losses = [
        lambda z, t: torch.nn.functional.cross_entropy(z.float(), t, reduction="none"),
        lambda z, t: torch.nn.functional.cross_entropy(z, t, reduction="none"),
    ]
    plan = Plan(steps=4, device="cpu", loss="trained", dtype="float64")
    found = [analyze(Checkpoint.of(model, loss=loss), plan, train=data) for loss in losses]
    ends = [analysis.spectra[0].lambda_max for analysis in found]
    assert ends[0] == pytest.approx(ends[1], rel=1e-10)


def test_a_function_is_no_loss_of_a_file(tmp_path: Path) -> None:
    held = Checkpoint.of(network(), loss=focal)
    with pytest.raises(SpectraError, match="a file cannot hold a function"):
        save_checkpoint(tmp_path / "f.pt", held.model, model_spec=held.model_spec, loss=held.loss)
    assert not list(tmp_path.iterdir())


def test_a_result_says_unknown_and_never_zero_for_what_one_probe_cannot_tell() -> None:
    (spectrum,) = analyze(checkpoint(), Plan(steps=3, device="cpu"), train=samples()).spectra
    assert spectrum.negative_mass_stderr is None
    assert spectrum.test_accuracy is None
    assert spectrum.trace_stderr is not None
    known = ClassSpectrum(label="x", name="x", count=1, share=1.0).to_dict()
    assert {known[k] for k in ("loss", "lambda_min", "trace", "nonconvexity")} == {None}
    assert asdict(PLAN)["probes"] == 3


def test_resuming_in_another_network_with_the_same_weights_is_refused(tmp_path: Path) -> None:
    plan = replace(PLAN, probes=1, steps=3)
    analyze(checkpoint(), plan, train=samples(), folder=tmp_path)
    other = replace(checkpoint(), model_spec=ModelSpec("other", CLASSES))
    with pytest.raises(SpectraError, match="network"):
        analyze(other, plan, train=samples(), folder=tmp_path, resume=True)


def test_a_full_disk_stops_the_run_and_no_class_counts_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, probes=1, steps=3)
    save, saved = Analysis.save, []

    def full(self: Analysis, folder: str | Path) -> Path:
        if len(saved) == 2:
            raise StorageError("no space left on the device")
        saved.append(self.labels)
        return save(self, folder)

    monkeypatch.setattr(Analysis, "save", full)
    monkeypatch.setattr("spectra.files.monotonic", lambda: 0.0)  # nothing waits
    with pytest.raises(StorageError):
        analyze(checkpoint(), plan, train=samples(), folder=tmp_path)
    monkeypatch.undo()
    assert Analysis.load(tmp_path).finished == ("overall", "class 0")
    done = analyze(checkpoint(), plan, train=samples(), folder=tmp_path, resume=True)
    assert [s.error for s in done.spectra] == [None] * 4


def test_only_what_is_finished_waits_to_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vectors of an unfinished class lie on the disk, and resume only beside its results."""
    times = iter(range(1000))  # each look at the clock comes a second later
    save, saved = Analysis.save, []

    def slow(self: Analysis, folder: str | Path) -> Path:
        saved.append([s.complete for s in self.spectra])
        return save(self, folder)

    monkeypatch.setattr(Analysis, "save", slow)
    monkeypatch.setattr("spectra.files.monotonic", lambda: float(next(times)))
    plan = replace(PLAN, overall=False, per_class=False, classes=(0, 1), probes=2, steps=3)
    found = analyze(checkpoint(), plan, train=samples(), folder=tmp_path)
    assert saved == [[False], [True, False], [True, True]]
    assert Analysis.load(tmp_path).finished == found.labels


def test_what_fits_the_memory_is_learnt_once_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(per_class=True, steps=3, batch_size=9, dtype="float64", device="cpu")
    expected = analyze(checkpoint(), plan, train=samples()).spectra
    original, failures = Objective._weighted_sum, []

    def stingy(self: Objective, inputs: torch.Tensor, *rest: object) -> torch.Tensor:
        if torch.is_grad_enabled() and len(inputs) > 2 and not self.backwards:
            failures.append(len(inputs))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, inputs, *rest)

    monkeypatch.setattr(Objective, "_weighted_sum", stingy)
    found = analyze(checkpoint(), plan, train=samples()).spectra
    # Of the eight that are looked at for parameters without use; then every class fits at once.
    assert failures == [8, 4]
    for one, other in zip(found, expected, strict=True):
        assert one.lambda_min == pytest.approx(other.lambda_min, rel=1e-9)


def test_a_folder_that_cannot_be_written_is_told_before_the_first_product(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    meter = Meter()
    with pytest.raises(StorageError, match="was not written"):
        analyze(
            checkpoint(), PLAN, train=samples(), folder=tmp_path / "file" / "in", progress=meter
        )
    assert meter.done == 0


def test_damaged_ritz_vectors_are_made_anew(whole: Callable[[Plan], Path], tmp_path: Path) -> None:
    plan = replace(PLAN, steps=5, overall=False)
    held, data = checkpoint(pictures()), images()
    with pytest.raises(KeyboardInterrupt):
        analyze(held, plan, train=data, folder=tmp_path, progress=Meter("class 1", 12))
    (tmp_path / "ritz-vectors.pt").write_bytes(b"damaged")
    analyze(held, plan, train=data, folder=tmp_path, resume=True)
    assert same_files(whole(plan), tmp_path)


def test_two_classes_have_the_groups_that_two_classes_can_fill() -> None:
    two = replace(checkpoint(network(classes=2)), model_spec=ModelSpec("toy", 2))
    plan = Plan(groups=True, steps=3, device="cpu")
    labels = analyze(two, plan, train=samples(counts=(5, 3))).labels
    assert labels == ("head", "mid")


def test_empty_groups_and_classes_are_left_out_unless_they_are_named() -> None:
    train, thin = samples(counts=(9, 5, 2)), samples(counts=(3, 0, 4))
    plan = Plan(groups=True, per_class=True, split="test", steps=2, device="cpu")
    labels = [part.label for part in choose_parts(plan, thin, train)]
    assert labels == ["head", "tail", "class 0", "class 2"]
    assert list(analyze(checkpoint(), plan, train=train, test=thin).labels) == labels
    with pytest.raises(SpectraError, match="no sample of class 1 in the test split"):
        list(choose_parts(replace(plan, classes=(1,), per_class=False), thin, train))
    ignored = Samples.from_batches((thin.inputs, torch.full((7,), -100)), num_classes=3)
    for changes in ({}, {"groups": False}, {"per_class": False}):
        with pytest.raises(SpectraError, match="no sample with a label in the test split"):
            list(choose_parts(replace(plan, **changes), ignored, train))


@pytest.mark.parametrize("given", [2, np.int64(2), [2], (2,), np.array([2]), range(2, 3)])
def test_one_class_or_any_row_of_them_may_be_named(given: Any) -> None:
    assert Plan(classes=given) == Plan(classes=(2,))


@pytest.mark.parametrize("given", ["2", 2.0, None, (0.5,)])
def test_what_names_no_class_is_refused(given: Any) -> None:
    with pytest.raises(SpectraError, match="expected labels: whole numbers"):
        Plan(classes=given)


def test_data_that_the_network_cannot_take_get_one_line() -> None:
    wrong = Samples.from_batches((torch.zeros(4, 7), torch.tensor([0, 1, 2, 0])))
    with pytest.raises(SpectraError, match=r"inputs of shape \(7,\)") as told:
        analyze(checkpoint(), PLAN, train=wrong)
    assert "\n" not in str(told.value)
    with pytest.raises(SpectraError, match="batch size"):
        hessian_operator(network(), samples(), batch_size="some")


def test_a_random_layer_is_refused_and_leaves_the_random_state_alone() -> None:
    """Law 7, P3: accuracies are taken before the choice of the product refuses the layer."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.net(nn.functional.dropout(x, training=True))
            return logits

    before = torch.random.get_rng_state()
    with pytest.raises(SpectraError, match="gives another output in every pass"):
        analyze(checkpoint(Noisy()), PLAN, train=samples())
    assert torch.equal(before, torch.random.get_rng_state())


def test_where_the_basis_is_kept_changes_no_number_beyond_rounding(tmp_path: Path) -> None:
    plan = replace(PLAN, steps=20, probes=2, dtype="float64", per_class=False, classes=(1,))
    beside, moved, without = (
        analyze(checkpoint(), replace(plan, basis=place), train=samples(), folder=tmp_path / place)
        for place in ("device", "host", "none")
    )
    for one, other, ghosts in zip(beside.spectra, moved.spectra, without.spectra, strict=True):
        size = max(abs(one.lambda_min), one.lambda_max)
        for key in ("lambda_min", "lambda_max", "trace", "residual_min", "negative_mass"):
            assert getattr(other, key) == pytest.approx(getattr(one, key), abs=1e-10 * size), key
        assert ghosts.lambda_max == pytest.approx(one.lambda_max, abs=1e-8 * size)
        assert ghosts.lambda_min == pytest.approx(one.lambda_min, abs=1e-4 * size)
        assert ghosts.proven == one.proven
        truth = np.linalg.eigvalsh(dense(one.label, samples()))
        assert ghosts.trace == pytest.approx(truth.sum(), abs=5 * ghosts.trace_stderr)
        assert one.trace == pytest.approx(truth.sum(), abs=5 * one.trace_stderr)
        assert one.trace_stderr < 0.5 * ghosts.trace_stderr  # nothing is known without a basis
        assert ghosts.certificate["lower_bound_95"] <= truth[0] + 1e-8 * size
        low, high = ghosts.negative_mass_bounds
        least, most = one.negative_mass_bounds
        assert max(low, least) <= min(high, most) + 1e-9
    assert [found.settings["basis"] for found in (beside, moved, without)] == [
        *("device", "host", "none"),
    ]
    for place, kept in (("device", True), ("none", False)):
        (first, *_) = Analysis.load(tmp_path / place).spectra
        assert [run.orthogonal for run in first.runs] == [kept, kept]


def test_without_a_basis_the_bar_counts_what_a_second_pass_may_cost() -> None:
    meter = Meter()
    plan = Plan(classes=(0,), steps=7, device="cpu", basis="none")
    analyze(checkpoint(), plan, train=samples(), progress=meter)
    more = 7 + 2 + PRODUCTS_PER_EXAMINATION + TRACE_PROBES + PRODUCTS_PER_CERTIFICATE
    assert more < meter.done <= meter.announced == more + 7
    assert meter.work == meter.worked


def test_where_the_basis_was_kept_is_taken_over_or_refused(tmp_path: Path) -> None:
    plan = Plan(classes=(2,), steps=4, device="cpu", basis="host")
    analyze(checkpoint(), plan, train=samples(), folder=tmp_path)
    more = replace(plan, per_class=True, basis="auto")  # memory may be another than last time
    grown = analyze(checkpoint(), more, train=samples(), folder=tmp_path, resume=True)
    assert grown.settings["basis"] == "host"
    with pytest.raises(SpectraError, match=r"basis \('host', now 'none'\)"):
        analyze(
            checkpoint(), replace(more, basis="none"), train=samples(), folder=tmp_path, resume=True
        )


def test_results_of_earlier_versions_say_nothing_of_their_basis_and_go_on(tmp_path: Path) -> None:
    plan = replace(PLAN, steps=4)
    first = analyze(checkpoint(), plan, train=samples(), folder=tmp_path)
    settings = {key: value for key, value in first.settings.items() if key != "basis"}
    replace(first, settings=settings).save(tmp_path)
    arrays = {k: v for k, v in arrays_of(tmp_path).items() if not k.endswith("/orthogonal")}
    np.savez(tmp_path / "esd.npz", **arrays)
    assert all(run.orthogonal for run in Analysis.load(tmp_path).spectra[0].runs)
    meter = Meter()
    analyze(checkpoint(), plan, train=samples(), folder=tmp_path, resume=True, progress=meter)
    assert meter.done == 0


def test_a_basis_that_fits_nowhere_is_refused_before_any_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spectra.gathering.free_memory", lambda: 43 * 4 * 20 - 1)
    plan, meter = Plan(steps=20, device="cpu"), Meter()
    with pytest.raises(SpectraError, match="--basis none"):
        analyze(checkpoint(), plan, train=samples(), progress=meter)
    assert meter.done == 0
    found = analyze(checkpoint(), replace(plan, basis="none"), train=samples())
    assert found.get("overall").error is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"protocol": "released", "basis": "none"}, "released"),
        ({"augment": "resample", "basis": "none"}, "differ"),
        ({"augment": "resample", "until_converged": 1e-3}, "fixed operator"),
        ({"protocol": "released", "until_converged": 1e-3}, "fixed operator"),
        ({"until_converged": 0.0}, "between 0 and 1"),
        ({"until_converged": 1e3}, "between 0 and 1"),
    ],
    ids=str,
)
def test_a_plan_that_contradicts_itself_is_refused(
    changes: dict[str, str | float], word: str
) -> None:
    with pytest.raises(SpectraError, match=word):
        Plan(**changes)


def test_a_run_that_ends_when_it_has_converged_saves_products_and_shows_it() -> None:
    """It serves everything as before: of fewer nodes, hence with wider bounds, and says so."""
    plan, meter = replace(PLAN, steps=22, probes=2, dtype="float64"), Meter()
    whole = analyze(checkpoint(), plan, train=samples())
    goal = replace(plan, until_converged=1e-3)
    found = analyze(checkpoint(), goal, train=samples(), progress=meter)
    saved = 0
    for a, b in zip(found.spectra, whole.spectra, strict=True):
        size = max(abs(b.lambda_min), b.lambda_max)
        assert a.steps == max(run.steps for run in a.runs) < b.steps == 22
        saved += sum(22 - run.steps for run in a.runs)
        assert a.converged
        assert max(a.residual_min, a.residual_max) <= 1e-3 * size
        assert a.lambda_min == pytest.approx(b.lambda_min, abs=1e-3 * size)
        assert a.lambda_max == pytest.approx(b.lambda_max, abs=1e-3 * size)
        truth = np.linalg.eigvalsh(dense(a.label, samples()))
        assert abs(a.trace - truth.sum()) < 5 * a.trace_stderr
        assert b.trace == pytest.approx(truth.sum(), abs=5 * b.trace_stderr + 1e-10 * size)
        assert b.trace_stderr < a.trace_stderr  # for more of H is known
        assert a.proven == b.proven
        assert len(a.measure.nodes[0]) == a.runs[0].steps
        (low, high), (least, most) = a.negative_mass_bounds, b.negative_mass_bounds
        assert high - low > most - least
        assert a.certificate["lower_bound_95"] <= truth[0] + 1e-10 * size
    assert meter.announced - meter.done == saved >= 4 * 2 * 2
    assert meter.work == meter.worked  # the bar is at its end all the same
    assert found.settings["until_converged"] == 1e-3
    assert any("ends once both residuals are within 0.001" in note for note in found.notes)
    assert not any("ends once" in note for note in whole.notes)


def test_ends_that_are_not_converged_are_not_called_so_whatever_the_tolerance() -> None:
    plan = replace(PLAN, steps=12, probes=1, dtype="float64", per_class=False)
    loose, strict = (
        analyze(checkpoint(), replace(plan, until_converged=goal), train=samples()).spectra[0]
        for goal in (0.3, 1e-9)
    )
    assert loose.steps < 12
    for spectrum in (loose, strict):
        size = max(abs(spectrum.lambda_min), spectrum.lambda_max)
        assert max(spectrum.residual_min, spectrum.residual_max) > 1e-9 * size
        assert not spectrum.converged
    assert strict.steps == 12  # the steps stay the ceiling


def test_kill_and_resume_goes_on_where_probes_end_by_their_residuals(tmp_path: Path) -> None:
    plan = replace(PLAN, steps=16, until_converged=1e-2, overall=False)
    held, data = checkpoint(pictures()), images()
    analyze(held, plan, train=data, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        analyze(held, plan, train=data, folder=tmp_path / "cut", progress=Meter("class 1", 17))
    assert Analysis.load(tmp_path / "cut").get("class 1").probes in (1, 2)
    meter = Meter()
    analyze(held, plan, train=data, folder=tmp_path / "cut", resume=True, progress=meter)
    assert meter.work == meter.worked
    assert same_files(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("product", ["linearized", "kept-graph"])
def test_products_that_keep_their_common_part_give_the_same_spectra(product: Any) -> None:
    plain = analyze(checkpoint(pictures()), replace(PLAN, dtype="float64"), train=images())
    plan = replace(PLAN, dtype="float64", product=product)
    kept = analyze(checkpoint(pictures()), plan, train=images())
    assert kept.settings["product"] == product
    for one, other in zip(plain.spectra, kept.spectra, strict=True):
        assert other.error is None
        assert other.lambda_min == pytest.approx(one.lambda_min, rel=1e-9)
        assert other.lambda_max == pytest.approx(one.lambda_max, rel=1e-9)
        assert other.trace == pytest.approx(one.trace, rel=1e-9)


def test_a_resumed_run_takes_the_product_of_the_first_and_builds_none_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, product="linearized", classes=(0,), per_class=False, overall=False)
    held, data = checkpoint(pictures()), images()
    analyze(held, plan, train=data, folder=tmp_path)
    more = replace(plan, product="auto", classes=(0, 1))
    found = analyze(held, more, train=data, folder=tmp_path, resume=True)
    assert found.settings["product"] == "linearized"
    assert len(found.spectra) == 2

    def build(*_: object) -> None:
        raise AssertionError("nothing is left to multiply")

    monkeypatch.setattr(KeptProducts, "__init__", build)
    again = analyze(held, more, train=data, folder=tmp_path, resume=True)
    assert again.settings["product"] == "linearized"


@pytest.mark.parametrize("moving", [{"protocol": "released"}, {"augment": "resample"}])
def test_products_that_keep_something_are_refused_where_the_operator_moves(
    moving: dict[str, Any],
) -> None:
    with pytest.raises(SpectraError, match="nothing may be kept from one to the next"):
        replace(PLAN, product="linearized", **moving)


def test_what_went_otherwise_than_planned_is_in_the_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = KeptProducts._sum, 0

    def scarce(self: KeptProducts, *given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 20:  # the trial is over
            raise torch.OutOfMemoryError
        return real(self, *given)

    monkeypatch.setattr(KeptProducts, "_sum", scarce)
    found = analyze(checkpoint(pictures()), replace(PLAN, product="linearized"), train=images())
    assert all(spectrum.error is None for spectrum in found.spectra)
    assert any("out of memory; nothing is kept" in note for note in found.notes)


def test_a_moving_loss_is_a_mean_over_draws_of_the_seed() -> None:
    plan = Plan(classes=(1,), steps=2, augment="resample", device="cpu")
    first, again, other = (
        analyze(checkpoint(pictures()), replace(plan, seed=seed), train=images()).spectra[0]
        for seed in (0, 0, 1)
    )
    assert (first.loss, first.loss_stderr) == (again.loss, again.loss_stderr)
    assert first.loss != other.loss
    rows = images().targets == 1
    every = [
        hessian_operator(pictures(), images().frozen(1, seed).select(rows)).objective.exact_value()
        for seed in range(200)
    ]
    spread = np.std(every) / probing.LOSS_DRAWS**0.5
    assert first.loss == pytest.approx(np.mean(every), abs=4 * spread)
    assert 0.1 * spread < first.loss_stderr < 3 * spread
    fixed = analyze(checkpoint(pictures()), replace(plan, augment="none"), train=images())
    assert fixed.spectra[0].loss_stderr is None


def test_another_run_in_the_same_folder_is_noticed_and_not_overwritten(tmp_path: Path) -> None:
    plan = Plan(classes=(0, 1), steps=3, device="cpu")

    class Meanwhile:
        """The other run ends while this one computes its first product."""

        def begin(self, *_: object) -> None:
            theirs = replace(plan, classes=(2,))
            analyze(checkpoint(), theirs, train=samples(), folder=tmp_path)

        def tick(self, *_: object) -> None:
            pass

    with pytest.raises(StorageError, match=r"another run has written .*esd\.json meanwhile"):
        analyze(checkpoint(), plan, train=samples(), folder=tmp_path, progress=Meanwhile())
    assert Analysis.load(tmp_path).labels == ("class 2",)


def test_results_that_cannot_be_read_are_spared(tmp_path: Path) -> None:
    plan = Plan(classes=(0,), steps=3, device="cpu")
    analyze(checkpoint(), plan, train=samples(), folder=tmp_path)
    (tmp_path / "esd.npz").unlink()  # the table was copied without it
    before = (tmp_path / "esd.json").read_bytes()
    with pytest.raises(SpectraError, match=r"cannot be read.*--overwrite"):
        analyze(checkpoint(), plan, train=samples(), folder=tmp_path)
    assert (tmp_path / "esd.json").read_bytes() == before
    analyze(checkpoint(), plan, train=samples(), folder=tmp_path, overwrite=True)
    assert Analysis.load(tmp_path).finished == ("class 0",)


def test_what_cannot_be_resumed_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(classes=(0,), steps=3, device="cpu")
    analyze(checkpoint(), plan, train=samples(), folder=tmp_path)
    monkeypatch.setattr(study.Study, "prepare", lambda *_, **__: pytest.fail("prepared"))
    other = replace(checkpoint(), sha256="cd" * 32)
    more = replace(plan, classes=(0, 1))
    with pytest.raises(SpectraError, match=r"checkpoint \("):
        analyze(other, more, train=samples(), folder=tmp_path, resume=True)


def test_a_small_class_of_many_samples_leaves_the_others_where_they_are() -> None:
    """And its numbers are those that it has among all of them, with its own draws."""
    many = samples(counts=(900, 5, 300))
    plan = Plan(classes=(1,), steps=8, dtype="float64", device="cpu")
    prepared = study.Study.prepare(checkpoint(), plan, many, None, accuracies=False)
    assert len(prepared.objective.samples) <= 5 + 64
    (part,) = prepared.parts
    assert torch.equal(prepared.objective_of(part).samples.inputs, many.of_class(1).inputs)
    (found,) = analyze(checkpoint(), plan, train=many).spectra
    H = hessian_operator(network(), many.of_class(1), dtype=torch.float64)
    run = spectra.lanczos(H, random_start(H.dim, seed=0, probe=0), steps=8)
    assert found.lambda_max == pytest.approx(run.ritz().values[-1], rel=1e-10)
    assert (found.count, found.share) == (5, 5 / 1205)


class Two(Processes):
    """The leading one of two processes, of which the other says what it is told to."""

    replies: tuple[Any, ...] = (None, None)  # closed at once: while all prepare, and after it

    def device(self, name: str) -> str:
        return name

    def tell(self, message: object) -> None:
        pass

    def send(self, message: object, other: int) -> None:
        pass

    def receive(self, other: int) -> Any:
        return next(self.waiting)

    @property
    def waiting(self) -> Any:
        return self.__dict__.setdefault("_waiting", iter(self.replies))


def test_a_part_that_was_begun_goes_on_where_its_vectors_lie() -> None:
    plan = Plan(classes=(0, 1), steps=3, device="cpu")
    for begun, owner in (((), 1), (("class 1",), 0)):
        two = Two(0, 2, 0, 2, None)
        prepared = study.Study.prepare(checkpoint(), plan, samples(), None, two, (), begun)
        assert prepared.owners["class 1"] == owner
        assert prepared.first == ()
    many = samples(counts=(90, 5, 5))
    whole = replace(plan, overall=True)
    two = Two(0, 2, 0, 2, None)
    prepared = study.Study.prepare(checkpoint(), whole, many, None, two, (), ("overall",))
    assert prepared.first == ("overall",)  # before a small class takes the place of its vectors
    assert set(prepared.owners) == {"class 1"}


def test_what_another_process_has_found_is_taken_while_this_one_computes(tmp_path: Path) -> None:
    class Ready(Two):
        replies = (
            None,
            [(ClassSpectrum(label="class 1", name="1", count=5, share=0.1), ("n",))],
            None,
        )

    plan, taken = Plan(classes=(0, 1), steps=3, device="cpu"), []
    prepared = study.Study.prepare(checkpoint(), plan, samples(), None, Ready(0, 2, 0, 2, None))
    assert prepared.owners == {"class 0": 0, "class 1": 1}

    class Slow:
        def tick(self, *_: object) -> None:
            time.sleep(0.05)

    together.compute(prepared, prepared.parts, {}, None, Slow(), lambda *found: taken.append(found))
    assert taken[0][1] == ("n",)
    assert [spectrum.label for spectrum, _ in taken] == ["class 1", "class 0"]
    given = {"folder": tmp_path, "processes": Ready(0, 2, 0, 2, None)}
    analyze(checkpoint(), plan, train=samples(), **given)
    assert Analysis.load(tmp_path).labels == ("class 0", "class 1")  # in the order asked for


def test_where_memory_holds_one_basis_all_processes_share_every_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = Plan(classes=(0, 1), steps=10, device="cpu")
    basis = 10 * 43 * 4
    for free, owned in ((8 * basis, True), (7 * basis, False), (basis, False)):
        monkeypatch.setattr("spectra.gathering.free_memory", lambda free=free: free)
        two = Two(0, 8, 0, 8, None)
        monkeypatch.setattr(Two, "replies", (None,) * 14)
        prepared = study.Study.prepare(checkpoint(), plan, samples(), None, two)
        assert bool(prepared.owners) == owned
    monkeypatch.setattr("spectra.gathering.free_memory", lambda: basis - 1)
    with pytest.raises(SpectraError, match="Krylov basis"):
        study.Study.prepare(checkpoint(), plan, samples(), None, Two(0, 8, 0, 8, None))


def test_parameters_that_the_loss_does_not_depend_on_are_named() -> None:
    model = network()
    model.register_parameter("spare", nn.Parameter(torch.ones(7)))
    found = analyze(checkpoint(model), Plan(steps=2, device="cpu"), train=samples())
    (note,) = [note for note in found.notes if "zero rows" in note]
    assert note.endswith("does not depend on: spare")
    plain = analyze(checkpoint(), Plan(steps=2, device="cpu"), train=samples())
    assert not [note for note in plain.notes if "zero rows" in note]


def test_a_layer_that_starts_at_zero_is_not_called_unused_and_ignored_labels_tell_nothing() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.gain = network(inputs=4, classes=4), nn.Parameter(torch.zeros(()))
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.gain * self.inner(x))

    data = samples(counts=(60, 60, 5))
    targets = data.targets.clone()
    targets[:118] = -100  # two of class 1, and class 2
    masked = replace(data, targets=targets)
    for train in (data, masked):
        plan = Plan(classes=(2,), steps=2, device="cpu")
        found = analyze(checkpoint(Residual()), plan, train=train)
        assert found.get("class 2").error is None
        assert not [note for note in found.notes if "zero rows" in note]


def test_images_are_classified_in_smaller_batches_where_memory_is_scarce(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = samples(counts=(200, 150, 50))
    objective = Objective.of(network(), many, device="cpu")
    parts = [*choose_parts(Plan(per_class=True), many, many)]
    expected = classify(objective, many, parts)
    plain, sizes = Objective.logits, []

    def scarce(self: Objective, inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        if len(inputs) > 100:
            raise torch.OutOfMemoryError("made up")
        return plain(self, inputs)

    monkeypatch.setattr(Objective, "logits", scarce)
    assert all(map(torch.equal, classify(objective, many, parts), expected))
    assert sizes == [256, 128, 64, 64, 64, 64, 64, 64, 16]


def test_a_network_that_asserts_the_size_of_its_images_is_told_in_one_line() -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[1] == 5, "Wrong width! Expected 5 but got 4!"
            return self.inner(x)

    with pytest.raises(SpectraError, match=r"cannot take .Wrong width! Expected 5"):
        analyze(checkpoint(Strict()), Plan(steps=2, device="cpu"), train=samples())


def test_the_block_of_some_parameters_is_that_of_their_operator(tmp_path: Path) -> None:
    plan = Plan(classes=(1,), steps=8, parameters="0.*", dtype="float64", device="cpu")
    assert replace(plan, parameters=["0.weight", "0.bias"]).parameters == "0.weight,0.bias"
    found = analyze(checkpoint(), plan, train=samples(), folder=tmp_path)
    (spectrum,) = found.spectra
    H = hessian_operator(network(), samples().of_class(1), parameters="0.*", dtype=torch.float64)
    values = np.linalg.eigvalsh(H.dense().numpy())
    assert (spectrum.measure.dim, len(values)) == (25, 25)
    assert spectrum.lambda_max == pytest.approx(values[-1], rel=1e-6)
    assert found.settings["parameters"] == "0.*"
    assert [row["parameters"] for row in found.rows()] == ["0.*"]
    with pytest.raises(SpectraError, match=r"parameters \('0.\*', now None\)"):
        analyze(
            checkpoint(),
            replace(plan, parameters=None, classes=(0, 1)),
            train=samples(),
            folder=tmp_path,
            resume=True,
        )
    with pytest.raises(SpectraError, match=r"names or globs among 0\.weight"):
        analyze(checkpoint(), replace(plan, parameters="layer9.*"), train=samples())
