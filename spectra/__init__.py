"""Class-wise Hessian spectra of classifiers, each number with its error.

Importing the package loads neither matplotlib nor pandas: figures and tables are the submodules
`spectra.figures` and `spectra.tables`.
"""

__version__ = "0.1.0"

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
from .landscape import amplification as amplification
from .landscape import filter_normalised as filter_normalised
from .landscape import loss_slice as loss_slice
from .landscape import surface as surface
from .losses import LossSpec as LossSpec
from .models import ModelSpec as ModelSpec
from .plan import Plan as Plan
from .results import Analysis as Analysis
from .results import ClassSpectrum as ClassSpectrum
from .trajectories import Trajectory as Trajectory
from .trajectories import follow as follow
