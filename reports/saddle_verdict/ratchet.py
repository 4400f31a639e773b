"""How much of β the released recurrence cannot lose from one step to the next, on real networks.

    python reports/saddle_verdict/ratchet.py CKPT DATA_DIR CLASS [fixed]

With A_j the operator as it was drawn in step j, β_{j+1} ≥ |⟨q_{j−1}, A_j q_j⟩ − α⟨q_{j−1}, q_j⟩ −
β_j‖q_{j−1}‖²| / ‖q_{j−1}‖ (tests/test_released.py). Printed: the share of β_j that this bound is,
lower quartile, median and upper quartile over the steps after the tenth; the ends of T; and β every
ten steps. `fixed` leaves out the augmentation.
"""

import json
import sys

import numpy as np
import torch

import spectra
from spectra.hessian import HessianOperator, Objective, choose_product
from spectra.krylov import SymmetricOperator
from spectra.released import released_lanczos

checkpoint = spectra.load_checkpoint(sys.argv[1])
samples = spectra.open_data(checkpoint.data, path=sys.argv[2])
rows = torch.nonzero(samples.targets == int(sys.argv[3]))[:, 0]
loss = checkpoint.criterion("ce")
objective = Objective.of(checkpoint.model, samples, loss, batch_size=32).select(rows).unweighted()
choice = choose_product(objective)
if "fixed" not in sys.argv:
    objective = objective.redrawn(torch.Generator().manual_seed(0))
A = HessianOperator.of(objective, choice)
products: list[torch.Tensor] = []


def product(v: torch.Tensor) -> torch.Tensor:
    products.append(A @ v)
    return products[-1]


run = released_lanczos(SymmetricOperator(product, A.dim, A.dtype, A.device), steps=100)
assert run.basis is not None
q, a, b = run.basis.double(), run.alphas, run.betas
share = []
for j in range(10, len(a) - 1):
    before = q[j - 1]
    square = float(before @ before)
    inner = float(before @ products[j].double()) - a[j] * float(before @ q[j]) - b[j - 1] * square
    share.append(abs(inner) / square**0.5 / b[j - 1])
ends = run.ritz().values[[0, -1]]
print(
    json.dumps(
        {
            "checkpoint": checkpoint.file,
            "class": int(sys.argv[3]),
            "augmentation": "none" if "fixed" in sys.argv else "re-drawn",
            "share of beta that holds": np.quantile(share, [0.25, 0.5, 0.75]).round(3).tolist(),
            "ends": ends.round(3).tolist(),
            "beta": b[::10].round(3).tolist(),
        }
    )
)
