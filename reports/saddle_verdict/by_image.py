"""Print which images of a class make its λmin, and what is left without those that are wrong.

    python reports/saddle_verdict/by_image.py CKPT DIR CLASS

The class's λmin is yᵀHy of its vector y (40 Lanczos steps, float32 products), and H the mean of
the images' own: yᵀHy = Σᵢ yᵀHᵢy / n, each term by double backward in float64. The ends without the
wrong images are of the mean over the others, after 40 steps as well.
"""

import json
import sys

import torch

import spectra
from spectra.gathering import loss_of

file, data, label = sys.argv[1], sys.argv[2], int(sys.argv[3])
checkpoint = spectra.load_checkpoint(file)
samples = spectra.open_data(checkpoint.data, path=data)
part = samples.select(torch.nonzero(samples.targets == label)[:, 0])
loss = loss_of(checkpoint, spectra.Plan())


def ends(rows):
    """Give λmin and λmax of the mean over some rows, their residuals, and the vector of λmin."""
    H = spectra.hessian_operator(checkpoint.model, part.select(rows), loss, dtype=torch.float32)
    start = spectra.random_start(H.dim, seed=0, probe=0, dtype=torch.float32)
    run = spectra.lanczos(H, start, steps=40)
    values, residuals = [], []
    for v in (run.vector(0), run.vector(-1)):
        product = (H @ v.float()).double()
        values.append(float(v.double() @ product))
        residuals.append(float((product - values[-1] * v.double()).norm()))
    return values, residuals, run.vector(0).double()


(low, high), residuals, y = ends(torch.arange(len(part)))
network = checkpoint.model.double().eval()
parameters = list(network.parameters())
terms, losses, right = [], [], []
for x, target in zip(part.prepared(torch.float64), part.targets, strict=True):
    logits = network(x[None])
    value = loss.per_sample(logits, target[None])[0]
    slope = torch.autograd.grad(value, parameters, create_graph=True)
    along = torch.cat([g.reshape(-1) for g in slope]) @ y
    second = torch.autograd.grad(along, parameters)
    terms.append(float(torch.cat([g.reshape(-1) for g in second]) @ y) / len(part))
    losses.append(float(value.detach()))
    right.append(bool(logits.argmax() == target))
checkpoint.model.float()
wrong = [i for i, good in enumerate(right) if not good]
rest, rest_residuals, _ = ends(torch.tensor([i for i, good in enumerate(right) if good]))
row = {
    "checkpoint": checkpoint.file,
    "epoch": checkpoint.epoch,
    "class": label,
    "samples": len(part),
    "lambda_min": low,
    "lambda_max": high,
    "residuals": residuals,
    "sum_of_terms": sum(terms),
    "wrong": [{"image": i, "loss": losses[i], "term": terms[i]} for i in wrong],
    "most_negative_other": min(t for t, good in zip(terms, right, strict=True) if good),
    "without_wrong": {"lambda_min": rest[0], "lambda_max": rest[1], "residuals": rest_residuals},
}
print(json.dumps(row))
