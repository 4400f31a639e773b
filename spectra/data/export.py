"""A drawn set written once as parquet with its own description, and opened as it is.

One file a split, ``train.parquet`` and ``test.parquet``: columns ``img`` {bytes, path}, ``label``
and ``position`` (place within the class in the original source), lossless WebP or PNG. The schema
metadata hold the class names in the hub's manner, so that other readers open it too, and under
``spectra`` a JSON object: schema, split, spec, class_names, counts, shape, mean, std,
augmentation, draw_sha256, pixels_sha256.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import SpectraError
from ..files import replacing
from .images import encode_image
from .samples import Samples
from .sources import hub_parquet
from .spec import DataSpec

SCHEMA = 1


def export(samples: Samples, folder: str | Path, split: str) -> Path:
    """Write image samples as ``<folder>/<split>.parquet``, replacing an older one at the end.

    Raises:
        SpectraError: If the samples are no uint8 images, or the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    samples = samples.in_memory()
    images = samples.inputs
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise SpectraError(
            f"inputs are {images.dtype} of shape {tuple(images.shape)}; expected uint8 images "
            "(n, 1 or 3, height, width): other tensors cannot be kept bit by bit as images"
        )
    assert samples.positions is not None
    encoded = [{"bytes": encode_image(image), "path": None} for image in images.cpu().numpy()]
    features = {
        "img": {"_type": "Image"},
        "label": {"names": samples.class_names, "_type": "ClassLabel"},
        "position": {"dtype": "int64", "_type": "Value"},
    }
    about = {
        "schema": SCHEMA,
        "split": split,
        "spec": samples.spec.to_dict() if samples.spec else None,
        "shape": tuple(images.shape[1:]),
        **{key: getattr(samples, key) for key in ("class_names", "counts", "mean", "std")},
        **{key: getattr(samples, key) for key in ("augmentation", "draw_sha256", "pixels_sha256")},
    }
    table = pa.table(
        {
            "img": pa.array(encoded, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": samples.targets.cpu().numpy(),
            "position": samples.positions.cpu().numpy(),
        },
        metadata={
            "spectra": json.dumps(about),
            "huggingface": json.dumps({"info": {"features": features}}),
        },
    )
    path = Path(folder) / f"{split}.parquet"
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="none")  # encoded images shrink no further
    return path


def find_exported(path: Path, split: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the file of a split and its description, if an exported set lies at this path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = (path if path.is_dir() else path.parent) / f"{split}.parquet"
    if not file.is_file():
        return None
    try:
        about = json.loads((pq.read_schema(file).metadata or {}).get(b"spectra", b"null"))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SpectraError(f"{file} is no readable parquet ({error}); export it again") from error
    if about is not None and about.get("schema") != SCHEMA:
        raise SpectraError(
            f"{file} has schema {about.get('schema')}; this version reads {SCHEMA}: export it again"
        )
    return None if about is None else (file, about)


def open_exported(file: Path, about: dict[str, Any]) -> Samples:
    """Open an exported split and check both fingerprints against its description."""
    import pyarrow.parquet as pq

    names = tuple(about["class_names"])
    source = hub_parquet([file], len(names), "L" if about["shape"][0] == 1 else "RGB")
    samples = Samples(
        torch.from_numpy(source.decode(np.arange(len(source.labels)))),
        torch.from_numpy(source.labels),
        len(names),
        names,
        tuple(about["mean"]) if about["mean"] else None,
        tuple(about["std"]) if about["std"] else None,
        about["augmentation"],
        DataSpec.from_dict(about["spec"]) if about["spec"] else None,
        torch.tensor(pq.read_table(file, columns=["position"])["position"].to_numpy()),
    )
    for key in ("draw_sha256", "pixels_sha256"):
        if getattr(samples, key) != about[key]:
            raise SpectraError(
                f"{file}: {key} is {getattr(samples, key)[:12]}… and its description says "
                f"{about[key][:12]}…: the file was changed, export it again"
            )
    return samples
