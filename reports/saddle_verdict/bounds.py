"""How low can λmin of a class be, whatever is drawn? An estimate from its images, one by one.

    python reports/saddle_verdict/bounds.py CKPT DATA_DIR CLASS [MOST]

The Hessian of a class is the mean of its images' own, in any draw of the augmentation that of one
view of each. So its λmin is no lower than the mean of the images' own λmin, each taken in the worst
of its 162 views. Lanczos over one view at a time (float64, one start, until the residuals are 1e-5
of the larger modulus, 80 steps at most) finds it for the MOST views (3) of every image in which
1 − p of its label is largest, and for the image as it is; the residual is taken off. A view's own
λmin vanishes with 1 − p: the views that are left out, and those with less than 1e-4 of it, are
given the largest |λmin| / (1 − p) that was met in any, where that makes an image's worst view
worse. So this is an estimate of the bound, no proof: a start may miss a view's lowest eigenvector.
One line of JSON.
"""

import json
import sys

import torch
from views import PLAIN, all_views, losses_and_hits, opened

import spectra
from spectra.hessian import HessianOperator, Objective, choose_product

checkpoint, samples = opened(*sys.argv[1:3])
label, most = int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 3
views, images = all_views(samples, label)
network, loss = checkpoint.model.float().eval(), checkpoint.criterion("ce")
losses, right = losses_and_hits(network, views, loss)
doubt = -torch.expm1(-losses).reshape(-1, images)  # (162, images) 1 - p
whole = Objective.of(network, views, loss, batch_size=1, dtype=torch.float64)
choice = choose_product(whole.select(torch.arange(8)))
SMALL = 1e-4  # of 1 - p: what such a view may have is little
steps = []


def lowest(view: int, image: int) -> float:
    """Find λmin of one view, less its residual."""
    H = HessianOperator.of(whole.select(torch.tensor([view * images + image])), choice)
    start = spectra.random_start(H.dim, seed=0, probe=0, dtype=torch.float64)
    run = spectra.lanczos(H, start, steps=80, until_converged=1e-5)
    steps.append(run.steps)
    ritz = run.ritz()
    return float(ritz.values[0]) - run.residual_norm * abs(float(ritz.last[0]))


found = torch.full_like(doubt, torch.nan)  # λmin of the views that were looked at
for image in range(images):
    for view in {PLAIN, *doubt[:, image].argsort(descending=True)[:most].tolist()}:
        if doubt[view, image] > SMALL:
            found[view, image] = lowest(view, image)
looked = ~found.isnan()
if not looked.any():
    sys.exit(f"no view of class {label} has more than {SMALL} of 1 - p: there is nothing to bound")
factor = float((-found / doubt)[looked].max())
plain = torch.where(looked, found, -factor * doubt)[PLAIN]
worst = found.nan_to_num(0.0).amin(0).clamp(max=0.0)
rest = -factor * doubt.masked_fill(looked, 0.0).amax(0)  # the lowest that another view may have
print(
    json.dumps(
        {
            "checkpoint": checkpoint.file,
            "class": label,
            "images": images,
            "views_looked_at": int(looked.sum()),
            "steps": max(steps),
            "bound_as_the_images_are": float(plain.mean()),
            "bound_of_every_draw": float(worst.mean()),
            "with_the_other_views": float(torch.minimum(worst, rest).mean()),
            "largest_of_doubt": factor,
            "three_lowest_terms": (worst.sort().values[:3] / images).tolist(),
            "images_below_a_hundredth": int((worst / images < -0.01).sum()),
        }
    )
)
