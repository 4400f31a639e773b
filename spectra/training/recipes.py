"""A recipe: everything that decides the weights of a run, but the data's folder and the device."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..checkpoint import COSINE_SCALE
from ..data.spec import DataSpec
from ..errors import SpectraError
from ..losses import LOSSES, LossSpec, effective_number_weights
from ..networks import Head
from . import schedules
from .steps import STEPS

WEIGHTINGS = ("none", "effective", "deferred", "resample")
PRECISIONS = ("float32", "tf32", "bf16", "float64")
_READERS = {  # fields that only some losses, steps, weightings or imbalances use
    "max_margin": {"ldam"},
    "gamma": {"vs", "focal"},
    "tau": {"vs", "logit-adjustment"},
    "adaptive": {"sam"},
    "bn_both_passes": {"sam", "lpf-sgd", "imbsam", "sse-sam"},
    "rare_below": {"imbsam", "sse-sam"},
    "rho_tail": {"sse-sam"},
    "stage_two": {"sse-sam"},
    "noise_growth": {"lpf-sgd"},
    "noise_parts": {"lpf-sgd"},
    "noise_interval": {"pgd"},
    "noise_threshold": {"pgd"},
    "beta": {"effective", "deferred"},
    "ratio": {"exp", "step"},
}


@dataclass(frozen=True)
class Recipe:
    """Hold the fields of a run; each is a flag of the command line.

    Args:
        name: what the run is called.
        dataset: as DataSpec names it.
        arch: as ModelSpec names it.
        imbalance: exp, step or none.
        ratio: largest over smallest class count, of exp and step.
        image_size: pixels that image files are cut to.
        loss: ce, ldam (with its cosine head, s = 30), vs, logit-adjustment or focal.
        max_margin: of ldam, in units of cosine.
        gamma: of vs (0.3 without it) and focal (2 without it).
        tau: of vs and logit-adjustment.
        weighting: none; by effective numbers (effective), or those after the first drop (deferred,
            DRW); or classes drawn evenly, with replacement (resample).
        beta: of the effective numbers.
        step: sgd, sam, pgd, lpf-sgd, imbsam or sse-sam.
        rho: radius of sam, imbsam and of the head's climb in sse-sam.
        rho_end: radius of the last epoch, approached linearly.
        rho_steps: or radii from epochs on, as 6:0.1,61:0.5.
        adaptive: sam in units of the weights (ASAM).
        bn_both_passes: batch-norm statistics move at w + e, too, as in released code.
        rare_below: imbsam and sse-sam take classes with fewer training samples for the tail.
        rho_tail: radius of the tail's climb in sse-sam.
        stage_two: share of the epochs after which sse-sam's head no longer climbs.
        noise: radius of pgd over the norm of the weights at the full learning rate, in proportion
            to which it falls; deviation of lpf-sgd over each filter's; no other step has any.
        noise_growth: the noise of lpf-sgd grows by 1 + this over the run, along a cosine.
        noise_parts: parts of a batch with a draw each, in lpf-sgd.
        noise_interval: steps between two perturbations of pgd, at least.
        noise_threshold: gradient norm up to which pgd perturbs; any without it.
        epochs: length of the run.
        schedule: of the learning rate, steps or cosine.
        warmup: epochs; without it 5/200 of the run for steps, 0 for cosine. One epoch, all that
            is left of it below 60, has the full rate and is none.
        drops: last epochs before lr/100, as 160,180; without it 160/200 and 180/200 of the run.
            The deferred weighting starts after the first, under a cosine as well, where nothing
            else uses them.
        batch_size: a last partial batch is kept; a last single sample joins the batch before.
        lr: learning rate between the warm-up and the first drop.
        momentum: not Nesterov's.
        weight_decay: on every parameter.
        augment: draw the data set's augmentation anew for each batch.
        flip_test: score the mean logits of each test image and its mirror image.
        precision: float32, tf32, bf16 (autocast, the weights stay float32) or float64.
        seed: of the initial weights, the order of the samples, augmentation and noise.

    Raises:
        SpectraError: for a value that no run can have, or one of a loss, step or weighting that is
            not its.
    """

    name: str
    dataset: str
    arch: str
    imbalance: str = "exp"
    ratio: float = 100.0
    image_size: int | None = None
    loss: str = "ce"
    max_margin: float = 0.5
    gamma: float | None = None
    tau: float = 1.0
    weighting: str = "none"
    beta: float = 0.9999
    step: str = "sgd"
    rho: float = 0.0
    rho_end: float | None = None
    rho_steps: tuple[tuple[int, float], ...] = ()
    adaptive: bool = False
    bn_both_passes: bool = False
    rare_below: int = 0
    rho_tail: float = 0.0
    stage_two: float = 0.7
    noise: float = 0.0
    noise_growth: float = 0.0
    noise_parts: int = 1
    noise_interval: int = 1
    noise_threshold: float | None = None
    epochs: int = 200
    schedule: str = "steps"
    warmup: int | None = None
    drops: tuple[int, ...] | None = None
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 2e-4
    augment: bool = True
    flip_test: bool = False
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        (warmup, drops), e = self.lr_epochs, [epoch for epoch, _ in self.rho_steps]
        steps = [radius for _, radius in self.rho_steps]
        radii = [self.rho, self.rho_end or 0.0, *steps]
        climbs, deferred = self.step in ("sam", "imbsam", "sse-sam"), self.weighting == "deferred"
        tails = self.step == "sse-sam"  # its head need not climb
        rare = self.step not in ("imbsam", "sse-sam") or self.rare_below > 0
        rules = {
            "step": (self.step in STEPS, f"one of {', '.join(STEPS)}"),
            "loss": (self.loss in LOSSES, f"one of {', '.join(LOSSES)}"),
            "weighting": (self.weighting in WEIGHTINGS, f"one of {', '.join(WEIGHTINGS)}"),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            "schedule": (self.schedule in ("steps", "cosine"), "steps or cosine"),
            "imbalance": (self.imbalance in ("exp", "step", "none"), "exp, step or none"),
            "max_margin": (0 < self.max_margin <= 2, "above 0, at most 2, in units of cosine"),
            "gamma": (self.gamma is None or self.gamma >= 0, "at least 0"),
            "beta": (0 <= self.beta < 1, "0 to 1, without 1"),
            "rho": (
                all(0 <= r < math.inf for r in radii)
                and climbs == (tails or any(r > 0 for r in radii)),
                "a radius above 0 for sam, imbsam and sse-sam, none for other steps",
            ),
            "rho_tail": (
                0 <= self.rho_tail < math.inf and (self.rho_tail > 0 or not tails),
                "at least 0, above 0 for sse-sam, whose tail climbs throughout",
            ),
            "rho_end": (self.rho_end is None or not e, "rho_end or rho_steps, not both"),
            "rho_steps": (
                e == sorted(set(e)) and min(e, default=1) >= 1,
                "pairs of epoch and radius, epochs ascending from 1",
            ),
            "rare_below": (rare, f"a class size below which {self.step} takes a class for rare"),
            "stage_two": (0 <= self.stage_two <= 1, "a share of the epochs, 0 to 1"),
            "noise": (
                0 <= self.noise < math.inf
                and (self.noise > 0) == (self.step in ("pgd", "lpf-sgd")),
                "above 0 for pgd and lpf-sgd, 0 for other steps",
            ),
            "noise_growth": (self.noise_growth >= 0, "at least 0"),
            "noise_parts": (1 <= self.noise_parts <= self.batch_size, "1 to the batch size"),
            "noise_interval": (self.noise_interval >= 1, "at least 1 step"),
            "noise_threshold": (
                self.noise_threshold is None or self.noise_threshold > 0,
                "above 0: at no other gradient pgd would ever perturb",
            ),
            "lr": (0 < self.lr < math.inf, "a positive learning rate"),
            "momentum": (0 <= self.momentum < 1, "0 to 1, without 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "warmup": (warmup >= 0, "at least 0 epochs"),
            "drops": (
                list(drops) == sorted(drops)
                and not (deferred and drops and drops[0] >= self.epochs),
                "ascending epochs, and for deferred weights the first before the last epoch",
            ),
            "seed": (self.seed >= 0, "at least 0"),
        }
        if deferred and not drops:
            raise SpectraError("drops is (); expected a first drop at which the weighting starts")
        harmless = (None, (), schedules.proportions(self.epochs)[1])
        if self.schedule == "cosine" and not deferred and self.drops not in harmless:
            raise SpectraError(
                f"drops is {self.drops!r} under a cosine, where only the weighting deferred uses "
                "the first; expected none: nothing would change there, leave them out"
            )
        values = asdict(self) | {"drops": drops, "warmup": warmup}
        for field, (holds, expected) in rules.items():
            if not holds:
                raise SpectraError(f"{field} is {values[field]!r}; expected {expected}")
        defaults = {field.name: field.default for field in fields(self)}
        mine = {self.loss, self.step, self.weighting, self.imbalance}
        for field, readers in _READERS.items():
            if values[field] != defaults[field] and not readers & mine:
                usual = "none" if defaults[field] is None else repr(defaults[field])
                raise SpectraError(
                    f"{field} is {values[field]!r}, which only {', '.join(sorted(readers))} use; "
                    f"expected {usual} for {self.loss}, {self.step}, the weighting "
                    f"{self.weighting} and the imbalance {self.imbalance}: the run would be named "
                    "for what it does not do"
                )

    def lasting(self, epochs: int, **changes: Any) -> "Recipe":
        """Give the recipe over another number of epochs.

        What is named in epochs keeps its share, rounded to whole ones.

        Args:
            epochs: the new length. The radii begin at 1 + that share of the epochs before.
            changes: other fields, which come before those shares; without imbalance the ratio goes.
        """
        share = max(0, epochs) / self.epochs
        starts = {1 + round((e - 1) * share): radius for e, radius in self.rho_steps}
        shares: dict[str, Any] = {
            "warmup": None if self.warmup is None else round(self.warmup * share),
            "drops": None if self.drops is None else tuple(round(d * share) for d in self.drops),
            "rho_steps": tuple(starts.items()),
        }
        if changes.get("imbalance") == "none":
            shares["ratio"] = Recipe.ratio
        return replace(self, epochs=epochs, **{**shares, **changes})

    @property
    def data_spec(self) -> DataSpec:
        """Describe the training set."""
        if self.imbalance == "none":
            return DataSpec(self.dataset, image_size=self.image_size)
        return DataSpec(self.dataset, self.imbalance, self.ratio, image_size=self.image_size)

    @property
    def head(self) -> Head:
        """Name the head that the loss needs."""
        return "cosine" if self.loss == "ldam" else "linear"

    @property
    def scale(self) -> float:
        """Give s, which multiplies the logits of a cosine head."""
        return COSINE_SCALE if self.head == "cosine" else 1.0

    @property
    def lr_epochs(self) -> tuple[int, tuple[int, ...]]:
        """Give warm-up and drops in epochs, by proportion where they are not named."""
        warmup, drops = schedules.proportions(self.epochs)
        return (
            (warmup if self.schedule == "steps" else 0) if self.warmup is None else self.warmup,
            drops if self.drops is None else self.drops,
        )

    def lr_of(self, epoch: int) -> float:
        """Give the learning rate of an epoch."""
        warmup, drops = self.lr_epochs
        if self.schedule == "cosine":
            return schedules.cosine_rate(epoch, base=self.lr, warmup=warmup, epochs=self.epochs)
        return schedules.stepped_rate(epoch, base=self.lr, warmup=warmup, drops=drops)

    def rho_of(self, epoch: int) -> float:
        """Give the radius of an epoch: the head's, in sse-sam, which is 0 in its second stage."""
        if self.step == "sse-sam" and epoch > round(self.stage_two * self.epochs, 9):
            return 0.0
        return schedules.radius(
            epoch, start=self.rho, end=self.rho_end, steps=self.rho_steps, epochs=self.epochs
        )

    def noise_of(self, epoch: int) -> float:
        """Give the size of the noise of an epoch, in units of the weights' norms."""
        if self.step == "pgd":
            return self.noise * self.lr_of(epoch) / self.lr
        return schedules.noise(
            epoch, start=self.noise, growth=self.noise_growth, epochs=self.epochs
        )

    def loss_of(self, epoch: int, counts: tuple[int, ...]) -> LossSpec:
        """Describe the training loss of an epoch, its class weights included."""
        weighted = self.weighting == "effective" or (
            self.weighting == "deferred" and epoch > self.lr_epochs[1][0]
        )
        return LossSpec(
            self.loss,
            class_counts=counts,
            weights=effective_number_weights(counts, self.beta) if weighted else None,
            scale=self.scale,
            max_margin=self.max_margin,
            gamma=self.gamma,
            tau=self.tau,
        )

    def to_dict(self) -> dict[str, Any]:
        """Give what runs as plain values, the schedule's numbers included."""
        warmup, drops = self.lr_epochs
        return {
            **asdict(self),
            "warmup": warmup,
            "drops": list(drops),
            "rho_steps": [list(pair) for pair in self.rho_steps],
        }
