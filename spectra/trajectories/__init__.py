"""How the spectra of a run move during training: the analysis, over the checkpoints it has kept."""

from .following import follow as follow
from .kept import kept_checkpoints as kept_checkpoints
from .kept import run_name as run_name
from .published import CHOICES as CHOICES
from .results import RunTrajectory as RunTrajectory
from .results import Trajectory as Trajectory
from .results import nonconvexity_of_probes as nonconvexity_of_probes
