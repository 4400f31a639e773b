"""Lanczos on symmetric operators: spectral measures and extreme eigenvalues; knows no network."""

from .basis import Place as Place
from .basis import choose_place as choose_place
from .extremes import TOLERANCE as TOLERANCE
from .extremes import Extremes as Extremes
from .extremes import extreme_eigenvalues as extreme_eigenvalues
from .extremes import extremes_of as extremes_of
from .extremes import lower_bound as lower_bound
from .extremes import measured_ends as measured_ends
from .extremes import nonconvexity as nonconvexity
from .extremes import posterior_lower_bound as posterior_lower_bound
from .lanczos import Ritz as Ritz
from .lanczos import Tridiagonal as Tridiagonal
from .lanczos import lanczos as lanczos
from .measure import Density as Density
from .measure import Estimate as Estimate
from .measure import SpectralMeasure as SpectralMeasure
from .measure import random_start as random_start
from .measure import spectral_measure as spectral_measure
from .measure import symlog_grid as symlog_grid
from .operator import SymmetricOperator as SymmetricOperator
from .replay import ritz_vectors as ritz_vectors
from .trace import known_forms as known_forms
from .trace import quadratic_form_probes as quadratic_form_probes
from .trace import trace_estimate as trace_estimate
