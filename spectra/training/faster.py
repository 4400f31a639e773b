"""The faster ways of an update, each compared with the plain one before it is used.

From the same weights and batch a way must move weights, momenta, batch-norm statistics and what pgd
remembers as the plain one does, up to rounding. A compiled one that differs by more is still taken
if it is at most twice as far from the update in float64 as the plain one is, and equals it there
(see `nearness`); where rounding would hide too much after a long climb, a shorter one decides, too.
That is no idle fear: imbsam and sse-sam take two gradients of one pass, a compiled backward frees
its buffers in the first, and told to keep them (torch 2.13) it took a cached program that does not:
12 % of the update was wrong, silently. They run plain or as a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..devices import Named, compiled, give_back_memory, recorded
from ..errors import SpectraError, first_line
from .nearness import COMPILED, REPLAYED, ROUGH, as_near, gaps

if TYPE_CHECKING:
    from .engine import Engine

Step = Callable[[Named], Tensor]
State = list[list[Tensor]]  # all that an update moves, kind by kind, and what it returns


@dataclass(frozen=True)
class Fast:
    """A faster update that was found to be sound."""

    step: Step
    rounding: tuple[float, float] | None  # its distance from float64's, and the plain one's, if so


class Unlike(SpectraError):
    """A faster update that is not as good as the plain one."""


def faster(engine: Engine, batch: Named) -> Fast:
    """Make the update of an engine's way for batches of one size; nothing of the engine moves.

    Args:
        engine: whose way is not the plain one.
        batch: of that size.

    Returns:
        The update, found sound on this batch.

    Raises:
        Unlike: if it does not do what the plain one does.
        Exception: whatever compilers and recordings raise.
    """
    compiles, records = engine.way.startswith("compiled"), engine.way.endswith("graph")
    step: Step = engine.step
    before = _held(engine)
    try:
        trial = _Trial(engine, batch, before)
        found, rounding = trial.expected, None
        with _many_programs() if compiles else nullcontext():
            if compiles:
                step = partial(engine.step, network=compiled(engine.network))
                found = trial.outcome(step)
                rounding = trial.compare(found, step)
            if records:
                # Recorded on another batch, so that one that is not read would show.
                step = recorded(step, {k: torch.zeros_like(v) for k, v in batch.items()})
                gap = max(gaps(trial.outcome(step), found, trial.start))
                if not gap <= REPLAYED[engine.recipe.precision]:
                    launched = "compiled" if compiles else "plain"
                    raise Unlike(f"its recording is {gap:.1e} from the {launched} one")
    finally:
        engine.restore(before)
        if engine.device.type == "cpu":
            give_back_memory()  # float64 takes twice of what a run needs
    return Fast(step, rounding)


class _Trial:
    """Updates of one batch from where an engine stood."""

    def __init__(self, engine: Engine, batch: Named, before: State) -> None:
        self.engine, self.batch, self.before = engine, batch, before
        self.expected = self.outcome(engine.step)
        self.start = [*self.before, [torch.zeros_like(self.expected[-1][0])]]

    def outcome(self, step: Step) -> State:
        """Take a step; give the state after it, and what the step returned."""
        self.engine.restore(self.before)
        result = step(self.batch).clone()
        return [*_held(self.engine), [result]]

    def compare(self, found: State, step: Step) -> tuple[float, float] | None:
        """Compare a compiled outcome with the plain one, and if they differ both with float64's.

        Args:
            found: where `step` ended.
            step: the compiled one.

        Returns:
            The distances of the two from the plain one in float64, where they were measured.

        Raises:
            Unlike: if it is not as good, or rounding leaves that open after a shorter climb, too.
        """
        rounding = self.rounding(found)
        if rounding is not None and rounding[1] > ROUGH:
            with _shorter_climb(self.engine):
                nearer = _Trial(self.engine, self.batch, self.before)
                left = nearer.rounding(nearer.outcome(step))
            if left is not None and left[1] > ROUGH:
                raise Unlike(f"rounding takes the plain one {left[1]:.1e} from float64's")
        return rounding

    def rounding(self, found: State) -> tuple[float, float] | None:
        """Give those distances for an outcome at the radius that the engine has now."""
        precision = self.engine.recipe.precision
        gap = max(gaps(found, self.expected, self.start))
        if gap <= COMPILED[precision]:
            return None
        why = f"its update is {gap:.1e} from the plain one"
        if precision == "float64":
            raise Unlike(why)
        try:
            exact, seen = self._in_float64()
        except Exception as error:  # no network has to run in float64
            raise Unlike(f"{why}, and in float64 neither can be had: {line_of(error)}") from error
        rounded = [
            [value.to(old.dtype) for value, old in zip(*kinds, strict=True)]
            for kinds in zip(exact, self.start, strict=True)
        ]
        mine, own = (gaps(outcome, rounded, self.start) for outcome in (found, self.expected))
        if not as_near(seen, mine, own, precision=precision):
            raise Unlike(
                f"{why}: {max(mine):.1e} from float64's, the plain one {max(own):.1e}, and the two "
                f"are {max(seen):.1e} apart in float64"
            )
        return max(mine), max(own)

    def _in_float64(self) -> tuple[State, list[float]]:
        """Give the plain outcome in float64, and the distances of the compiled one from it."""
        self.engine.restore(self.before)
        double = self.engine.in_float64()
        batch = {k: v.double() if v.is_floating_point() else v for k, v in self.batch.items()}
        twin = _Trial(double, batch, _held(double))
        found = twin.outcome(partial(double.step, network=compiled(double.network)))
        return twin.expected, gaps(found, twin.expected, twin.start)


@contextmanager
def _shorter_climb(engine: Engine) -> Iterator[None]:
    """Set a hundredth of the radius, for the same programs at a place where less is rounded."""
    radius = float(engine.radius)
    engine.radius.fill_(0.01 * radius)
    try:
        yield
    finally:
        engine.radius.fill_(radius)


def line_of(error: Exception) -> str:
    """Say in one line what was raised."""
    first = first_line(error)
    return first if isinstance(error, Unlike) else f"{type(error).__name__}: {first}"


def _many_programs() -> AbstractContextManager[object]:
    """Let dynamo hold a program for every batch size, precision and gradient, or fail aloud."""
    import torch._dynamo.config  # takes a second

    limits = {"recompile_limit": 256, "fail_on_recompile_limit_hit": True}
    return torch._dynamo.config.patch(limits)  # type: ignore[no-any-return]


def _held(engine: Engine) -> State:
    """Copy the state of an engine, kind by kind."""
    return [[value.detach().clone() for value in kind] for kind in engine.state()]
