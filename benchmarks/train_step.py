"""Benchmark of training steps: our Trainer against a bare loop and the stock Trainer.

    python benchmarks/train_step.py [--image_size 224] [--batch_size 32] [--steps 20] [--rounds 5]

All contenders get batches from memory. The bare loop does the same as our step without the Trainer (channels
last, bfloat16 where the processor supports it, fused AdamW, gradient clipping, the same augmentation): the
difference is the overhead of the Trainer. The stock Trainer is that of transformers' image classification
example with its defaults (float32), on images that are already transformed; ours augments its images. If
there is a GPU, the images are in its memory. Images/s; the last line is JSON.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from measuring import ROOT, finish, interleaved, median_and_range, print_table, ratio, run_alone
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_pneumonia.modeling.augment import AUGMENTATIONS, Augment
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.training.arguments import Recipe, parse_recipe
from hf_pneumonia.training.launch import setup_torch
from hf_pneumonia.training.trainer import PneumoniaTrainer

WARMUP_STEPS = 3  # steps before the clock starts


class InMemory(torch.utils.data.Dataset):
    """Random images and labels of four batches, over and over, in the format of `ImageDataset`."""

    def __init__(self, steps: int, batch: int, size: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (4 * batch, size, size)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        self.labels = torch.arange(len(self.images)) % 2
        self.cache = SimpleNamespace(folder=Path.cwd())  # there is none to be watched
        self.on_device, self.device, self.length = device.type == "cuda", device, steps * batch
        self._labels = self.labels.to(device)

    def __len__(self) -> int:
        return self.length  # an epoch has all steps: what happens once per epoch is not measured

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        chosen = torch.tensor(indices, pin_memory=self.on_device) % len(self.images)
        chosen = chosen.to(self.device, non_blocking=True)
        return {"pixel_values": self.images[chosen], "labels": self._labels[chosen]}


class Clock(TrainerCallback):
    """Timer from the end of the warm-up to the end of the last step."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == WARMUP_STEPS:
            _wait()
            self.started = time.perf_counter()
        if state.global_step == state.max_steps:
            _wait()
            self.seconds = time.perf_counter() - self.started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def recipe(folder: str, size: int, batch: int, steps: int, augmented: bool, model: str) -> Recipe:
    off = [] if augmented else [f"--{name}=0" for name in AUGMENTATIONS]
    flags = f"--pretrained false --model {model} --image_size {size} --max_steps {steps + WARMUP_STEPS} "
    flags += (
        f"--per_device_train_batch_size {batch} --output_dir {folder} --eval_strategy no --save_strategy no "
    )
    flags += "--ema_decay 0 --load_best_model_at_end false"
    return parse_recipe([str(ROOT / "recipes/resnet18.yaml"), *flags.split(), *off], default=None)[0]


def ours(args: Recipe, images: InMemory) -> float:
    torch.manual_seed(0)
    model = build_model(args.model, args.image_size, args.drop_rate)
    trainer, clock = PneumoniaTrainer(model, args, images, images, Augment(**args.augmentation)), Clock()
    trainer.add_callback(clock)
    trainer.train()
    return (args.max_steps - WARMUP_STEPS) * args.train_batch_size / clock.seconds


def bare(args: Recipe, images: InMemory) -> float:
    torch.manual_seed(0)
    model = build_model(args.model, args.image_size, args.drop_rate).to(
        args.device, memory_format=torch.channels_last
    )
    model.train()
    augment = Augment(**args.augmentation)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, args.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.max_steps)
    for step in range(args.max_steps):
        if step == WARMUP_STEPS:
            _wait()
            started = time.perf_counter()
        batch = images.__getitems__(torch.randint(len(images), (args.train_batch_size,)).tolist())
        labels = batch["labels"]
        inputs = network_input(augment(batch["pixel_values"], labels))
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            logits = model(inputs).logits
            loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    _wait()
    return (args.max_steps - WARMUP_STEPS) * args.train_batch_size / (time.perf_counter() - started)


def stock(args: Recipe, images: InMemory, folder: str) -> float:
    torch.manual_seed(0)
    model = build_model(args.model, args.image_size, args.drop_rate)
    pixels = network_input(images.images.cpu()).contiguous()
    examples = [
        {"pixel_values": one, "labels": int(label)} for one, label in zip(pixels, images.labels, strict=True)
    ] * (len(images) // len(pixels) + 1)

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:  # as the example's own
        stacked = torch.stack([one["pixel_values"] for one in batch])
        return {"pixel_values": stacked, "labels": torch.tensor([one["labels"] for one in batch])}

    clock = Clock()
    settings = TrainingArguments(
        folder,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.per_device_train_batch_size,
        learning_rate=args.learning_rate,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=args.use_cpu,
    )
    Trainer(model, settings, data_collator=collate, train_dataset=examples, callbacks=[clock]).train()
    return (args.max_steps - WARMUP_STEPS) * args.train_batch_size / clock.seconds


CONTENDERS = ("bare loop", "ours", "bare loop, augmented", "ours, augmented", "stock Trainer")


def measure(name: str, args: argparse.Namespace) -> float:
    """Return images/s of one contender in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "stock Trainer":
        setup_torch(device)
    with tempfile.TemporaryDirectory() as folder:
        augmented = "augmented" in name
        settings = recipe(folder, args.image_size, args.batch_size, args.steps, augmented, args.model)
        images = InMemory(args.steps + WARMUP_STEPS, args.batch_size, args.image_size, settings.device)
        if name == "stock Trainer":
            return stock(settings, images, folder)
        return (ours if name.startswith("ours") else bare)(settings, images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args)))
        return
    flags = [f"--{name}={value}" for name, value in vars(args).items() if name not in ("one", "rounds")]
    # Each in a process of its own: how memory is taken, and in which precision, is settled once for all.
    values = interleaved(
        {name: partial(run_alone, __file__, *flags, "--one", name) for name in CONTENDERS}, args.rounds
    )
    table = {name: median_and_range(numbers) for name, numbers in values.items()}
    print_table("images/s", table)
    ratios = {
        "ours / bare loop": ratio(values, "ours", "bare loop"),
        "ours / bare loop, both augmented": ratio(values, "ours, augmented", "bare loop, augmented"),
        "ours / stock Trainer": ratio(values, "ours", "stock Trainer"),
        "ours, augmented / stock Trainer": ratio(values, "ours, augmented", "stock Trainer"),
    }
    print(*(f"{name}: {value}" for name, value in ratios.items()), sep="\n")
    finish(benchmark="train_step", settings=vars(args), images_per_second=table, ratios=ratios)


if __name__ == "__main__":
    main()
