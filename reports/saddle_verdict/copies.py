"""Give the released protocol every image of a class several times, each copy with draws of its own.

    python reports/saddle_verdict/copies.py CKPT DATA_DIR CLASS COPIES STEPS

Class and images stay; what grows is the number of draws that the mean of one product runs over.
Printed: |λmin|/λmax and λmax after every ten steps.
"""

import json
import sys

import torch

import spectra
from spectra.hessian import HessianOperator, Objective, choose_product
from spectra.krylov import nonconvexity
from spectra.released import released_lanczos

checkpoint = spectra.load_checkpoint(sys.argv[1])
samples = spectra.open_data(checkpoint.data, path=sys.argv[2])
label, copies, steps = map(int, sys.argv[3:6])
rows = torch.nonzero(samples.targets == label)[:, 0]
loss = checkpoint.criterion("ce")
many = samples.select(rows.repeat(copies))
objective = Objective.of(checkpoint.model, many, loss, batch_size=32).unweighted()
choice = choose_product(objective)
A = HessianOperator.of(objective.redrawn(torch.Generator().manual_seed(0)), choice)
run = released_lanczos(A, steps=steps)
ends = {m: run.after(m).ritz().values[[0, -1]].tolist() for m in range(10, steps + 1, 10)}
told = {
    "checkpoint": checkpoint.file,
    "class": label,
    "images": len(rows),
    "copies": copies,
    "ratio": {m: round(nonconvexity(low, high), 4) for m, (low, high) in ends.items()},
    "lambda_max": {m: round(high, 3) for m, (_, high) in ends.items()},
}
print(json.dumps(told))
