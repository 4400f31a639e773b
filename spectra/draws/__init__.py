"""The Hessians of several augmentation draws, each frozen, beside each other."""

from .drawing import Draws as Draws
from .drawing import over_draws as over_draws
from .drawing import table as table
