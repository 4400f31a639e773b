"""Hold what an analysis found, write it, and read it back without one Hessian-vector product.

Two files in one folder, a public format, schema 1. Unknown is null: never zero, never NaN.

``esd.json``, readable by anything: ``schema``, ``checkpoint`` (file, sha256, arch, epoch),
``data`` (name, split, draw_sha256, pixels_sha256, files_sha256, some_pixels_sha256, mean, std,
augmentation, counts; groups, e.g. {"head": [0, 1, 2], ...}),
``settings`` (every flag as resolved, file names without folders), ``device``, ``versions``,
``notes``, and ``spectra``: one object a class, in the order asked for, with the fields of
`ClassSpectrum` up to ``notes`` and the derived ``caveat`` (null, or "not the spectrum of a
matrix") under their own names. Losses and eigenvalues are of per-sample means; accuracies and
``share`` lie in 0..1. Further keys may come within schema 1, none goes or changes its meaning.

``esd.npz``, what figures are redrawn from and an interrupted run goes on from. Per label (L) and
probe p = 0, 1, ...:

    "L/dim"                       ()       number of parameters n
    "L/quadratic_forms"           (q,)     vᵀHv of further random unit v: n·vᵀHv estimates tr(H)
    "L/known_forms"               (q,)     what T of probe 0 knows of them, in whose place the trace
                                           has tr(T); empty where it knows nothing
    "L/probe p/alphas", ".../betas"        (m,) and (m-1,), the diagonals of Lanczos' T
    "L/probe p/residual_norm"     ()       ‖r‖ after the last step
    "L/probe p/exhausted"         ()       whether the Krylov space ended there
    "L/probe p/asymmetry"         ()       largest |q_iᵀHq_j| that T holds for zero
    "L/probe p/orthogonal"        ()       false without a basis: T may hold values repeatedly
    "L/probe p/nodes", ".../weights"       (m,) Ritz values ascending, and weights that sum to 1

and "schema", "checkpoint_sha256", by which a file beside the wrong ``esd.json`` is refused.
"""

from .analysis import Analysis as Analysis
from .reading import SCHEMA as SCHEMA
from .spectrum import CAVEAT as CAVEAT
from .spectrum import CERTIFICATE_KEYS as CERTIFICATE_KEYS
from .spectrum import DOCTOR_KEYS as DOCTOR_KEYS
from .spectrum import OPEN_MASS as OPEN_MASS
from .spectrum import ClassSpectrum as ClassSpectrum
