"""Sources: the layouts that published data come in, on tiny made-up sets, and the real CIFAR."""

import errno
import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
import types
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from spectra.data import (
    KNOWN,
    DataSpec,
    Samples,
    export,
    official,
    open_data,
    pickles,
    require_one_size,
    sources,
)
from spectra.data.longtail import draw
from spectra.errors import SpectraError


def picture(seed, side=32, width=None):
    return np.random.default_rng(seed).integers(0, 256, (side, width or side, 3), dtype=np.uint8)


def cifar10_records(n, offset=0):
    """Return n binary CIFAR-10 records, labels 9, 8, ..., and the images (n, 3, 32, 32)."""
    images = np.stack([picture(offset + i).transpose(2, 0, 1) for i in range(n)])
    labels = [9 - i % 10 for i in range(n)]
    record = [bytes([y]) + image.tobytes() for y, image in zip(labels, images, strict=True)]
    return b"".join(record), np.array(labels), images


def cifar10_archive(folder):
    """Write a small archive in the official layout, with a guest that must not come out of it."""
    folder.mkdir(exist_ok=True)
    names = "plane\ncar\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"
    files = {f"data_batch_{i}.bin": cifar10_records(10, 10 * i)[0] for i in range(1, 6)}
    files |= {"test_batch.bin": cifar10_records(10, 90)[0], "batches.meta.txt": names.encode()}
    path = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {**files, "../../guest.bin": b"no", "readme.html": b"no"}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def toronto(tmp_path, monkeypatch):
    """Serve the archive from this machine, with its own MD5 sum in the table."""
    path = cifar10_archive(tmp_path / "toronto")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(path.parent))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "CIFAR_URL", f"http://127.0.0.1:{server.server_port}/")
    (name, _, inner), *rest = sources.CIFAR_ARCHIVES["cifar10"]
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(sources.CIFAR_ARCHIVES, "cifar10", ((name, md5, inner), *rest))
    yield path
    server.shutdown()
    server.server_close()
    thread.join()


def hub(folder, name="cifar10", shards=2, order=None):
    """Write the images of ``cifar10_archive`` as the hub does, in two shards sorted by class."""
    folder.mkdir(parents=True, exist_ok=True)
    column = "label" if name == "cifar10" else "fine_label"
    count = 10 if name == "cifar10" else 100
    names = [f"class {c}" for c in range(count)]
    metadata = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
    for split, offsets in (("train", range(10, 60, 10)), ("test", [90])):
        parts = [cifar10_records(10, offset)[1:] for offset in offsets]
        labels = np.concatenate([part[0] for part in parts])
        images = np.concatenate([part[1] for part in parts])
        if name == "cifar100":
            labels = np.arange(len(labels)) % 100
        order = np.argsort(labels, kind="stable")
        for k, rows in enumerate(np.array_split(order, shards)):
            cells = []
            for row in rows:
                buffer = io.BytesIO()
                Image.fromarray(images[row].transpose(1, 2, 0)).save(buffer, "PNG")
                cells.append({"bytes": buffer.getvalue(), "path": None})
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            table = pa.table(
                {"img": pa.array(cells, kind), column: labels[rows].astype(np.int64)},
                metadata={"huggingface": json.dumps(metadata)},
            )
            path = folder / f"{split}-{k:05d}-of-{shards:05d}.parquet"
            pq.write_table(table, path, row_group_size=7)
    return folder


def py2_pickle(entries):
    """Pickle a dictionary of arrays and lists of numbers or words, as Python 2 did for CIFAR."""

    def word(text):
        return b"U" + bytes([len(text)]) + text

    def value(held):
        if isinstance(held, np.ndarray):
            state = b"(K\x01" + b"".join(b"J" + n.to_bytes(4, "little") for n in held.shape[:1])
            state = b"(K\x01(" + b"".join(b"J" + n.to_bytes(4, "little") for n in held.shape) + b"t"
            kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
            kind += b"J\xff\xff\xff\xffK\x00tb"
            raw = held.tobytes()
            state += kind + b"I00\nT" + len(raw).to_bytes(4, "little") + raw + b"t"
            start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
            return start + state + b"b"
        parts = [word(x) if isinstance(x, bytes) else b"K" + bytes([x]) for x in held]
        return b"](" + b"".join(parts) + b"e"

    items = b"".join(word(key) + value(held) for key, held in entries.items())
    return b"\x80\x02}(" + items + b"u."


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_layout_for_python_gives_the_rows_of_the_binary_one(tmp_path, name):
    """The folder that torchvision keeps, pickled by Python 2."""
    inner, members, (names_file, names_key), label_key = pickles.LAYOUTS[name]
    count = KNOWN[name].num_classes
    home = tmp_path / inner
    home.mkdir()
    words = [f"c{c}".encode() for c in range(count)]
    (home / names_file).write_bytes(py2_pickle({names_key.encode(): words}))
    drawn = {}
    for split, files in members.items():
        for k, file in enumerate(files):
            images = np.stack(
                [picture(9 * k + i).transpose(2, 0, 1).reshape(-1) for i in range(2 * count)]
            )
            labels = [(7 * i + k) % count for i in range(2 * count)]
            held = {b"data": images, label_key.encode(): labels}
            (home / file).write_bytes(py2_pickle(held))
            drawn.setdefault(split, []).append((images, labels))
    train = open_data(DataSpec(name), path=tmp_path, download=False)
    test = open_data(DataSpec(name), path=tmp_path, split="test", download=False)
    for samples, split in ((train, "train"), (test, "test")):
        images = np.concatenate([part[0] for part in drawn[split]])
        labels = np.concatenate([part[1] for part in drawn[split]])
        order = np.argsort(labels, kind="stable")
        assert samples.targets.tolist() == labels[order].tolist()
        assert np.array_equal(samples.inputs.numpy().reshape(-1, 3072), images[order])
    assert train.class_names[:2] == ("c0", "c1")


def test_a_pickle_that_names_code_is_refused_and_runs_nothing(tmp_path):
    inner, members, (names_file, _), _ = pickles.LAYOUTS["cifar100"]
    home = tmp_path / inner
    home.mkdir()
    harm = (
        b"cos\nmkdir\n(U" + bytes([len(str(tmp_path / "harm"))]) + str(tmp_path / "harm").encode()
    )
    for file in (*members["train"], *members["test"], names_file):
        (home / file).write_bytes(b"\x80\x02" + harm + b"tR.")
    with pytest.raises(SpectraError, match=r"names os\.mkdir, which could run code"):
        open_data(DataSpec("cifar100"), path=tmp_path, download=False)
    assert not (tmp_path / "harm").exists()


def test_the_binary_archive_is_fetched_checked_and_unpacked_once(tmp_path, toronto, capfd):
    home = tmp_path / "data"
    home.mkdir()
    train = open_data(DataSpec("cifar10"), path=home)
    assert train.counts == (5,) * 10
    assert train.class_names[:2] == ("plane", "car")
    assert torch.equal(train.inputs[0], torch.from_numpy(cifar10_records(10, 10)[2][9]))
    assert not (tmp_path / "guest.bin").exists()
    unpacked = sorted(p.name for p in (home / "cifar-10-batches-bin").iterdir())
    assert unpacked == [
        "batches.meta.txt",
        *(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test_batch.bin",
    ]
    (home / "cifar-10-binary.tar.gz").unlink()
    toronto.unlink()
    assert len(open_data(DataSpec("cifar10"), path=home, split="test")) == 10


def test_an_archive_with_another_checksum_is_refused(tmp_path, toronto):
    with tarfile.open(toronto, "w:gz"):
        pass
    with pytest.raises(SpectraError, match=r"could not be fetched.*hash"):
        open_data(DataSpec("cifar10"), path=tmp_path)


def test_an_archive_that_lacks_a_member_leaves_a_clear_line(tmp_path, toronto, monkeypatch):
    archive = sources.CIFAR_ARCHIVES["cifar10"]
    members = {"train": ["data_batch_9.bin"], "test": ["test_batch.bin"]}
    monkeypatch.setitem(sources.CIFAR_ARCHIVES, "cifar10", (archive[0], members, archive[2]))
    with pytest.raises(SpectraError, match=r"data_batch_9\.bin"):
        open_data(DataSpec("cifar10"), path=tmp_path)


def test_two_processes_may_unpack_one_archive_at_once(tmp_path, monkeypatch):
    """The second begins and ends while the first is within a file."""
    archive = cifar10_archive(tmp_path / "toronto")
    home, copy, turns = tmp_path / "data", shutil.copyfileobj, iter([True])
    files = ["data_batch_1.bin", "test_batch.bin"]
    unpack = functools.partial(sources._unpack, archive, "cifar-10-batches-bin", files, home)

    def interleaved(source, target):
        if next(turns, False):
            target.write(source.read(100))
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: 0)
                unpack()
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfileobj", interleaved)
    unpack()
    assert sorted(path.name for path in home.iterdir()) == files
    assert (home / files[0]).read_bytes() == cifar10_records(10, 10)[0]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), EOFError("cut short")])
def test_unpacking_that_fails_leaves_whole_files_only(tmp_path, toronto, monkeypatch, error):
    copy, turns = shutil.copyfileobj, iter([True, True])

    def failing(source, target):
        copy(source, target)
        if not next(turns, False):
            raise error

    monkeypatch.setattr(sources, "shutil", types.SimpleNamespace(copyfileobj=failing))
    with pytest.raises(SpectraError, match=f"cannot be unpacked.*{error.args[-1]}") as caught:
        open_data(DataSpec("cifar10"), path=tmp_path)
    assert "--out" not in str(caught.value)
    left = [path.name for path in (tmp_path / "cifar-10-batches-bin").iterdir()]
    assert sorted(left) == ["data_batch_1.bin", "data_batch_2.bin"]


def test_a_missing_archive_without_a_network_says_what_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CIFAR_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(SpectraError, match=r"looked for cifar-10-binary.tar.gz, .* and train-\*"):
        open_data(DataSpec("cifar10"), path=tmp_path)


def test_a_binary_file_cut_short_is_refused(tmp_path, toronto):
    open_data(DataSpec("cifar10"), path=tmp_path)
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SpectraError, match="cut short"):
        open_data(DataSpec("cifar10"), path=tmp_path)


def test_cifar100_binary_takes_the_fine_label(tmp_path):
    for name, n in (("train.bin", 100), ("test.bin", 100)):
        records = [bytes([7, i]) + picture(i).transpose(2, 0, 1).tobytes() for i in range(n)]
        (tmp_path / name).write_bytes(b"".join(records))
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"f{i}" for i in range(100)))
    samples = open_data(DataSpec("cifar100"), path=tmp_path)
    assert samples.targets.tolist() == list(range(100))
    assert samples.class_names[99] == "f99"
    assert torch.equal(samples.inputs[3], torch.from_numpy(picture(3).transpose(2, 0, 1)))


@pytest.mark.parametrize("place", [".", "cifar10", "data", "plain_text", "cifar10/data"])
def test_hub_shards_are_found_where_the_hub_puts_them(tmp_path, place):
    hub(tmp_path / place)
    assert open_data(DataSpec("cifar10"), path=tmp_path).counts == (5,) * 10


@pytest.mark.parametrize("spec", [DataSpec("cifar10"), DataSpec("cifar10", "exp", 5)])
def test_both_layouts_of_cifar_give_the_same_rows_and_fingerprints(tmp_path, toronto, spec):
    (tmp_path / "binary").mkdir()
    for split in ("train", "test"):
        binary = open_data(spec, path=tmp_path / "binary", split=split)
        parquet = open_data(spec, path=hub(tmp_path / "hub"), split=split)
        assert binary.draw_sha256 == parquet.draw_sha256
        assert binary.pixels_sha256 == parquet.pixels_sha256
        assert parquet.class_names[0] == "class 0"


def test_only_the_drawn_rows_are_decoded(tmp_path, monkeypatch):
    seen = []
    decode = sources.decode_images
    monkeypatch.setattr(
        sources, "decode_images", lambda files, **kw: seen.append(len(files)) or decode(files, **kw)
    )
    samples = open_data(DataSpec("cifar10", "exp", 5.0), path=hub(tmp_path))
    assert seen == [len(samples)] == [sum(samples.counts)]
    assert samples.counts[0] == 5
    assert samples.counts[9] == 1


def test_the_test_split_is_never_long_tailed(tmp_path):
    test = open_data(DataSpec("cifar10", "exp", 5.0), path=hub(tmp_path), split="test")
    assert test.counts == (1,) * 10


def test_an_empty_class_in_the_files_is_named(tmp_path):
    with pytest.raises(SpectraError, match="class 50 of 100"):
        open_data(DataSpec("cifar100"), path=hub(tmp_path, "cifar100"))


def test_a_damaged_parquet_file_is_refused(tmp_path):
    shard = hub(tmp_path, shards=1) / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(SpectraError, match="cannot be read"):
        open_data(DataSpec("cifar10"), path=tmp_path)


def test_a_parquet_file_of_other_columns_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(SpectraError, match=r"img \{bytes, path\}"):
        open_data(DataSpec("cifar10"), path=tmp_path)


def test_labels_outside_the_range_are_refused(tmp_path):
    shards = [hub(tmp_path, "cifar100", shards=1) / "train-00000-of-00001.parquet"]
    source = sources.hub_parquet(shards, 100)
    with pytest.raises(SpectraError, match="from 0 to 49; expected 0 to 9"):
        sources.Source(source.labels, ("",) * 10, source.decode)


def folder_of(root, split, classes, suffix="png", side=8):
    for c, name in enumerate(classes):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            Image.fromarray(picture(10 * c + i, side)).save(
                root / split / name / f"{i}.{suffix}", lossless=True
            )


@pytest.mark.parametrize(("suffix", "test"), [("png", "test"), ("webp", "val")])
def test_an_image_folder_is_read_by_the_names_of_its_classes(tmp_path, suffix, test):
    folder_of(tmp_path, "train", ["cat", "ant"], suffix)
    folder_of(tmp_path, test, ["ant"], suffix)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    train = open_data(DataSpec("folder"), path=tmp_path)
    assert train.class_names == ("ant", "cat")
    assert train.counts == (3, 3)
    assert train.augmentation == "resized-crop-flip-jitter:0.4"
    assert torch.equal(train.inputs[3], torch.from_numpy(picture(0, 8).transpose(2, 0, 1)))
    assert open_data(DataSpec("folder"), path=tmp_path, split="test").counts == (3, 0)


def test_an_image_folder_holds_what_torchvision_finds_in_it(tmp_path):
    """Folders inside a class count, and so do the other suffixes that it knows."""
    for place in ("a/0.bmp", "a/deep/er/1.TIFF", "b/2.ppm", "b/notes.txt"):
        path = tmp_path / "train" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.fromarray(picture(len(place), 8)).save(path)
    assert open_data(DataSpec("folder"), path=tmp_path).counts == (2, 1)


@pytest.mark.parametrize("name", ["folder", "list", "imagenet-lt", "inat2018"])
def test_image_files_are_augmented_as_the_large_sets_were(name):
    """paper.md 4.5: RandomResizedCrop, flip, ColorJitter(.4, .4, .4, 0)."""
    assert KNOWN[name].augmentation == "resized-crop-flip-jitter:0.4"


def test_an_image_folder_can_be_drawn_and_frozen(tmp_path):
    folder_of(tmp_path, "train", ["a", "b"])
    samples = open_data(DataSpec("folder"), path=tmp_path)
    generator = torch.Generator().manual_seed(2)
    live = torch.cat([samples.prepared(generator=generator) for _ in range(2)])
    assert live.shape == (12, 3, 8, 8)
    assert not torch.equal(live[:6], samples.prepared())
    assert torch.equal(samples.frozen(2, seed=2).prepared(), live)


def test_images_of_unequal_size_are_cut_to_the_recipe(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(picture(0, 300, 400)).save(tmp_path / "train" / "a" / "0.png")
    Image.fromarray(picture(1, 500, 260)).save(tmp_path / "train" / "a" / "1.jpg")
    samples = open_data(DataSpec("folder"), path=tmp_path)
    assert samples.inputs.shape == (2, 3, 224, 224)
    small = Image.fromarray(picture(0, 300, 400)).resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(small.crop((58, 16, 282, 240))).transpose(2, 0, 1)
    assert torch.equal(samples.inputs[0], torch.from_numpy(expected.copy()))
    chosen = open_data(DataSpec("folder", image_size=28), path=tmp_path)
    assert chosen.inputs.shape == (2, 3, 28, 28)


def test_images_of_two_sizes_are_refused_for_training_and_test() -> None:
    train, test = (
        Samples(torch.zeros(2, 3, side, side), torch.tensor([0, 1]), 2, ("a", "b"))
        for side in (8, 9)
    )
    with pytest.raises(SpectraError, match="3 × 8 × 8 and the test images 3 × 9 × 9"):
        require_one_size(train, test)
    require_one_size(train, train)
    texts = Samples(torch.zeros(2, 5), torch.tensor([0, 1]), 2, ("a", "b"))
    require_one_size(texts, replace(texts, inputs=torch.zeros(2, 7)))  # lengths may differ


@pytest.mark.parametrize("name", ["folder", "list", "imagenet-lt"])
def test_a_folder_without_the_layout_says_what_was_looked_for(tmp_path, name):
    with pytest.raises(SpectraError, match=f"holds no {name} data; looked for"):
        open_data(DataSpec(name), path=tmp_path)


def test_a_folder_without_test_images_says_so(tmp_path):
    folder_of(tmp_path, "train", ["a"])
    with pytest.raises(SpectraError, match="looked for test/ and val/"):
        open_data(DataSpec("folder"), path=tmp_path, split="test")
    folder_of(tmp_path, "test", ["a", "stranger"])
    with pytest.raises(SpectraError, match="stranger"):
        open_data(DataSpec("folder"), path=tmp_path, split="test")


def test_data_are_found_through_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRA_DATA", str(hub(tmp_path / "here")))
    assert len(open_data(DataSpec("cifar10"))) == 50
    monkeypatch.setenv("SPECTRA_DATA", str(tmp_path / "gone"))
    with pytest.raises(SpectraError, match="from SPECTRA_DATA"):
        open_data(DataSpec("cifar10"))
    assert len(open_data(DataSpec("digits"), split="test")) == 400
    monkeypatch.delenv("SPECTRA_DATA")
    with pytest.raises(SpectraError, match="give --data FOLDER or set SPECTRA_DATA"):
        open_data(DataSpec("cifar10"))


def test_a_missing_folder_and_an_unknown_split_are_refused(tmp_path):
    with pytest.raises(SpectraError, match="does not exist"):
        open_data(DataSpec("cifar10"), path=tmp_path / "nowhere")
    with pytest.raises(SpectraError, match="expected train or test"):
        open_data(DataSpec("digits"), split="valid")


def test_data_of_another_number_of_classes_are_refused(tmp_path):
    with pytest.raises(SpectraError, match="10 classes; cifar100 has 100"):
        open_data(DataSpec("cifar100"), path=hub(tmp_path))


def test_an_image_that_is_missing_in_the_parquet_is_refused(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": None, "path": "elsewhere.png"}] * 10, kind)
    table = pa.table({"img": cells, "label": list(range(10))})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(SpectraError, match="0 bytes cannot be decoded"):
        open_data(DataSpec("cifar10"), path=tmp_path)


@pytest.fixture(scope="module")
def cifar10_lt(real_data):
    return open_data(DataSpec("cifar10", "exp", 100), path=real_data, download=False)


def test_the_real_cifar10_gives_the_published_long_tail(cifar10_lt):
    assert cifar10_lt.counts == (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    assert cifar10_lt.class_names[8:] == ("ship", "truck")
    assert cifar10_lt.draw_sha256.startswith("b0338e7a")
    # The released draw: seed 0, the positions of a class shuffled, the first n kept.
    generator = np.random.RandomState(0)
    for c in range(10):
        order = np.arange(5000)
        generator.shuffle(order)
        positions = cifar10_lt.of_class(c).positions
        assert positions.tolist() == order[: cifar10_lt.counts[c]].tolist()


def test_the_real_long_tail_exports_without_loss_and_small(cifar10_lt, tmp_path):
    part = cifar10_lt.select(torch.arange(0, len(cifar10_lt), 10))
    file = export(part, tmp_path, "train")
    assert open_data(path=tmp_path).pixels_sha256 == part.pixels_sha256
    assert file.stat().st_size < 22e6 / 10


def test_the_real_cifar100_has_the_published_size_and_tail(real_data):
    spec = DataSpec("cifar100", "exp", 100)
    source = sources.open_source(spec, real_data, "train", download=False)
    rows, _ = draw(source.labels, 100, spec)
    assert len(rows) == 10_847
    assert source.class_names[99] == "worm"
    pixels = source.decode(rows[::50]) / 255
    assert np.allclose(pixels.mean((0, 2, 3)), (0.507, 0.487, 0.441), atol=0.03)


def test_the_training_files_are_put_in_the_official_order_however_a_copy_holds_them():
    """The hub's CIFAR-10 begins with the fourth file: a draw by position kept other images."""
    generator = np.random.default_rng(0)
    parts = [np.repeat(np.arange(10), counts) for counts in official._BATCHES]
    files = [generator.permutation(part) for part in parts]
    labels = np.concatenate(files)
    for order in ([3, 2, 1, 4, 0], [0, 1, 2, 3, 4]):
        copy = np.concatenate([files[k] for k in order])
        places = np.concatenate([np.arange(10_000) + 10_000 * k for k in order])  # official rows
        rows = official.official_order(copy)
        assert np.array_equal(copy[rows], labels)
        assert np.array_equal(places[rows], np.arange(50_000))
    for other in (np.sort(labels), generator.permutation(labels), labels[:500]):
        assert np.array_equal(official.official_order(other), np.arange(len(other)))


def test_a_source_in_another_order_decodes_the_images_of_its_labels(tmp_path):
    source = sources.hub_parquet(sorted(hub(tmp_path).glob("train-*.parquet")), 10)
    rows = np.random.default_rng(0).permutation(len(source.labels))
    turned = sources.in_order(source, rows)
    assert np.array_equal(turned.labels, source.labels[rows])
    wanted = np.array([7, 0, 31])
    assert np.array_equal(turned.decode(wanted), source.decode(rows[wanted]))
