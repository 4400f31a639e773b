"""Draw results: axes in, axes out; the only room that knows matplotlib.

Nothing here spends a product, and nothing touches pyplot: no figure outlives its caller, and no
axes are drawn on twice.
"""

from .accuracies import class_panels as class_panels
from .accuracies import draw_classes as draw_classes
from .accuracies import draw_radius as draw_radius
from .accuracies import radius_panels as radius_panels
from .against_loss import draw_against_loss as draw_against_loss
from .against_loss import loss_panels as loss_panels
from .amplifications import amplification_panels as amplification_panels
from .amplifications import draw_amplification as draw_amplification
from .densities import Scale as Scale
from .densities import density_grid as density_grid
from .densities import draw_density as draw_density
from .landscapes import landscape_pages as landscape_pages
from .pages import COLOURS as COLOURS
from .pages import OUTSIDE as OUTSIDE
from .pages import PLAIN as PLAIN
from .pages import STYLE as STYLE
from .pages import save as save
from .recurrence import draw_recurrence as draw_recurrence
from .recurrence import recurrence_panels as recurrence_panels
from .slices import draw_differences as draw_differences
from .slices import draw_slice as draw_slice
from .slices import slice_panels as slice_panels
from .surfaces import draw_contours as draw_contours
from .surfaces import draw_solid as draw_solid
from .surfaces import surface_panels as surface_panels
from .trajectories import draw_trajectory as draw_trajectory
from .trajectories import ends_panels as ends_panels
from .trajectories import trace_panels as trace_panels
from .trajectories import trajectory_pages as trajectory_pages
from .trajectories import trajectory_panels as trajectory_panels
from .trajectories import trajectory_titles as trajectory_titles
