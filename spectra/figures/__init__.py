"""Draw results: axes in, axes out; the only room that knows matplotlib.

Nothing here spends a product, and nothing touches pyplot: no figure outlives its caller, and no
axes are drawn on twice.
"""

from .densities import Scale as Scale
from .densities import density_grid as density_grid
from .densities import draw_density as draw_density
from .pages import COLOURS as COLOURS
from .pages import OUTSIDE as OUTSIDE
from .pages import PLAIN as PLAIN
from .pages import save as save
from .recurrence import draw_recurrence as draw_recurrence
from .recurrence import recurrence_panels as recurrence_panels
from .trajectories import draw_trajectory as draw_trajectory
from .trajectories import trajectory_panels as trajectory_panels
