"""Look for the largest and the smallest curvature at a distance, where kinks of ReLUs count.

    python reports/saddle_verdict/distance.py CKPT DATA_DIR CLASS STEPS DISTANCE...

(∇L(w + t u) − ∇L(w − t u))/(2t) for a unit vector u stands for H u: along u it is the mean
curvature of the loss over the line from −t to t. It is not linear in u, so that Lanczos with it is
a search, and what counts is the curvature along the two vectors that it ends with, measured anew:
bounds of the extremes over all directions from inside. Float32, evaluation mode, no augmentation.
"""

import json
import sys

import torch

import spectra
from spectra.hessian import Objective
from spectra.krylov import SymmetricOperator, lanczos, nonconvexity, random_start

checkpoint = spectra.load_checkpoint(sys.argv[1])
samples = spectra.open_data(checkpoint.data, path=sys.argv[2])
label, steps = map(int, sys.argv[3:5])
loss = checkpoint.criterion("ce")
of_class = samples.of_class(label)
objective = Objective.of(checkpoint.model, of_class, loss, batch_size=32).unweighted()

for t in map(float, sys.argv[5:]):

    def product(v: torch.Tensor, t: float = t) -> torch.Tensor:
        length = v.norm()
        step = v * (t / length)
        sides = objective.gradient(shift=step) - objective.gradient(shift=-step)
        return sides * (length / (2 * t))

    A = SymmetricOperator(product, objective.dim, objective.dtype, objective.device)
    run = lanczos(A, random_start(A.dim, seed=0, probe=0), steps=steps)
    along = [float(y @ (A @ y)) for y in (run.vector(0), run.vector(-1))]
    told = {
        "checkpoint": checkpoint.file,
        "class": label,
        "distance": t,
        "curvature along the vectors": [round(x, 4) for x in along],
        "ratio": round(nonconvexity(*along), 4),
        "ends of T": run.ritz().values[[0, -1]].round(3).tolist(),
    }
    print(json.dumps(told), flush=True)
