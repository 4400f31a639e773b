"""What does an epoch of the trainer cost beside the bare passes and update of the same batches?

"bare" is forward, backward and torch's own SGD over batches that lie ready, normalised and
channels-last (for sam: two passes each way, without the climb between them); the trainer also
shuffles, crops, mirrors, normalises, weighs, logs, and for sam climbs and puts the weights back.
Each row is a ratio to the bare row of the same step and precision, of the same run. Images are
random: speed does not depend on them. On a GPU also the recorded paths; the seconds of 200 epochs
of CIFAR-10-LT at ratio 100 (12,406 images) are scaled from the epochs timed, without evaluation.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from common import interleaved, options, save, table
from torch import Tensor

from spectra.data import Samples
from spectra.devices import arithmetic, device_name, find_device, keep_freed_memory
from spectra.losses import LossSpec
from spectra.models import ModelSpec
from spectra.training.engine import Engine
from spectra.training.loop import run_epoch
from spectra.training.recipes import Recipe

IMAGES = 12_406  # CIFAR-10-LT at ratio 100


def bare_epoch(
    network: torch.nn.Module, batches: Sequence[tuple[Tensor, Tensor]], recipe: Recipe
) -> float:
    """Pass over prepared batches, update after each; give the last loss."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-3, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    loss = LossSpec.cross_entropy()
    bf16 = recipe.precision == "bf16"
    for x, y in batches:
        for _ in range(2 if recipe.step == "sam" else 1):
            optimizer.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                logits = network(x)
            value = loss.per_sample(logits.float(), y).mean()
            value.backward()
        optimizer.step()
    return value.item()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--samples", type=int, help="images of an epoch: 12,406; 640 with --quick")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--paths", help="plain,compiled,... (plain; on a GPU all but compiled)")
    parser.add_argument("--precisions", help="float32,bf16 (and tf32 on a GPU)")
    args = parser.parse_args(arguments)
    device = find_device(args.device)
    gpu = device.type == "cuda"
    if not gpu:
        keep_freed_memory()  # as the command does; both arms have it
    paths = (args.paths or ("plain,graph,compiled-graph" if gpu else "plain")).split(",")
    precisions = (args.precisions or ("float32,tf32,bf16" if gpu else "float32,bf16")).split(",")
    n = args.samples or (640 if args.quick else IMAGES)
    draw = torch.Generator().manual_seed(0)
    samples = Samples(
        torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=draw).to(device),
        torch.randint(10, (n,), generator=draw).to(device),
        10,
        tuple("0123456789"),
        (0.5,) * 3,
        (0.25,) * 3,
        "crop-flip:4",
    )

    def network() -> torch.nn.Module:
        built = ModelSpec(args.arch, 10).build().to(device).train()
        return built.to(memory_format=torch.channels_last)

    engines: dict[str, Engine] = {}
    tasks: dict[str, Callable[[], object]] = {}
    settings: dict[str, tuple[str, str, str]] = {}
    for step in ("sgd", "sam"):
        for precision in precisions:
            recipe = Recipe("benchmark", "cifar10", args.arch, precision=precision, lr=1e-3)
            if step == "sam":
                recipe = replace(recipe, step=step, rho=0.05)
            batches = [
                (
                    samples.select(index).prepared(device=device).contiguous(
                        memory_format=torch.channels_last
                    ),
                    samples.targets[index],
                )
                for index in torch.arange(n, device=device).split(recipe.batch_size)
            ]  # fmt: skip
            mode = "tf32" if precision == "tf32" else "ieee"

            def run(task: Callable[[], object], mode: str = mode) -> None:
                with arithmetic(device, precision=mode):
                    task()

            name = f"{step} {precision} bare"
            tasks[name] = partial(run, partial(bare_epoch, network(), batches, recipe))
            settings[name] = (step, precision, "bare")
            for path in paths:
                engine = Engine(recipe, network(), samples.counts, path)
                name = f"{step} {precision} {path}"
                epoch = partial(run_epoch, engine, samples, torch.Generator(), lambda _: None)
                tasks[name], engines[name] = partial(run, epoch), engine
                settings[name] = (step, precision, path)
    seconds = interleaved(tasks, args.repetitions)

    results = {}
    for name, (step, precision, path) in settings.items():
        engine, base = engines.get(name), seconds.get(f"{step} float32 {path}")
        results[name] = {
            "step": step,
            "precision": precision,
            "path": engine.way if engine else path,
            "note": engine.note if engine else "",
            "seconds": seconds[name],
            "of_bare": seconds[name] / seconds[f"{step} {precision} bare"],
            "of_float32": seconds[name] / base if base else None,
            "images_per_second": n / seconds[name],
            "seconds_of_200_epochs": 200 * IMAGES / n * seconds[name],
        }
    columns = ["step", "precision", "path", "seconds", "of_bare", "of_float32", "images_per_second"]
    table(columns, [[row[key] for key in columns] for row in results.values()])
    where = {"arch": args.arch, "samples": n, "batch_size": 128, "device": device_name(device)}
    written = save("training", args.out, {**where, "repetitions": args.repetitions}, results)
    print(f"written: {written.name}")


if __name__ == "__main__":
    main()
