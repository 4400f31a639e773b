"""A recipe: everything that decides the weights of a run, but the data's folder and the device."""

from dataclasses import asdict, dataclass
from typing import Any

from ..checkpoint import COSINE_SCALE
from ..data.spec import DataSpec
from ..errors import SpectraError
from ..losses import LOSSES, LossSpec, effective_number_weights
from ..models import Head
from . import schedules
from .steps import STEPS

WEIGHTINGS = ("none", "effective", "deferred", "resample")
PRECISIONS = ("float32", "tf32", "bf16", "float64")


@dataclass(frozen=True)
class Recipe:
    """Hold the fields of a run; each is a flag of the command line.

    Raises:
        SpectraError: for a value that no run can have.
    """

    name: str
    dataset: str  # as DataSpec names it
    arch: str  # as ModelSpec names it
    imbalance: str = "exp"  # exp, step or none
    ratio: float = 100.0  # largest over smallest class count; unused where the imbalance is none
    image_size: int | None = None  # pixels that image files are cut to
    loss: str = "ce"  # ce, ldam (with its cosine head, s = 30), vs, logit-adjustment, focal
    max_margin: float = 0.5  # of ldam, in units of cosine
    gamma: float | None = None  # of vs (0.3 without it) and focal (2 without it)
    tau: float = 1.0  # of vs and logit-adjustment
    weighting: str = "none"  # by effective numbers: effective, or deferred to the first drop (DRW);
    # or resample: classes drawn evenly, with replacement
    beta: float = 0.9999  # β of the effective numbers
    step: str = "sgd"  # sgd, sam, pgd, lpf-sgd, imbsam, sse-sam
    rho: float = 0.0  # radius of sam, imbsam and of the head's climb in sse-sam
    rho_end: float | None = None  # radius of the last epoch, approached linearly
    rho_steps: tuple[tuple[int, float], ...] = ()  # or (from epoch, radius), ascending
    adaptive: bool = False  # sam in units of the weights (ASAM)
    bn_both_passes: bool = False  # batch-norm statistics move at w + e, too, as in released code
    rare_below: int = 0  # imbsam and sse-sam: classes with fewer training samples are the tail
    rho_tail: float = 0.0  # sse-sam: radius of the tail's climb
    stage_two: float = 0.7  # sse-sam: share of the epochs after which the head no longer climbs
    noise: float = 0.0  # pgd: radius over ‖w‖; lpf-sgd: deviation over each filter's norm
    noise_growth: float = 0.0  # lpf-sgd: α, the noise grows by 1 + α over the run, along a cosine
    noise_parts: int = 1  # lpf-sgd: M, parts of a batch with a draw each
    noise_interval: int = 1  # pgd: steps between two perturbations at least
    noise_threshold: float | None = None  # pgd: perturb only up to this gradient norm; None: any
    epochs: int = 200
    schedule: str = "steps"  # of the learning rate: steps or cosine
    warmup: int | None = None  # epochs; None: 5/200 of the run for steps, 0 for cosine
    drops: tuple[int, ...] | None = None  # last epochs before lr/100; None: 160/200 and 180/200.
    # The deferred weighting starts after the first, under a cosine as well.
    batch_size: int = 128  # a last partial batch is kept
    lr: float = 0.1
    momentum: float = 0.9  # not Nesterov's
    weight_decay: float = 2e-4  # on every parameter
    augment: bool = True  # draw the data set's augmentation anew for each batch
    flip_test: bool = False  # score the mean logits of each test image and its mirror image
    precision: str = "float32"  # tf32, bf16 (autocast, the weights stay float32), float64
    seed: int = 0  # of the initial weights, the order of the samples and the augmentation

    def __post_init__(self) -> None:
        (warmup, drops), e = self.lr_epochs, [epoch for epoch, _ in self.rho_steps]
        radii = [self.rho, self.rho_tail, self.rho_end or 0.0, *(r for _, r in self.rho_steps)]
        rare = self.step not in ("imbsam", "sse-sam") or self.rare_below > 0
        rules = {
            "step": (self.step in STEPS, f"one of {', '.join(STEPS)}"),
            "loss": (self.loss in LOSSES, f"one of {', '.join(LOSSES)}"),
            "weighting": (self.weighting in WEIGHTINGS, f"one of {', '.join(WEIGHTINGS)}"),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            "schedule": (self.schedule in ("steps", "cosine"), "steps or cosine"),
            "rho": (min(radii) >= 0, "radii of at least 0 (rho, rho_tail, rho_end, rho_steps)"),
            "rho_end": (self.rho_end is None or not e, "rho_end or rho_steps, not both"),
            "rho_steps": (e == sorted(set(e)), "pairs of epoch and radius, epochs ascending"),
            "rare_below": (rare, f"a class size below which {self.step} takes a class for rare"),
            "stage_two": (0 <= self.stage_two <= 1, "a share of the epochs, 0 to 1"),
            "noise": (self.noise >= 0, "at least 0"),
            "noise_growth": (self.noise_growth >= 0, "at least 0"),
            "noise_parts": (1 <= self.noise_parts <= self.batch_size, "1 to the batch size"),
            "noise_interval": (self.noise_interval >= 1, "at least 1 step"),
            "lr": (self.lr > 0, "a positive learning rate"),
            "momentum": (0 <= self.momentum < 1, "0 to 1, without 1"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "warmup": (warmup >= 0, "at least 0 epochs"),
            "drops": (list(drops) == sorted(drops), "ascending epochs"),
            "seed": (self.seed >= 0, "at least 0"),
        }
        for field, (holds, expected) in rules.items():
            if not holds:
                raise SpectraError(f"{field} is {getattr(self, field)!r}; expected {expected}")
        if self.weighting == "deferred" and not drops:
            raise SpectraError("drops is (); expected a first drop at which the weighting starts")

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
        if self.step == "sse-sam" and epoch > self.stage_two * self.epochs:
            return 0.0
        return schedules.radius(
            epoch, start=self.rho, end=self.rho_end, steps=self.rho_steps, epochs=self.epochs
        )

    def noise_of(self, epoch: int) -> float:
        """Give the size of the noise of an epoch, in units of the weights' norms."""
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
