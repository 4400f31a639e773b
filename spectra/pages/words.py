"""Say in words what the doctor found on an operator, and what its certificate proves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from spectra.results import ClassSpectrum
from spectra.trajectories import RunTrajectory
from spectra.writing import at_least, at_most, number

# What markdown takes for more than a letter; an underscore between letters is one.
_MARKUP = re.compile(r"[\\`*\[\]<>&|~$]|(?<![^\W_])_|_(?![^\W_])|^[-+=#]")


def escaped(text: object) -> str:
    """Write a text on one line so that markdown shows it letter by letter, whatever it holds."""
    line = _MARKUP.sub(r"\\\g<0>", " ".join(str(text).split()))
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)  # no item of a numbered list


def unescaped(text: str) -> str:
    """Take the backslashes away that `escaped` has put in."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


def findings(spectrum: ClassSpectrum) -> str:
    """Say in words what the doctor found on one operator, and what its certificate proves."""
    s = spectrum
    if s.error is not None:
        return f"No numbers: {s.error.strip().rstrip('.')}."
    if s.doctor.get("fixed_operator") is None:
        return "The doctor has not reported: this spectrum is not finished."
    return " ".join([_operator(s), _ends(s), _proof(s)]).strip()


def over_epochs(run: RunTrajectory, label: str) -> str:
    """Say the same of one operator over the epochs of a run, and where it has no numbers."""
    points = [
        (epoch, s) for epoch, s in run.of(label) if s.doctor.get("fixed_operator") is not None
    ]
    if not points:
        return "There are no numbers at any epoch."
    reported = {epoch for epoch, _ in points}
    missing = [epoch for epoch, _ in run.of(label) if epoch not in reported]
    moved = [epoch for epoch, s in points if not s.doctor["fixed_operator"]]
    proven = [epoch for epoch, s in points if s.proven]
    open_ends = [epoch for epoch, s in points if not s.converged]
    every = f"all {len(points)} epochs{' that have numbers' * bool(missing)}"
    if len(points) == 1:
        every = f"epoch {points[0][0]}"
    if moved:
        what, worst = max((_defect(s) for _, s in points), key=lambda defect: defect[1])
        lines = [
            f"The operator was no fixed matrix at {_at(moved, points, every)}; {what} differed by "
            f"up to {_percent(worst)} of its norm."
        ]
    else:
        worst = max(s.doctor.get("repeatability") or 0.0 for _, s in points)
        same = f"within {number(worst, 2)} of its norm" if worst else "to the last bit"
        lines = [
            f"The operator was one fixed symmetric matrix at {every}: repeated products agreed "
            f"{same}."
        ]
    lines.append(
        f"Negative curvature of the fixed operator is proven at {_at(proven, points, every)}."
        if proven
        else "Negative curvature of the fixed operator is proven at no epoch."
    )
    if open_ends:
        lines.append(f"The ends had not converged at {_at(open_ends, points, every)}.")
    if missing:
        lines.append(f"There are no numbers at epoch{'s' * (len(missing) > 1)} {some(missing)}.")
    return " ".join(lines)


def _at(epochs: Sequence[int], points: Sequence[Any], every: str) -> str:
    if len(epochs) == len(points):
        return every
    return f"epoch{'s' * (len(epochs) > 1)} {some(epochs)}"


def _defect(s: ClassSpectrum) -> tuple[str, float]:
    """Say what keeps an operator from being one matrix, relative to the norm of a product."""
    names = {
        "a product repeated with the same vector": "repeatability",
        "uᵀ(Hv) from vᵀ(Hu)": "asymmetry",
        "H(v + 2u) from its parts": "nonlinearity",
    }
    found = [(what, s.doctor.get(name) or 0.0) for what, name in names.items()]
    least = max(share for _, share in found) / 100  # the first that tells: others follow from it
    return next(defect for defect in found if defect[1] >= least)


def _operator(s: ClassSpectrum) -> str:
    d = s.doctor
    if not d["fixed_operator"]:
        because = f", because {d['culprit']}" if d.get("culprit") else ""
        what, share = _defect(s)
        return (
            f"The operator is no fixed matrix: {what} differs by {_percent(share)} of its norm"
            f"{because}."
        )
    defects = {
        "a repeated product": d.get("repeatability"),
        "vᵀ(Hu) against uᵀ(Hv)": d.get("asymmetry"),
        "H(v + 2u) against its parts": d.get("nonlinearity"),
        "the same product over other batches": d.get("rounding"),
    }
    told = ", ".join(f"{what} {number(x, 2)}" for what, x in defects.items() if x is not None)
    return (
        f"The operator is one fixed symmetric matrix to rounding (relative differences: {told}); "
        f"its noise floor is {number(d.get('noise_floor'), 2)}."
    )


def _ends(s: ClassSpectrum) -> str:
    if s.lambda_min is None or s.lambda_max is None:
        return ""
    residuals = f"{number(s.residual_min, 2)} for λmin and {number(s.residual_max, 2)} for λmax"
    if s.converged:
        return f"Both ends have converged: the residuals are {residuals}."
    return f"The ends have not converged: the residuals are {residuals}."


def _proof(s: ClassSpectrum) -> str:
    c = s.certificate
    theta, floor = c.get("rayleigh_quotient"), c.get("noise_floor")
    if theta is None:
        return "There is no certificate."
    # The bounds of a converged λmin differ in the fourth digit or later.
    sign, digits = "+" if theta > 0 else "", 6 if s.proven and s.caveat is None else 3
    told = f"yᵀHy = {sign}{number(theta, digits)}, with a noise floor of {number(floor, 2)}, in "
    told += str(c.get("dtype"))
    if s.caveat is not None:
        verdict = "is proven" if s.proven else "is not proven"
        return (
            f"Along the vector y that this analysis calls most negative (λmin = "
            f"{number(s.lambda_min)}), the fixed Hessian has {told}: negative curvature {verdict} "
            "by it."
        )
    if not s.proven:
        return f"Negative curvature is not proven: {told}."
    bound = c.get("lower_bound_95")
    above = "" if bound is None else f"; with 95 % probability λmin > {at_most(bound, digits)}"
    least = at_least(theta + (floor or 0.0), digits)
    return f"Negative curvature is proven: λmin ≤ {least} ({told}){above}."


def some(values: Iterable[object]) -> str:
    listed = list(map(str, values))
    return " and ".join([", ".join(listed[:-1])] * (len(listed) > 1) + listed[-1:])


def _percent(share: float | None) -> str:
    if share is None:
        return "an unknown part"
    return f"{number(100 * share, 2)} %"
