"""What the loss looks like away from the parameters: slices, surfaces, what SAM's step meets."""

from .amplification import amplification as amplification
from .exploring import Survey as Survey
from .exploring import explore as explore
from .slices import Differences as Differences
from .slices import Slice as Slice
from .slices import loss_slice as loss_slice
from .statistics import Amplification as Amplification
from .statistics import Interval as Interval
from .statistics import Predictions as Predictions
from .stored import Landscape as Landscape
from .stored import View as View
from .stored import rows_of as rows_of
from .surfaces import Surface as Surface
from .surfaces import filter_normalised as filter_normalised
from .surfaces import surface as surface
from .telling import amplified as amplified
from .telling import bends as bends
from .telling import told as told
