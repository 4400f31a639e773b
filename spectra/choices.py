"""The words that a plan takes; kept apart, so that `--help` need not wait for torch."""

from typing import Literal, get_args

PathName = Literal["reverse-over-forward", "double-backward", "forward-over-reverse"]
KeptName = Literal["kept-graph", "linearized", "compiled"]  # hessian/kept.py
ProductName = PathName | KeptName
PRODUCT_NAMES: tuple[ProductName, ...] = (*get_args(PathName), *get_args(KeptName))
CHOICES: dict[str, tuple[str, ...]] = {
    "split": ("train", "test"),
    "loss": ("ce", "trained"),
    "protocol": ("exact", "released"),
    "dtype": ("float32", "float64"),
    "product": ("auto", *PRODUCT_NAMES),
    "basis": ("auto", "device", "host", "none"),
}
