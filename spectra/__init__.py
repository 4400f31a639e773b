"""Class-wise Hessian spectra of classifiers, each number with its error.

What is named here is imported when it is first asked for, and so are the modules of the package:
`python -m spectra.esd --help` need not wait for torch, nor an analysis for matplotlib and pandas,
which belong to `spectra.figures` and `spectra.tables`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.5.1"

if TYPE_CHECKING:
    from .analysis import analyze as analyze
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import load_checkpoint as load_checkpoint
    from .checkpoint import save_checkpoint as save_checkpoint
    from .data import DataSpec as DataSpec
    from .data import Samples as Samples
    from .data import open_data as open_data
    from .doctor import Certificate as Certificate
    from .doctor import certify as certify
    from .doctor import examine as examine
    from .errors import SpectraError as SpectraError
    from .hessian import HessianOperator as HessianOperator
    from .hessian import class_operators as class_operators
    from .hessian import hessian_operator as hessian_operator
    from .krylov import Extremes as Extremes
    from .krylov import SpectralMeasure as SpectralMeasure
    from .krylov import SymmetricOperator as SymmetricOperator
    from .krylov import Tridiagonal as Tridiagonal
    from .krylov import extreme_eigenvalues as extreme_eigenvalues
    from .krylov import extremes_of as extremes_of
    from .krylov import lanczos as lanczos
    from .krylov import random_start as random_start
    from .krylov import spectral_measure as spectral_measure
    from .landscape import filter_normalised as filter_normalised
    from .landscape import loss_slice as loss_slice
    from .landscape import surface as surface
    from .landscape.amplification import amplification as amplification
    from .losses import LossSpec as LossSpec
    from .models import ModelSpec as ModelSpec
    from .plan import Plan as Plan
    from .results import Analysis as Analysis
    from .results import ClassSpectrum as ClassSpectrum
    from .trajectories import Trajectory as Trajectory
    from .trajectories import follow as follow

_HOMES = {
    "analysis": "analyze",
    "checkpoint": "Checkpoint load_checkpoint save_checkpoint",
    "data": "DataSpec Samples open_data",
    "doctor": "Certificate certify examine",
    "errors": "SpectraError",
    "hessian": "HessianOperator class_operators hessian_operator",
    "krylov": "Extremes SpectralMeasure SymmetricOperator Tridiagonal extreme_eigenvalues "
    "extremes_of lanczos random_start spectral_measure",
    "landscape.amplification": "amplification",
    "landscape": "filter_normalised loss_slice surface",
    "losses": "LossSpec",
    "models": "ModelSpec",
    "plan": "Plan",
    "results": "Analysis ClassSpectrum",
    "trajectories": "Trajectory follow",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = [*_HOME]

if not TYPE_CHECKING:  # which knows the names by the imports above

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        elif name.isidentifier() and name[0] != "_" and find_spec(f"{__name__}.{name}"):
            found = import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOME})
