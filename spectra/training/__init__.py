"""The trainer: recipes, schedules, steps and the loop; the checkpoint file is its only way out."""

from .engine import WAYS as WAYS
from .evaluation import Scores as Scores
from .evaluation import evaluate as evaluate
from .loop import Run as Run
from .loop import train as train
from .recipes import Recipe as Recipe
from .table import ENTRIES as ENTRIES
from .table import RECIPES as RECIPES
from .table import find_recipe as find_recipe
