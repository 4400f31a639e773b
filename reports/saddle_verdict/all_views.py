"""The Hessian of the whole augmented loss of a class, not of a few draws of it.

    python reports/saddle_verdict/all_views.py CKPT DATA_DIR CLASS [MOST]

The augmentation is finite: 81 crops of the padded image, each mirrored or not, all equally likely.
The mean over a class's images and their 162 views is the augmented loss itself. A view's Hessian
goes to zero with 1 − p of its label, so Lanczos runs on the MOST views (1000) in which that is
largest, divided by the number of all views (until both ends' residuals are 1e-4 of the larger
modulus, 60 steps at most). Then the Hessian over all views is multiplied with both Ritz vectors:
its quotients and residuals are printed, and how much of the loss and of 1 − p the views hold that
Lanczos saw. float32 products. One line of JSON.
"""

import json
import sys

import torch
from views import all_views, losses_and_hits, opened

import spectra
from spectra.hessian import HessianOperator, Objective, Work, choose_product, choose_way

checkpoint, samples = opened(*sys.argv[1:3])
label, most = int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 1000
views, images = all_views(samples, label)
network, loss = checkpoint.model.float().eval(), checkpoint.criterion("ce")
losses, right = losses_and_hits(network, views, loss)
doubt = -torch.expm1(-losses)  # 1 - p
order = doubt.argsort(descending=True)
seen = order[:most].sort().values

whole = Objective.of(network, views, loss, batch_size=128)
chosen = whole.select(seen, normalizer=float(len(views)))
choice = choose_product(chosen)
way = choose_way(chosen, choice, Work([len(seen)], 40), product="linearized")
H = HessianOperator.of(chosen, choice, kept=way.kept)
start = spectra.random_start(H.dim, seed=0, probe=0)
run = spectra.lanczos(H, start, steps=60, until_converged=1e-4)
values = run.ritz().values
row = {
    "checkpoint": checkpoint.file,
    "class": label,
    "images": images,
    "views": len(views),
    "loss": float(losses.mean()),
    "wrong_views": int((~right).sum()),
    "loss_of_images": sorted((losses.reshape(-1, images).mean(0) / images).tolist(), reverse=True)[
        :3
    ],
    "seen_views": len(seen),
    "seen_of_loss": float(losses[seen].sum() / losses.sum()),
    "seen_of_doubt": float(doubt[seen].sum() / doubt.sum()),
    "steps": run.steps,
    "seen_ends": [float(values[0]), float(values[-1])],
}
vectors = [run.vector(0), run.vector(-1)]
del way, H, run
for name, y in zip(("low", "high"), vectors, strict=True):
    product = whole.product(y, choice.path).double()
    theta = float(y.double() @ product)
    row[name] = {"quotient": theta, "residual": float((product - theta * y.double()).norm())}
row["ratio"] = max(0.0, -row["low"]["quotient"]) / row["high"]["quotient"]
print(json.dumps(row))
