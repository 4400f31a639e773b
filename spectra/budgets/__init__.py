"""What the notebooks show, at two budgets: stored results where they fit, else computed ones."""

from .budget import BUDGETS as BUDGETS
from .budget import Budget as Budget
from .shown import Picture as Picture
from .shown import beside as beside
from .shown import table as table
