"""How low can λmin of a class be, whatever is drawn? A bound from its images, one by one.

    python reports/saddle_verdict/bounds.py CKPT DATA_DIR CLASS [MOST]

The Hessian of a class is the mean of its images' own, in any draw of the augmentation that of one
view of each. So its λmin is no lower than the mean of the images' own λmin, each taken in the worst
of its 162 views. Lanczos over one view at a time (float64, until the residuals are 1e-3 of the
larger modulus, 60 steps at most) finds it for the MOST views (3) of every image in which 1 − p of
its label is largest, and for the image as it is; the residual is taken off. A view's own λmin
vanishes with 1 − p: the views that are left out are given the largest |λmin| / (1 − p) that was met
in any, where that makes an image's worst view worse. One line of JSON.
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
steps = []


def lowest(view: int, image: int) -> float:
    """Find λmin of one view, less its residual."""
    H = HessianOperator.of(whole.select(torch.tensor([view * images + image])), choice)
    start = spectra.random_start(H.dim, seed=0, probe=0, dtype=torch.float64)
    run = spectra.lanczos(H, start, steps=60, until_converged=1e-3)
    steps.append(run.steps)
    ritz = run.ritz()
    return float(ritz.values[0]) - run.residual_norm * abs(float(ritz.last[0]))


plain, worst, factor = [], [], 0.0
looked = torch.zeros_like(doubt, dtype=torch.bool)
for image in range(images):
    found = {}
    for view in {PLAIN, *doubt[:, image].argsort(descending=True)[:most].tolist()}:
        found[view] = lowest(view, image)
        factor = max(factor, -found[view] / float(doubt[view, image]))
        looked[view, image] = True
    plain.append(found[PLAIN])
    worst.append(min(0.0, *found.values()))
rest = factor * doubt.masked_fill(looked, 0.0).amax(0)  # the most that another view may have
print(
    json.dumps(
        {
            "checkpoint": checkpoint.file,
            "class": label,
            "images": images,
            "views_looked_at": int(looked.sum()),
            "steps": max(steps),
            "bound_as_the_images_are": sum(plain) / images,
            "bound_of_every_draw": sum(worst) / images,
            "with_the_other_views": float(torch.minimum(torch.tensor(worst), -rest).mean()),
            "largest_of_doubt": factor,
            "three_lowest_terms": sorted(value / images for value in worst)[:3],
            "images_below_a_hundredth": sum(value / images < -0.01 for value in worst),
        }
    )
)
