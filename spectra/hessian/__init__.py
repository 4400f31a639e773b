"""Samples to symmetric operators: Hessian-vector products and the Hessians of classes."""

from .choice import ProductChoice as ProductChoice
from .choice import choose_product as choose_product
from .kept import KeptProducts as KeptProducts
from .objective import Objective as Objective
from .operators import HessianOperator as HessianOperator
from .operators import class_operators as class_operators
from .operators import hessian_operator as hessian_operator
from .ways import Way as Way
from .ways import Work as Work
from .ways import choose_way as choose_way
