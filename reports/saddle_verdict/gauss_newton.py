"""Print the trace of a class's Gauss-Newton matrix, and how few images have the class's loss.

    python reports/saddle_verdict/gauss_newton.py CKPT DIR CLASS

H = mean of Jᵀ(diag p − ppᵀ)J + Σ (p − y)_k ∇²z_k. The first part is positive semidefinite; its
trace is the mean over the samples of Σ_y p_y ‖∇ log p_y‖², taken exactly, in float64. What the
trace of H (`esd.json` of the same checkpoint) has beside it is that of the second part.
"""

import json
import sys

import torch

import spectra

file, data, label = sys.argv[1], sys.argv[2], int(sys.argv[3])
checkpoint = spectra.load_checkpoint(file)
samples = spectra.open_data(checkpoint.data, path=data)
part = samples.of_class(label)
network = checkpoint.model.double().eval()
loss = checkpoint.criterion("ce")
parameters = list(network.parameters())
trace = 0.0
losses = []
for x, y in zip(part.prepared(torch.float64), part.targets, strict=True):
    logits = network(x[None])
    classes = torch.arange(logits.shape[1])
    told = loss.per_sample(logits.expand(len(classes), -1), classes)  # −log p_y of every y
    losses.append(float(told[y].detach()))
    for one in told:
        slope = torch.autograd.grad(one, parameters, retain_graph=True)
        size = sum(float(g.square().sum()) for g in slope)
        trace += float(torch.exp(-one.detach())) * size / len(part)
row = {
    "checkpoint": checkpoint.file,
    "epoch": checkpoint.epoch,
    "class": label,
    "samples": len(part),
    "loss": sum(losses) / len(part),
    "gauss_newton_trace": trace,
    "share_of_three_hardest": sum(sorted(losses)[-3:]) / sum(losses),
}
print(json.dumps(row))
