"""Print which images of a class make its negative end, and what is left without them.

    python reports/saddle_verdict/by_image.py CKPT DIR CLASS

H is the mean of the images' own Hessians, and so is yᵀHy = Σᵢ yᵀHᵢy / n: along each of the two
lowest Ritz vectors y (40 Lanczos steps, float32 products) every image has a term, by double
backward in float64. The ends of what is left are of the mean over the other images: without the
wrong one of the largest loss, and without all that are wrong.
"""

import json
import sys

import torch

import spectra

file, data, label = sys.argv[1], sys.argv[2], int(sys.argv[3])
checkpoint = spectra.load_checkpoint(file)
samples = spectra.open_data(checkpoint.data, path=data)
part = samples.of_class(label)
loss = checkpoint.criterion("ce")


def ends(rows):
    """Give the two lowest and the highest Ritz value over some rows, residuals, the two vectors."""
    model = checkpoint.model.float()
    H = spectra.hessian_operator(model, part.select(torch.tensor(rows)), loss, dtype=torch.float32)
    start = spectra.random_start(H.dim, seed=0, probe=0, dtype=torch.float32)
    run = spectra.lanczos(H, start, steps=40)
    vectors = [run.vector(i).double() for i in (0, 1, -1)]
    products = [(H @ v.float()).double() for v in vectors]
    values = [float(v @ p) for v, p in zip(vectors, products, strict=True)]
    off = [float((p - t * v).norm()) for v, p, t in zip(vectors, products, values, strict=True)]
    return {"lowest": values[:2], "highest": values[2], "residuals": off}, vectors[:2]


everyone = range(len(part))
whole, lowest = ends(list(everyone))
network = checkpoint.model.double().eval()
parameters = list(network.parameters())
terms, losses, wrong = [], [], []
for i in everyone:
    target = part.targets[i]
    logits = network(part.select(torch.tensor([i])).prepared(torch.float64))
    value = loss.per_sample(logits, target[None])[0]
    slope = torch.autograd.grad(value, parameters, create_graph=True)
    along = torch.cat([g.reshape(-1) for g in slope])
    found = []
    for y in lowest:
        second = torch.autograd.grad(along @ y, parameters, retain_graph=True)
        found.append(float(torch.cat([g.reshape(-1) for g in second]) @ y) / len(part))
    terms.append(found)
    losses.append(float(value.detach()))
    if logits.argmax() != target:
        wrong.append(i)
worst = max(wrong, key=lambda i: losses[i], default=None)
row = {
    "checkpoint": checkpoint.file,
    "epoch": checkpoint.epoch,
    "class": label,
    "samples": len(part),
    **whole,
    "sums_of_terms": [sum(each) for each in zip(*terms, strict=True)],
    "wrong": [{"image": i, "loss": losses[i], "terms": terms[i]} for i in wrong],
    "lowest_terms_of_others": [
        min(terms[i][k] for i in everyone if i not in wrong) for k in (0, 1)
    ],
    "without_worst": ends([i for i in everyone if i != worst])[0],
    "without_wrong": ends([i for i in everyone if i not in wrong])[0],
}
print(json.dumps(row))
