"""A set that does not fit into memory is refused before it is decoded."""

import os

import numpy as np
import pytest
from PIL import Image

from spectra.data import DataSpec, images, open_data
from spectra.data.memory import free_memory, refuse_what_does_not_fit
from spectra.errors import SpectraError
from tests.made_up import write_list_set

GIGA = 10**9


def test_the_training_part_of_inaturalist_is_weighed():
    refuse_what_does_not_fit((437_513, 3, 224, 224), 66 * GIGA)
    refuse_what_does_not_fit((437_513, 3, 224, 224), None)
    with pytest.raises(SpectraError) as caught:
        refuse_what_does_not_fit((437_513, 3, 224, 224), 16 * GIGA)
    message = str(caught.value)
    assert message.startswith("437513 images of 3 × 224 × 224 take 65.9 GB of memory as uint8 and ")
    assert "16.0 GB are free" in message
    assert "smaller image size" in message
    assert "\n" not in message


@pytest.mark.parametrize(("spec", "needed"), [
    (DataSpec("list"), 14 * 3 * 40 * 40),
    (DataSpec("list", image_size=8), 14 * 3 * 8 * 8),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_it_is_decoded(tmp_path, monkeypatch, spec, needed):
    write_list_set(tmp_path)
    monkeypatch.setattr(images, "free_memory", lambda: needed)
    assert open_data(spec, path=tmp_path).inputs.numel() == needed
    monkeypatch.setattr(images, "free_memory", lambda: needed - 1)
    monkeypatch.setattr(images, "_decode", None)
    with pytest.raises(SpectraError, match="14 images of 3 × "):
        open_data(spec, path=tmp_path)


def test_one_large_original_does_not_stop_a_set_that_is_cut(tmp_path, monkeypatch):
    """Images of many sizes are weighed as what they are cut to, not as the first of them lies."""
    for k, side in enumerate((2000, 300)):
        Image.fromarray(np.zeros((side, side, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
    (tmp_path / "train.txt").write_text("0.png 0\n1.png 0\n")
    monkeypatch.setattr(images, "free_memory", lambda: 2 * 3 * 224 * 224)
    assert open_data(DataSpec("list"), path=tmp_path).inputs.shape == (2, 3, 224, 224)
    monkeypatch.setattr(images, "free_memory", lambda: 2 * 3 * 224 * 224 - 1)
    with pytest.raises(SpectraError, match="2 images of 3 × 224 × 224"):
        open_data(DataSpec("list"), path=tmp_path)


def system(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  64000000 kB\nMemFree: 1 kB\nMemAvailable: 8000000 kB\n"}
JOB = "sys/fs/cgroup/slurm/job_1"
OLD = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8_192_000_000),
        ({"proc/self/cgroup": "0::/\n"}, 8_192_000_000),
        (
            {
                "proc/self/cgroup": "0::/slurm/job_1/step_0\n",
                f"{JOB}/step_0/memory.max": "max\n",
                f"{JOB}/step_0/memory.current": "5\n",
                f"{JOB}/memory.max": "4000000000\n",
                f"{JOB}/memory.current": "3000000000\n",
                f"{JOB}/memory.stat": "anon 7\ninactive_file 500000000\n",
            },
            1_500_000_000,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/not/here\n",
                f"{OLD}/memory.limit_in_bytes": "2000000000\n",
                f"{OLD}/memory.usage_in_bytes": "2100000000\n",
                f"{OLD}/memory.stat": "inactive_file 1\n",
            },
            0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                f"{OLD}/memory.limit_in_bytes": "9223372036854771712\n",
                f"{OLD}/memory.usage_in_bytes": "2100000000\n",
            },
            8_192_000_000,
        ),
    ],
    ids=["machine", "no-limit", "job", "container", "old-no-limit"],
)
def test_free_memory_is_the_least_of_machine_and_groups(tmp_path, files, expected):
    assert free_memory(system(tmp_path, MEMINFO | files)) == expected


def test_a_system_that_says_nothing_counts_all_it_has(tmp_path, monkeypatch):
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert free_memory(tmp_path) == pages
    monkeypatch.setattr(os, "sysconf_names", {})
    assert free_memory(tmp_path) is None


def test_this_machine_has_some_memory():
    free = free_memory()
    assert free is not None
    assert 10**6 < free < 10**14
