"""What every benchmark shares: a problem, interleaved timing, a table and a result file.

Seconds do not transfer from machine to machine; ratios within one run do.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectra.models import ModelSpec


def processor_time() -> float:
    """Give the seconds of computing of this process and of those that it waited for, a compiler."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


# On one thread the processor's time is the better clock: other processes hardly disturb it.
ALONE = torch.get_num_threads() == 1 and not torch.cuda.is_available()
clock: Callable[[], float] = processor_time if ALONE else time.perf_counter
CLOCK = clock.__name__
if ALONE:  # read when the compiler is first needed; its pool's processes would not be counted
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "curvlinops-for-pytorch", "pyhessian", "hessian-eigenthings")


def options(question: str | None) -> argparse.ArgumentParser:
    """Make the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=question and question.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples and repetitions")
    parser.add_argument("--arch", default="resnet32", help="network (resnet32)")
    parser.add_argument("--repetitions", type=int, default=3, help="that count (3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    return parser


def problem(
    arch: str, samples: int, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Tensor, Tensor]:
    """Build a network and random CIFAR-shaped data, the batch norms' statistics taken from them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 3, 32, 32, generator=generator)
    targets = torch.randint(10, (samples,), generator=generator)
    model = ModelSpec(arch, 10).build(seed=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # plain average instead of a tenth of it
    with torch.no_grad():
        model(inputs[:128])
    return model.eval().to(device), inputs.to(device), targets.to(device)


def wait() -> None:
    """Wait until the GPU has done all it was given, where there is one at work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes(task: Callable[[], Any]) -> int:
    """Run a task and count the bytes that it had at most beside what was there before.

    On a CPU resident memory, which moves in steps of pages and pools: a few MB are noise.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        task()
        return int(torch.cuda.max_memory_allocated() - before)
    ctypes.CDLL(None).malloc_trim(0)  # what an earlier task freed must not be there to be reused
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    task()
    return status("VmHWM") - before


def status(key: str) -> int:
    """Read a line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def interleaved(
    tasks: Mapping[str, Callable[[], Any]], repetitions: int, now: Callable[[], float] = clock
) -> dict[str, float]:
    """Time the tasks in turns, so that a busy minute hits all; give medians by the clock `now`.

    The first turn warms up and does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repetitions + 1):
        for name, task in tasks.items():
            wait()
            start = now()
            task()
            wait()
            if turn > 0:
                seconds[name].append(now() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under their headings."""
    text = [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *text, strict=True)]
    for row in (columns, *text):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def fallen_back(way: object) -> str:
    """Say what a kept product does otherwise than its name tells; empty where nothing."""
    kept = getattr(getattr(way, "func", way), "__self__", None)
    told = (getattr(kept, "note", ""), getattr(kept, "launched", ""))
    return "; ".join(filter(None, told))


def processor() -> str:
    """Name the CPU; by its family, too, where its name has no number."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = re.findall(r"model name\s*: (.*)", text)
    name = names[0].strip() if names else platform.processor() or platform.machine()
    family = re.findall(r"cpu family\s*: (\d+)", text)
    return name if re.search(r"\d", name) or not family else f"{name} family {family[0]}"


def commit() -> str | None:
    """Name the commit that the code lies at, and whether it has changed since; None without git."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    return None


def save(
    name: str,
    folder: Path,
    settings: dict[str, Any],
    results: dict[str, Any],
    *,
    clock_name: str = CLOCK,
) -> Path:
    """Write a result file that says where and with what it was made, without any path."""
    cpu, instructions = processor(), torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    record = {
        "benchmark": name,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "machine": {
            "cpu": cpu,
            "instructions": instructions,
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "load_average_1min": round(os.getloadavg()[0], 2),
        },
        "commit": commit(),
        "versions": {"python": platform.python_version()}
        | {d.name.lower(): d.version for d in distributions() if d.name.lower() in PACKAGES},
        "threads": threads,
        "clock": clock_name,
        "settings": settings,
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    where = settings.get("device", "cpu")
    if where.startswith("cpu"):  # one name covers processors of very different speed
        where = f"{cpu} {instructions}" + (f" {threads} threads" if threads > 1 else "")
    path = folder / f"{name}-{re.sub('[^a-z0-9]+', '-', where.lower()).strip('-')}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path
