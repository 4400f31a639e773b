"""Encoded images to one uint8 array and back, by pillow.

Images of one common size stay as they are. Otherwise, or with a side S given, the shorter side is
resized to S·256/224 (bilinear) and the centre S×S is cut out; the default S is 224 (paper.md 4.5).
Whatever a file holds (grey, palette, CMYK, 16 bits, with or without alpha) becomes 8-bit red,
green and blue; alpha is dropped and rotation tags are not followed, as torchvision's loader does.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SpectraError
from .memory import free_memory, refuse_what_does_not_fit

Pixels = NDArray[np.uint8]
DEFAULT_SIDE = 224
_HEADS = 1024  # files to look at before it is asked whether one is unlike the first
# Those of torchvision's ImageFolder: a class must not be smaller here.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


def decode_images(
    files: Sequence[bytes | Path], side: int | None = None, mode: str = "RGB"
) -> Pixels:
    """Decode n images, given as bytes or paths, to (n, 3, h, w), or (n, 1, h, w) in mode "L".

    Raises:
        SpectraError: If one of them is missing or is no image, or if all of them together do not
            fit into the memory that is free; the latter before they are decoded.
    """
    if not files:
        raise SpectraError("no image is left to decode; expected at least one")
    free, size = free_memory(), _size(files[0])
    needed = len(files) * size[0] * size[1] * (1 if mode == "L" else 3)
    # What would not fit as it lies may still be of many sizes, and then it is cut.
    if side is None and free is not None and needed > free:
        side, _ = common_size(files)
    height, width = (size[1], size[0]) if side is None else (side, side)
    shape = (len(files), 1 if mode == "L" else 3, height, width)
    refuse_what_does_not_fit(shape, free)
    out = np.empty(shape, dtype=np.uint8)
    # Most codecs release the interpreter's lock, so threads decode side by side.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for row, pixels in enumerate(pool.map(lambda file: _decode(file, side, mode), files)):
            if pixels.shape != shape[1:]:
                pool.shutdown(cancel_futures=True)
                del out
                return decode_images(files, DEFAULT_SIDE, mode)
            out[row] = pixels
    return out


def common_size(files: Sequence[bytes | Path]) -> tuple[int | None, tuple[int, int]]:
    """Look at the heads of image files for the size that they are decoded to.

    Returns:
        The side that they have to be cut to, None where all have one size; height and width.
    """
    width, height = _size(files[0])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), _HEADS):  # most sets show it in the first few
            if any(
                size != (width, height) for size in pool.map(_size, files[start : start + _HEADS])
            ):
                return DEFAULT_SIDE, (DEFAULT_SIDE, DEFAULT_SIDE)
    return None, (height, width)


@dataclass(frozen=True)
class ImageFiles:
    """Image files of one set, and the size that all of them are decoded to.

    Args:
        paths: (n,) all of them, at least one.
        side: To which they are cut; None: as `common_size` settles it.
    """

    paths: Sequence[Path]
    side: int | None
    size: tuple[int, int]  # height, width

    @staticmethod
    def of(paths: Sequence[Path], side: int | None) -> "ImageFiles":
        """Settle the size; no image is decoded."""
        if side is not None:
            return ImageFiles(paths, side, (side, side))
        return ImageFiles(paths, *common_size(paths))

    @staticmethod
    def read(paths: Sequence[Path], side: int | None) -> "tuple[ImageFiles, Pixels]":
        """Decode all, (n, 3, h, w), which settles the size."""
        pixels = decode_images(paths, side)
        height, width = pixels.shape[2:]
        if side is None and height == width == DEFAULT_SIDE:  # cut to it, or of that size
            return ImageFiles.of(paths, None), pixels
        return ImageFiles(paths, side, (height, width)), pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, index: NDArray[np.int64]) -> Pixels:
        """Decode some, (m,) to (m, 3, h, w).

        Raises:
            SpectraError: If one is missing, is no image, or has changed its size since.
        """
        pixels = decode_images([self.paths[i] for i in index], self.side)
        if pixels.shape[2:] != self.size:
            raise SpectraError(
                f"images of {' × '.join(map(str, self.size))} have another size by now: files were "
                "replaced while they were in use; start again"
            )
        return pixels

    @cached_property
    def sha256(self) -> str:
        """Return a fingerprint of all files that opens none.

        It is the SHA-256 of the side, and of a line for each: its path, from the folder that all
        lie in, and its bytes.

        Raises:
            SpectraError: If one of them is missing.
        """
        digest = hashlib.sha256(f"{self.side}\n".encode())
        home = os.path.commonpath([path.parent for path in self.paths])
        for path in self.paths:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise SpectraError(f"{path} cannot be read ({error}); replace it") from error
            line = f"{path.relative_to(home).as_posix()} {size}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()


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


@contextmanager
def _opened(file: bytes | Path) -> Iterator[Any]:
    """Open an image, its pixels still unread; a SpectraError names what is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = f"a value of {len(file)} bytes" if isinstance(file, bytes) else file
        raise SpectraError(f"{name} cannot be decoded as an image ({error}); replace it") from error


def _size(file: bytes | Path) -> tuple[int, int]:
    """Return width and height, from the head of the file."""
    with _opened(file) as image:
        width, height = image.size
    return width, height


def _decode(file: bytes | Path, side: int | None, mode: str) -> Pixels:
    from PIL import Image

    with _opened(file) as image:
        if image.mode.startswith("I"):  # 16 bits of grey, which `convert` clips to white
            values = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
            image = Image.fromarray(values.astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # pillow warns of the direct way
        picture = image.convert(mode)
    if side is not None:
        shorter = round(side * 256 / 224)
        width, height = (shorter * length // min(picture.size) for length in picture.size)
        left, top = round((width - side) / 2), round((height - side) / 2)
        box = (left, top, left + side, top + side)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR).crop(box)
    pixels = np.asarray(picture)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
