"""Write the methods paragraph for a paper's appendix, from what the result files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spectra.results import Analysis, ClassSpectrum
from spectra.writing import number

from .words import some

_MOST = 12  # parts or classes that a sentence lists one by one
_LOSS = {
    "ce": "the cross-entropy, without class weights",
    "trained": "the loss that the checkpoint was trained with",
}
_KERNEL = {
    "default": "smoothed by Gaussians whose width follows the eigenvalue",
    "paper": "smoothed by Gaussians of one width, as in the released analysis",
}
_KEEPING = ("kept-graph", "linearized", "compiled")  # products that cut their own batches
_REFERENCES = {
    "Lanczos quadrature": "https://doi.org/10.1137/16M1104974",
    "bounds from a random start": "https://doi.org/10.1137/0613066",
}
_RELEASED = {"the released protocol": "https://arxiv.org/abs/2212.13827"}


def methods(analyses: Sequence[Analysis], recipe: Mapping[str, Any] | None = None) -> str:
    """Write the paragraph for a paper's appendix; what several analyses differ in is listed.

    Args:
        analyses: of one run or checkpoint, at least one.
        recipe: how the network was trained, where that is known.
    """
    spectra = [s for analysis in analyses for s in analysis.spectra if s.error is None]
    # Where there is no spectrum, nothing is said of how one was computed.
    computed = (_examined, _krylov, _products, _certificates) if spectra else ()
    parts = (_subject, _samples, *computed, _missing, _software)
    text = " ".join(sentence for part in parts if (sentence := part(analyses, spectra)))
    if recipe:
        fields = (f"{key} {value}" for key, value in recipe.items() if key != "name")
        text += f" The network was trained by the recipe {recipe.get('name')}: {', '.join(fields)}."
    return text


def _subject(analyses: Sequence[Analysis], spectra: Sequence[ClassSpectrum]) -> str:
    epochs, (first, *_) = distinct(analyses, "checkpoint", "epoch"), analyses
    arch = some(distinct(analyses, "checkpoint", "arch")) or "unknown"
    dims = dict.fromkeys(s.measure.dim for s in spectra if s.measure is not None)
    size = f" with {some(f'{n:,}' for n in dims)} parameters" if dims else ""
    when = f" at epoch{'s' * (len(epochs) > 1)} {some(epochs)}" if epochs else ""
    kinds = list(map(str, distinct(analyses, "settings", "loss")))
    losses = [_LOSS.get(kind, kind) for kind in kinds] or ["an unrecorded loss"]
    if "ce" in kinds and (first.settings.get("network") or {}).get("head") == "cosine":
        losses[kinds.index("ce")] += ", of the scaled cosines"
    loss = first.settings.get("loss_function") or {}
    if kinds == ["trained"] and loss.get("name"):
        losses = [f"{losses[0]} ({loss['name']})"]
    which = f"{first.checkpoint.get('file')}, SHA-256 {_short(first.checkpoint.get('sha256'))}"
    if len(analyses) > 1:
        which = f"{len(analyses)} checkpoints"
    text = (
        f"We analyse a network of architecture {arch}{size}{when} ({which}). For a set of N_c "
        f"samples, H_c = (1/N_c) Σ ∇²ℓᵢ(θ) is the Hessian of {some(losses)}, with the network "
        "in evaluation mode."
    )
    weighted = not loss or loss.get("weights") is not None  # older files do not tell
    if "trained" in kinds and weighted and any(s.label == "overall" for s in spectra):
        text += (
            " Over all samples together H = Σ wᵢ∇²ℓᵢ(θ) / Σ wᵢ, where wᵢ are the class weights of "
            "that loss."
        )
    return text


def _samples(analyses: Sequence[Analysis], spectra: Sequence[ClassSpectrum]) -> str:
    data, settings = analyses[0].data, analyses[0].settings
    spec: Mapping[str, Any] = data.get("spec") or {}
    split = {"train": "training"}.get(str(data.get("split")), data.get("split"))
    text = f"Samples are of the {split} split of {data.get('name')}"
    if spec.get("imbalance"):
        ratio = f", imbalance ratio {spec['ratio']:g}" if spec.get("ratio") else ""
        decay = {"exp": "exponential"}.get(spec["imbalance"], spec["imbalance"])
        text += f", of which the training set is drawn long-tailed ({decay}{ratio}"
        text += f", seed {spec.get('seed')})"
    if spec.get("image_size"):
        text += f", images of {spec['image_size']} pixels"
    counts = data.get("counts") or []
    if counts:
        listed = ", ".join(map(str, counts))
        many = f"{max(counts)} to {min(counts)} samples in {len(counts)} classes"
        text += f"; {f'class counts {listed}' if len(counts) <= _MOST else many}, "
        text += f"{sum(counts)} in all"
    pixels = f"pixels {_short(data.get('pixels_sha256'))}"
    if data.get("pixels_sha256") is None and data.get("files_sha256"):
        pixels = f"image files {_short(data['files_sha256'])}"
    text += f" (draw {_short(data.get('draw_sha256'))}, {pixels})."
    if data.get("mean") and data.get("std"):
        mean, std = (", ".join(f"{v:g}" for v in data[key]) for key in ("mean", "std"))
        text += f" Inputs, bytes scaled to 0..1, are normalised by the mean {mean} and the "
        text += f"standard deviation {std}."
    used = dict.fromkeys(f"{s.label} ({_named(s)}{s.count} samples)" for s in spectra)
    if used:
        sizes = [s.count for s in spectra]
        many = f"{len(used)} sets of {max(sizes)} to {min(sizes)} samples"
        text += f" Spectra are of {some(used) if len(used) <= _MOST else many}"
        if settings.get("max_samples") is not None:
            text += f", a fixed random subset of at most {settings['max_samples']} of each"
        text += "."
    if settings.get("parameters") is not None:
        text += f" Rows and columns are those of the parameters {settings['parameters']} alone."
    return f"{text} {_augmentation(str(settings.get('augment')))}"


def _named(s: ClassSpectrum) -> str:
    return "" if s.name in ("", s.label, s.label.removeprefix("class ")) else f"{s.name}, "


def _augmentation(augment: str) -> str:
    kind, _, copies = augment.partition(":")
    return {
        "none": "No augmentation is applied.",
        "frozen": f"{copies or 1} augmentation draw(s) of each sample are stored once and used in "
        "every product.",
        "resample": "The augmentation is drawn again in every product.",
    }.get(kind, "")


def _examined(analyses: Sequence[Analysis], spectra: Sequence[ClassSpectrum]) -> str:
    held = [s.doctor for s in spectra if s.doctor.get("fixed_operator") is not None]
    if not held:
        return ""
    fixed = sum(bool(doctor["fixed_operator"]) for doctor in held)
    worst = max(doctor.get("repeatability") or 0.0 for doctor in held)
    return (
        f"Before the first step each operator was applied repeatedly: {fixed} of {len(held)} are "
        f"fixed symmetric matrices to rounding (largest relative difference of a repeated product "
        f"{number(worst, 2)})."
    )


def _krylov(analyses: Sequence[Analysis], spectra: Sequence[ClassSpectrum]) -> str:
    settings = analyses[0].settings
    probes, runs = settings.get("probes"), [run for s in spectra for run in s.runs]
    made = [run.steps for run in runs] or [s.steps for s in spectra if s.steps]
    start = f"{probes} random start vector{'s' * (probes != 1)} (seed {settings.get('seed')}"
    if settings.get("protocol") == "released":
        text = (
            f"Ritz values come from the released recurrence, {settings.get('steps')} steps from "
            f"{start}, entries ±1; one pass of Gram–Schmidt, off-diagonals taken before it)."
        )
    else:
        passes = (
            "no basis kept" if settings.get("basis") == "none" else "two passes of Gram–Schmidt"
        )
        text = f"Lanczos makes {settings.get('steps')} steps from {start}, uniform on the sphere"
        text += f"; {passes}; T in float64)."
    if (goal := settings.get("until_converged")) is not None:
        text += (
            f" It ends earlier once the residuals of both ends are below {goal:g} of the larger "
            "modulus."
        )
    if made and (min(made), max(made)) != (settings.get("steps"),) * 2:
        span = f"{min(made)} to {max(made)}" if min(made) < max(made) else f"{max(made)}"
        text += f" It made {span} steps from each"
        text += (
            ", to the end of the Krylov space." if runs and all(r.exhausted for r in runs) else "."
        )
    if kernel := _KERNEL.get(str(settings.get("kernel"))):
        banded = any(s.measure is not None and len(s.measure.nodes) >= 3 for s in spectra)
        text += f" Densities are {kernel}"
        text += "; bands are one standard error over the start vectors." if banded else "."
    traced = [s for s in spectra if s.trace is not None]
    forms = some(sorted({len(s.quadratic_forms) for s in traced}))
    if traced and all(s.known_forms for s in traced):
        text += (
            f" Traces are those of T plus what {forms} quadratic forms of further random vectors "
            "leave over it (cf. Hutch++, Meyer et al. 2021)."
        )
    elif traced:
        text += f" Traces also use {forms} quadratic forms of further random vectors."
    return text


def _products(analyses: Sequence[Analysis], spectra: Sequence[ClassSpectrum]) -> str:
    ways = distinct(analyses, "settings", "product")
    dtype = some(dict.fromkeys(map(_precision, analyses)))
    batch = some(distinct(analyses, "settings", "batch_size"))
    text = f"Hessian-vector products are computed in {dtype} by {some(ways)}, "
    kept = "passes in which nothing is kept have " * any(way in _KEEPING for way in ways)
    text += f"{kept or 'in '}batches of at most {batch} samples."
    shared = [n for n in distinct(analyses, "settings", "processes") if n > 1]
    if shared:
        text += f" The samples are shared out among {some(shared)} processes, whose sums are added"
        moves = "resample" in distinct(analyses, "settings", "augment")
        text += ", each with augmentation draws of its own." if moves else "."
    return text


def _precision(analysis: Analysis) -> str:
    """Name the precision; TF32 is one of float32 products on a GPU, whatever was allowed."""
    settings = analysis.settings
    dtype, on = settings.get("dtype"), settings.get("tf32") and settings.get("device") == "cuda"
    return f"{dtype} (TF32 {'on' if on and dtype == 'float32' else 'off'})"


def _certificates(analyses: Sequence[Analysis], spectra: Sequence[ClassSpectrum]) -> str:
    held = [s for s in spectra if s.certificate.get("rayleigh_quotient") is not None]
    if not held:
        return ""
    fixed = some(dict.fromkeys(str(s.certificate.get("operator")) for s in held))
    dtype = some(dict.fromkeys(str(s.certificate.get("dtype")) for s in held))
    floor = max(s.certificate.get("noise_floor") or 0.0 for s in held)
    proven = sum(s.proven for s in held)
    text = (
        f"For the Ritz vector y of each λmin, θ = yᵀHy was recomputed in {dtype} over other "
        f"batches, on the fixed operator (augmentation {fixed}), and Hy once more by another way "
        "of differentiating. θ ≥ λmin for every y; negative curvature is called proven where θ "
        "plus the noise floor, what both passes disagree by plus an estimate of the rounding (at "
        f"most {number(floor, 2)} here), is below zero: {proven} of {len(held)} spectra."
    )
    if any(s.certificate.get("lower_bound_95") is not None for s in held):
        text += (
            " Each lower bound of λmin holds by itself with 95 % probability over the random "
            "start, for the operator in the precision of the products."
        )
    return text


def _missing(analyses: Sequence[Analysis], spectra: Sequence[ClassSpectrum]) -> str:
    """Say which spectra failed, and which are not finished."""
    failed, begun = [], []
    for analysis in analyses:
        when = f" at epoch {analysis.checkpoint.get('epoch')}" * (len(analyses) > 1)
        for s in analysis.spectra:
            if s.error is not None:
                failed.append(s.label + when)
            elif not s.complete:
                of = f"{s.probes} of {analysis.settings.get('probes')} start vectors"
                begun.append(f"{s.label}{when} ({of})")
    text = []
    if failed:
        text.append(f"The analysis failed for {some(failed)}.")
    if begun:
        text.append(f"Not finished, with neither certificate nor convergence test: {some(begun)}.")
    return " ".join(text)


def _software(analyses: Sequence[Analysis], spectra: Sequence[ClassSpectrum]) -> str:
    versions = dict.fromkeys(
        ", ".join(f"{name} {value}" for name, value in a.versions.items()) for a in analyses
    )
    devices = dict.fromkeys(a.device for a in analyses)
    return f"Software: {'; '.join(versions)}; device: {some(devices)}."


def references(analyses: Sequence[Analysis]) -> str:
    links = dict(_REFERENCES)
    if "released" in distinct(analyses, "settings", "protocol"):
        links |= _RELEASED
    return "References: " + ", ".join(f"{what} <{link}>" for what, link in links.items()) + "."


def distinct(analyses: Sequence[Analysis], section: str, key: str) -> list[Any]:
    """List the different values that analyses have, unknown ones left out."""
    found: list[Any] = []
    for analysis in analyses:
        value = getattr(analysis, section).get(key)
        if value is not None and value not in found:
            found.append(value)
    return found


def _short(fingerprint: object) -> str:
    return "unknown" if fingerprint is None else f"{str(fingerprint)[:12]}…"
