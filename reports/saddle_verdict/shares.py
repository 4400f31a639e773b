"""Tell how few images carry the loss of a class in each draw of the augmentation, and which.

    python reports/saddle_verdict/shares.py CKPT DATA_DIR CLASS

The six draws are those of `python -m spectra.draws --draws 6`. Printed: of each, the mean loss and
the share of it that the three images with the largest losses have; and how many of these three
each pair of draws has in common, least, mean and most.
"""

import itertools
import json
import sys

import torch

import spectra

checkpoint = spectra.load_checkpoint(sys.argv[1])
train = spectra.open_data(checkpoint.data, path=sys.argv[2])
rows = torch.nonzero(train.targets == int(sys.argv[3]))[:, 0]
losses = []
for seed in range(6):
    drawn = train.frozen(1, seed).select(rows)
    with torch.no_grad():
        logits = checkpoint.head_scale * checkpoint.model(drawn.prepared())
    losses.append(torch.nn.functional.cross_entropy(logits, drawn.targets, reduction="none"))
largest = [set(loss.topk(3).indices.tolist()) for loss in losses]
common = [len(a & b) for a, b in itertools.combinations(largest, 2)]
told = {
    "checkpoint": checkpoint.file,
    "class": int(sys.argv[3]),
    "mean loss": [float(f"{loss.mean():.3g}") for loss in losses],
    "share of the three largest": [
        round(float(loss.topk(3).values.sum() / loss.sum()), 2) for loss in losses
    ],
    "in common": [min(common), round(sum(common) / len(common), 2), max(common)],
}
print(json.dumps(told))
