"""What a landscape holds, in words and in a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from spectra.landscape.statistics import Amplification, Interval
from spectra.landscape.stored import Landscape, rows_of
from spectra.writing import Table, number, with_error

_WITHIN = 0.05  # of |vᵀHv|: what agreement is, and what an error may be for it to count


def told(found: Landscape) -> list[str]:
    """Say how far lines bend as the Hessian says, and how many batches bear what SAM's step did."""
    measured = found.amplification
    return bends(found) + ([] if measured is None else _borne(measured, found.directions))


def bends(found: Landscape) -> list[str]:
    """Say of each slice how far the line bends as the Hessian says."""
    lines = []
    for view in found.views:
        lines.append(f"{view.label} {view.name}: {view.count} samples, loss {view.loss:.3g}")
        for end, certificate, cut in (
            ("λmin", view.low, view.along_low),
            ("λmax", view.high, view.along_high),
        ):
            theta = with_error(certificate.rayleigh_quotient, certificate.noise_floor)
            line = f"  {end}: yᵀHy = {theta}, residual {certificate.residual:.1e}"
            for name, seen in (
                ("second differences", cut.second_difference),
                ("slopes", cut.slope_difference),
            ):
                if seen is not None:
                    reach = seen.agreement(tolerance=_WITHIN, resolution=_WITHIN)
                    span = "nowhere" if reach is None else f"{reach[0]:.1e} to {reach[1]:.1e}"
                    line += f"; {name} agree to {100 * _WITHIN:g} %: {span}"
            lines.append(line)
    return lines


def _borne(measured: Amplification, directions: Sequence[str]) -> list[str]:
    """Say how many batches bear each direction, and how far second order reaches."""
    count = measured.components.shape[1]
    medians = zip(measured.radii, measured.taylor_medians, strict=True)
    known = [(rho, median) for rho, median in medians if rho and np.isfinite(median)]
    middles = ", ".join(f"{median:.2g} at ρ = {rho:g}" for rho, median in known)
    lines = [
        f"SAM's step: {count} batches of {measured.batch_size}",
        f"  Taylor residual, median: {middles or 'none'}; near 1 or above, second order says "
        "nothing",
    ]
    named, controls = rows_of(directions)
    borne = measured.effective_batches
    for k in named:
        lines.append(f"  {directions[k]}: {borne[k]:.1f} effective batches of {count}")
    if controls:
        span = f"{min(borne[controls]):.1f} to {max(borne[controls]):.1f}"
        lines.append(f"  {len(controls)} random directions: {span} effective batches of {count}")
    return lines


def amplified(found: Landscape) -> Table:
    """Set what SAM's step does to the gradient along each direction, a column for each radius.

    S is Σab/Σa² and R is Σb²/Σa² (`statistics`), with their intervals where enough batches bear
    them; "expected" is S by (1 + ρλ/‖g‖), and by each batch's own vᵀH_B g.
    """
    measured = found.amplification
    if measured is None:
        return Table(("direction", ""), ())
    columns = [i for i, rho in enumerate(measured.radii) if rho]  # at 0 all is 1
    steps = measured.radii / np.median(measured.gradient_norms)
    expected = measured.predictions
    named, controls = rows_of(found.directions)
    rows: list[tuple[str, ...]] = []
    for k in named:
        value, borne = float(measured.eigenvalues[k]), measured.effective_batches[k]
        rows += [
            (
                f"{found.directions[k]}, λ = {number(value)}: {borne:.1f} effective batches",
                *("ρλ/‖g‖", *_cells((steps * value)[columns])),
            ),
            ("", "S", *_spans(measured.slope, k, columns)),
            ("", "S expected, ρ/‖g‖", *_cells(expected.slope_normalised[k, columns])),
            ("", "S expected, vᵀH_B g", *_cells(expected.slope_second_order[k, columns])),
            ("", "R", *_spans(measured.squared, k, columns)),
            ("", "sign kept", *_spans(measured.sign_agreement, k, columns)),
        ]
    if controls:
        for name, held in (("S", measured.slope), ("R", measured.squared)):
            values = held.value[np.ix_(controls, columns)]
            ends = zip(_cells(values.min(0)), _cells(values.max(0)), strict=True)
            rows.append(("", name, *(" to ".join(pair) for pair in ends)))
        rows[-2] = (f"{len(controls)} random directions", *rows[-2][1:])
    rows.append(("Taylor residual", "median", *_cells(measured.taylor_medians[columns])))
    header = ("direction", "", *(f"ρ = {measured.radii[i]:g}" for i in columns))
    return Table(header, tuple(rows), (0, 1))


def _cells(values: Float64[np.ndarray, " r"]) -> list[str]:
    return [number(float(value)) for value in values]


def _spans(interval: Interval, k: int, columns: Sequence[int]) -> list[str]:
    """Write values with their intervals, where there are any."""
    held = (interval.value, interval.low, interval.high)
    texts = (_cells(values[k, columns]) for values in held)
    return [v if a == "nan" else f"{v} ({a} to {b})" for v, a, b in zip(*texts, strict=True)]
