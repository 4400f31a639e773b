"""List files as somebody has them who downloaded ImageNet-LT or iNaturalist 2018."""

import io
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from spectra.data import DataSpec, images, lists, open_data
from spectra.errors import SpectraError
from tests.made_up import write_list_set

SMALL = DataSpec("list", image_size=8)
SPLITS = "train", "test"


@pytest.fixture
def home(tmp_path):
    return write_list_set(tmp_path / "home")


def colours(samples):
    """Return the mean colour of each image, to tell which it is."""
    return samples.inputs.double().mean((2, 3))


def test_the_made_up_set_opens_and_its_colours_tell_the_classes(home):
    train, test = (open_data(DataSpec("list"), path=home, split=split) for split in SPLITS)
    assert (train.counts, test.counts) == ((8, 4, 2), (4, 4, 4))
    assert train.inputs.shape == (14, 3, 40, 40)
    assert train.augmentation == "resized-crop-flip-jitter:0.4"
    shades = [colours(samples) / colours(samples).norm(dim=1, keepdim=True) for samples in
              (train, test)]  # fmt: skip
    centres = torch.stack([shades[0][train.targets == c].mean(0) for c in range(3)])
    assert torch.equal((shades[1] @ centres.T).argmax(1), test.targets)


def test_the_made_up_set_is_the_same_each_time(tmp_path):
    first, second = (
        open_data(DataSpec("list"), path=write_list_set(tmp_path / k, 2, (3, 1), 9)) for k in "ab"
    )
    assert first.pixels_sha256 == second.pixels_sha256
    assert first.counts == (3, 1)


def test_lines_name_paths_with_blanks_and_labels_after_any_white_space(home):
    picture = Image.fromarray(np.full((8, 8, 3), 7, dtype=np.uint8))
    (home / "odd ones").mkdir()
    picture.save(home / "odd ones" / "a b.png")
    text = "\ufeffodd ones/a b.png\t1\r\n\r\n  train/n00000000/n00000000_1.png   0  \n"
    (home / "ImageNet_LT_train.txt").write_text(text, encoding="utf-8")
    samples = open_data(SMALL, path=home)
    assert samples.counts == (1, 1)
    assert bool((samples.inputs[1] == 7).all())


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_name_that_is_no_utf8_opens(home):
    name = "n\xe4.png".encode("latin-1")
    shutil.copy(home / "train/n00000000/n00000000_1.png", bytes(home) + b"/" + name)
    (home / "ImageNet_LT_train.txt").write_bytes(name + b" 0\n")
    assert open_data(SMALL, path=home).counts == (1,)


def test_the_test_list_goes_before_the_validation_list(home):
    """paper.md 4.5: the test list of ImageNet-LT; the validation list where there is no other."""
    lines = (home / "ImageNet_LT_test.txt").read_text().splitlines()
    (home / "ImageNet_LT_val.txt").write_text(lines[0])
    assert len(open_data(SMALL, path=home, split="test")) == 12
    (home / "ImageNet_LT_test.txt").unlink()
    assert len(open_data(SMALL, path=home, split="test")) == 1
    (home / "ImageNet_LT_val.txt").unlink()
    (home / "other_test.txt").write_text(lines[0])
    with pytest.raises(SpectraError, match=r"looked for ImageNet_LT_test\.txt and ImageNet_LT_val"):
        open_data(SMALL, path=home, split="test")


def test_a_published_set_takes_the_list_of_its_own_name(home):
    for name in ("iNaturalist18", "Places_LT"):
        shutil.copy(home / "ImageNet_LT_train.txt", home / f"{name}_train.txt")
    found = {name: lists.find_train_list(home, name).name for name in lists.PUBLISHED}
    assert found == {
        "imagenet-lt": "ImageNet_LT_train.txt",
        "inat2018": "iNaturalist18_train.txt",
    }
    with pytest.raises(SpectraError, match=r"holds 3 training lists \(ImageNet_LT_train\.txt, Pl"):
        open_data(SMALL, path=home)
    assert open_data(SMALL, path=home / "Places_LT_train.txt").counts == (8, 4, 2)


def test_all_of_imagenet_is_not_taken_for_its_long_tail(home):
    """A folder train/<class>/ without the list holds all images of the balanced set."""
    (home / "ImageNet_LT_train.txt").unlink()
    with pytest.raises(SpectraError, match=r"holds no imagenet-lt data; looked for ImageNet_LT_tr"):
        open_data(DataSpec("imagenet-lt"), path=home)


def test_lists_in_a_sub_folder_are_found_and_so_are_their_images(home):
    straight = open_data(SMALL, path=home)
    (home / "ImageNet_LT").mkdir()
    for path in home.glob("*.txt"):
        path.rename(home / "ImageNet_LT" / path.name)
    for split in SPLITS:
        assert len(open_data(SMALL, path=home, split=split)) in (14, 12)
    assert open_data(SMALL, path=home).pixels_sha256 == straight.pixels_sha256


def prefix_taken_away(home):
    lines = (home / "ImageNet_LT_train.txt").read_text().replace("train/", "")
    (home / "ImageNet_LT_train.txt").write_text(lines)


def folders_name_added(home):
    lines = (home / "ImageNet_LT_train.txt").read_text().replace("train/", f"{home.name}/train/")
    (home / "ImageNet_LT_train.txt").write_text(lines)


def whole_paths(home):
    lines = (home / "ImageNet_LT_train.txt").read_text().replace("train/", f"{home}/train/")
    (home / "ImageNet_LT_train.txt").write_text(lines)


def lists_and_images_in_one_sub_folder(home):
    (home / "all").mkdir()
    for path in [*home.glob("*.txt"), home / "train", home / "val"]:
        path.rename(home / "all" / path.name)


@pytest.mark.parametrize(
    "change",
    [prefix_taken_away, folders_name_added, whole_paths, lists_and_images_in_one_sub_folder],
)
def test_images_are_found_wherever_a_list_may_count_from(home, change, monkeypatch):
    straight = open_data(SMALL, path=home).pixels_sha256
    change(home)
    assert open_data(SMALL, path=home).pixels_sha256 == straight
    monkeypatch.chdir(home)
    assert open_data(SMALL, path=".").pixels_sha256 == straight


def test_a_missing_image_is_named_with_its_line_before_any_is_decoded(home, monkeypatch):
    for k in (1, 3):
        (home / f"train/n00000001/n00000001_{k}.png").unlink()
    monkeypatch.setattr(images, "_decode", None)
    with pytest.raises(SpectraError) as caught:
        open_data(SMALL, path=home)
    message = str(caught.value)
    assert "ImageNet_LT_train.txt:10 names train/n00000001/n00000001_1.png, which is not" in message
    assert "2 of 14 images are missing" in message
    assert "\n" not in message


def test_images_that_lie_elsewhere_altogether_say_where_they_were_looked_for(home):
    shutil.rmtree(home / "train")
    with pytest.raises(SpectraError, match=r"_train\.txt:1 .*the folders in it and the one above"):
        open_data(SMALL, path=home)


def test_only_the_images_that_are_drawn_have_to_be_there(home):
    drawn = open_data(DataSpec("list", "exp", 2, image_size=8), path=home)
    assert drawn.counts == (2, 1, 1)
    kept = set(drawn.of_class(0).positions.tolist())
    for k in set(range(8)) - kept:
        (home / f"train/n00000000/n00000000_{k}.{'png' if k % 2 else 'JPEG'}").unlink()
    again = open_data(DataSpec("list", "exp", 2, image_size=8), path=home)
    assert again.pixels_sha256 == drawn.pixels_sha256


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a.png\n", r"train\.txt:1 is 'a.png'"),
        ("\na.png x\n", r"train\.txt:2 is 'a.png x'; expected `path label`"),
        ("a.png -1\n", "expected `path label`"),
        ("a.png 99999999999999999999\n", "expected `path label`"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("a.png 0\n", r"train\.txt:1 names a\.png"),
        ("a.png 1\nb.png 1\n", "class 0 of 2 keeps none.*complete the data"),
        ("a.png 0\n\nb.png 1000000000\n", r"train\.txt:3 has label 1000000000 in a list of 2 im"),
    ],
)
def test_a_wrong_list_is_refused_with_its_line(tmp_path, text, complaint):
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(SpectraError, match=complaint) as caught:
        open_data(DataSpec("list"), path=tmp_path)
    assert "\n" not in str(caught.value)


def test_labels_beyond_the_classes_are_named_with_their_line(home):
    with (home / "ImageNet_LT_test.txt").open("a") as file:
        file.write("val/x.png 3\nval/y.png 4\n")
    with pytest.raises(SpectraError, match=r"_test\.txt:13 has label 3, one of 2 .*classes 0 to 2"):
        open_data(SMALL, path=home, split="test")
    with (home / "ImageNet_LT_train.txt").open("a") as file:
        file.write("train/x.png 1000\n")
    with pytest.raises(SpectraError, match=r"_train\.txt:15 has label 1000.*imagenet-lt has the"):
        open_data(DataSpec("imagenet-lt"), path=home)


def test_a_list_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(SpectraError, match="cannot be read"):
        lists.read_list(tmp_path)
    (tmp_path / "train.txt").mkdir()
    with pytest.raises(SpectraError, match="holds no list data"):
        open_data(DataSpec("list"), path=tmp_path)


def test_a_damaged_image_is_named(home):
    path = home / "train/n00000002/n00000002_0.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(SpectraError, match=r"n00000002_0\.JPEG cannot be decoded"):
        open_data(SMALL, path=home)


RGB = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)


def written(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA"])
def test_every_kind_of_image_becomes_red_green_and_blue(mode):
    picture = Image.fromarray(RGB).convert(mode)
    pixels = images.decode_images([written(picture)])
    assert np.array_equal(pixels[0], np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


def test_alpha_is_dropped_and_not_painted_on_black():
    picture = Image.fromarray(np.dstack([RGB, np.zeros((9, 9), dtype=np.uint8)]))
    assert np.array_equal(images.decode_images([written(picture)])[0], RGB.transpose(2, 0, 1))


def test_a_palette_with_transparency_opens_without_a_warning():
    picture = Image.fromarray(RGB).convert("P")
    file = written(picture, transparency=bytes(range(256)))
    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(images.decode_images([file])[0], expected)


def test_sixteen_bits_of_grey_are_not_clipped_to_white():
    values = np.random.default_rng(1).integers(0, 65536, (9, 9)).astype(np.uint16)
    pixels = images.decode_images([written(Image.fromarray(values))])
    assert np.array_equal(pixels[0], np.broadcast_to(values >> 8, (3, 9, 9)))


def test_four_inks_become_three_lights():
    file = written(Image.new("RGB", (16, 16), (250, 30, 30)).convert("CMYK"), "JPEG")
    pixels = images.decode_images([file])
    assert np.abs(pixels[0].mean((1, 2)) - (250, 30, 30)).max() < 6


@pytest.mark.parametrize("size", [(500, 374), (322, 400), (412, 412), (500, 375), (300, 224)])
def test_the_shorter_side_has_the_size_of_the_released_transform(monkeypatch, size):
    seen = []
    resize = Image.Image.resize

    def noted(picture, size, *args):
        seen.append(size)
        return resize(picture, size, *args)

    monkeypatch.setattr(Image.Image, "resize", noted)
    assert images.decode_images([written(Image.new("RGB", size))], 224).shape[2:] == (224, 224)
    shorter, longer = sorted(size)
    assert sorted(seen[0]) == [256, 256 * longer // shorter]


def test_images_are_decoded_when_they_are_selected_and_are_the_same(home, monkeypatch):
    decode, read = images._decode, []
    monkeypatch.setattr(images, "_decode", lambda file, *a: read.append(file) or decode(file, *a))
    whole = open_data(SMALL, path=home)
    read.clear()
    unread = open_data(SMALL, path=home, on_demand=True)
    assert not read
    assert (unread.counts, unread.draw_sha256) == (whole.counts, whole.draw_sha256)
    assert (unread.inputs.shape, unread.inputs.dtype) == (whole.inputs.shape, torch.uint8)
    assert unread.pixels_sha256 is None
    assert unread.of_class(2).pixels_sha256 == whole.of_class(2).pixels_sha256
    assert [file.parent.name for file in read] == ["n00000002"] * 2
    rows = torch.tensor([13, 0, 5])
    few, some = (samples.frozen(2, 7, rows) for samples in (unread, whole))
    assert (few.pixels_sha256, few.draw_sha256) == (some.pixels_sha256, some.draw_sha256)
    drawn = whole.frozen(2, 7)
    assert torch.equal(some.inputs, drawn.inputs[torch.cat([rows, 14 + rows])])
    for samples in (unread.in_memory(), unread.select(slice(None))):
        assert samples.pixels_sha256 == whole.pixels_sha256
        assert samples.in_memory() is samples
    assert unread.frozen(1, 7).pixels_sha256 == whole.frozen(1, 7).pixels_sha256
    assert torch.equal(
        unread.normalised_by([0], [1]).prepared(), whole.normalised_by([0], [1]).prepared()
    )


def test_a_class_of_one_size_is_cut_where_others_have_other_sizes(home):
    """A class alone must be the same input of the network as among all."""
    Image.fromarray(np.zeros((50, 30, 3), dtype=np.uint8)).save(
        home / "train/n00000000/n00000000_7.png"
    )
    whole, unread = (open_data(DataSpec("list"), path=home, on_demand=on) for on in (False, True))
    assert whole.inputs.shape == unread.inputs.shape == (14, 3, 224, 224)
    assert unread.of_class(2).pixels_sha256 == whole.of_class(2).pixels_sha256


def test_a_missing_image_is_told_before_it_is_needed(home):
    (home / "train/n00000000/n00000000_7.png").unlink()
    with pytest.raises(SpectraError, match="1 of 14 images are missing"):
        open_data(SMALL, path=home, on_demand=True)


def test_a_way_to_read_inputs_goes_with_inputs_that_are_not_read(home):
    """Else a selection would bring back the pixels of before."""
    whole, unread = (open_data(SMALL, path=home, on_demand=on) for on in (False, True))
    for other in ({"inputs": whole.inputs}, {"decode": None}):
        with pytest.raises(SpectraError, match="expected both or neither"):
            replace(unread, **other)


def test_image_files_are_told_apart_by_names_bytes_and_side(home):
    def printed(spec=SMALL, **options):
        return open_data(spec, path=home, **options).files_sha256

    first = printed()
    assert first == printed(on_demand=True)
    assert first not in (printed(DataSpec("list", image_size=6)), printed(split="test"))
    assert open_data(SMALL, path=home).of_class(0).files_sha256 is None
    file = home / "train/n00000000/n00000000_7.png"
    file.write_bytes(file.read_bytes() + b"more")
    assert printed() != first


def test_some_rows_are_read_ahead_and_the_others_when_they_are_selected(home, monkeypatch):
    whole, unread = (open_data(SMALL, path=home, on_demand=on) for on in (False, True))
    ahead = unread.read_ahead(torch.tensor([3, 1, 3]))
    decode, read = images._decode, []
    monkeypatch.setattr(images, "_decode", lambda file, *a: read.append(file) or decode(file, *a))
    for rows, new in (([1, 3, 1], 0), ([0, 3, 13], 2), ([5], 1)):
        read.clear()
        found, wanted = (samples.select(torch.tensor(rows)) for samples in (ahead, whole))
        assert torch.equal(found.inputs, wanted.inputs)
        assert len(read) == new
    assert ahead.in_memory().pixels_sha256 == whole.pixels_sha256
    assert whole.read_ahead(torch.tensor([1])) is whole
