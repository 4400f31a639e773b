"""The trainer: recipes, schedules, steps and the loop; the checkpoint file is its only way out."""

from .loop import Run as Run
from .loop import Scores as Scores
from .loop import evaluate as evaluate
from .loop import train as train
from .recipes import RECIPES as RECIPES
from .recipes import Recipe as Recipe
from .recipes import find_recipe as find_recipe
