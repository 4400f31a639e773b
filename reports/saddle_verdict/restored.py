"""Analyse a class without the images that were restored from JPEG.

    python reports/saddle_verdict/restored.py CKPT DATA_DIR CLASS OUT

A JPEG file of quality 75 leaves what was decoded from one nearly as it is: within 1.5 of 256 grey
levels on average. In class 8 that finds 738 images, as many as are known to be such; nearly all
others differ by more than two. Printed: how many of a class's images are such, in both whole parts
and in the draw. The rest is analysed exactly and by the released protocol, into OUT/exact and
OUT/released.
"""

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import spectra


def restored(samples: spectra.Samples) -> np.ndarray:
    """Tell which images are as a JPEG of quality 75 leaves them."""
    found = []
    for image in samples.inputs.permute(0, 2, 3, 1).contiguous().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75)
        again = np.asarray(Image.open(file)).astype(int)
        found.append(float(np.abs(again - image).mean()) < 1.5)
    return np.array(found)


checkpoint = spectra.load_checkpoint(sys.argv[1])
label, out = int(sys.argv[3]), Path(sys.argv[4])
whole = replace(checkpoint.data, imbalance=None, ratio=None)
for spec, split in ((whole, "train"), (whole, "test"), (checkpoint.data, "train")):
    samples = spectra.open_data(spec, path=sys.argv[2], split=split)
    marks = restored(samples.of_class(label))
    print(f"{split}, {len(marks)} images of class {label}: {marks.sum()} restored")
rows = torch.nonzero(samples.targets == label)[:, 0].numpy()
keep = np.setdiff1d(np.arange(len(samples)), rows[marks])
rest = samples.select(torch.from_numpy(keep))
exact = spectra.Plan(classes=(label,), product="linearized")
released = spectra.Plan(classes=(label,), protocol="released")
for plan in (exact, released):
    spectra.analyze(checkpoint, plan, train=rest).save(out / plan.protocol)
