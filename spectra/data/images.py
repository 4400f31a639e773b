"""Encoded images to one uint8 array and back, by pillow.

Images of one common size stay as they are. Otherwise, or with a side S given, the shorter side is
resized to S·256/224 (bilinear) and the centre S×S is cut out; the default S is 224 (paper.md 4.5).
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SpectraError

Pixels = NDArray[np.uint8]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def decode_images(
    files: Sequence[bytes | Path], side: int | None = None, mode: str = "RGB"
) -> Pixels:
    """Decode n images, given as bytes or paths, to (n, 3, h, w), or (n, 1, h, w) in mode "L".

    Raises:
        SpectraError: If one of them is missing or is no image.
    """
    # Most codecs release the interpreter's lock, so threads decode side by side.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        out: Pixels | None = None
        for row, pixels in enumerate(pool.map(lambda file: _decode(file, side, mode), files)):
            if out is None:
                out = np.empty((len(files), *pixels.shape), dtype=np.uint8)
            if pixels.shape != out.shape[1:]:
                pool.shutdown(cancel_futures=True)
                return decode_images(files, 224, mode)
            out[row] = pixels
    if out is None:
        raise SpectraError("no image is left to decode; expected at least one")
    return out


def encode_image(pixels: Pixels) -> bytes:
    """Encode one (c, h, w) image without loss: three channels as WebP, one as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    if len(pixels) == 1:
        Image.fromarray(pixels[0]).save(buffer, "PNG")
    else:
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        image.save(buffer, "WEBP", lossless=True, method=3, quality=50)
    return buffer.getvalue()


def _decode(file: bytes | Path, side: int | None, mode: str) -> Pixels:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            picture = image.convert(mode)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        name = f"a value of {len(file)} bytes" if isinstance(file, bytes) else file
        raise SpectraError(f"{name} cannot be decoded as an image ({error}); replace it") from error
    if side is not None:
        scale = round(side * 256 / 224) / min(picture.size)
        width, height = (max(side, int(length * scale)) for length in picture.size)
        left, top = round((width - side) / 2), round((height - side) / 2)
        box = (left, top, left + side, top + side)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR).crop(box)
    pixels = np.asarray(picture)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
