"""Compared training recipes: ours, the stock one of the transformers example, and timm's, on lists of files.

The peers follow their own documentation: transformers' examples/pytorch/image-classification
(run_image_classification.py: PIL, torchvision transforms, Trainer with its defaults) and timm's train.py
(create_dataset, create_loader, its augmentation).
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from measuring import ROOT
from PIL import Image
from sklearn.metrics import roc_auc_score
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_pneumonia.data.cache import open_cache
from hf_pneumonia.modeling.augment import Augment
from hf_pneumonia.modeling.build import MEAN, STD, build_model
from hf_pneumonia.training.arguments import parse_recipe
from hf_pneumonia.training.image_dataset import ImageDataset
from hf_pneumonia.training.launch import setup_torch
from hf_pneumonia.training.trainer import PneumoniaTrainer

Images = list[tuple[str, int]]  # path and label of each


def ours(
    folder: str,
    cache: Path,
    train: Images,
    validation: Images,
    *flags: str,
    recipe: str = "resnet18",
    model: str = "resnet18",
) -> PneumoniaTrainer:
    """Return our Trainer of these images, decoding those that are not in the cache."""
    torch.manual_seed(0)
    argv = [str(ROOT / f"recipes/{recipe}.yaml"), "--pretrained", "false", "--model", model, *flags]
    args, _ = parse_recipe([*argv, "--output_dir", folder], default=None)
    setup_torch(args.device)
    images = [*train, *validation]
    rows = {"train": np.arange(len(train)), "validation": np.arange(len(train), len(images))}
    split = SimpleNamespace(
        cache=open_cache([{"path": path, "bytes": None} for path, _ in images], args.image_size, cache),
        label=np.array([label for _, label in images]),
        rows=rows.get,
        fingerprint=lambda: "the files of a benchmark",
        vertical_class=lambda: 0,
    )
    datasets = [ImageDataset(split, name, args.device) for name in rows]
    model = build_model(args.model, args.image_size, args.drop_rate)
    return PneumoniaTrainer(model, args, *datasets, Augment(**args.augmentation))


def stock(folder: str, size: int, train: Images, validation: Images, **settings: object) -> Trainer:
    """Train like the transformers example, but with our batch size and learning rate."""
    from torchvision.transforms import (
        CenterCrop,
        Compose,
        Normalize,
        RandomHorizontalFlip,
        RandomResizedCrop,
        Resize,
        ToTensor,
    )

    torch.manual_seed(0)
    normalize = Normalize([MEAN] * 3, [STD] * 3)
    augmented = Compose([RandomResizedCrop(size), RandomHorizontalFlip(), ToTensor(), normalize])
    plain = Compose([Resize(size), CenterCrop(size), ToTensor(), normalize])
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=32,
        learning_rate=1e-3,  # ours: the example's own is for weights that were trained before
        warmup_steps=0.1,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **settings,
    )
    return Trainer(
        build_model("resnet18", size),
        arguments,
        data_collator=_collate,
        train_dataset=TransformedImages(train, augmented),
        eval_dataset=TransformedImages(validation, plain),
        compute_metrics=lambda said: {
            "auroc": roc_auc_score(said.label_ids, said.predictions[:, 1] - said.predictions[:, 0])
        },
    )


class TransformedImages(torch.utils.data.Dataset):
    """Images decoded and transformed one by one, like `set_transform` of `datasets`."""

    def __init__(self, images: Images, transform: Callable) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        path, label = self.images[index]
        with Image.open(path) as image:
            return {"pixel_values": self.transform(image.convert("RGB")), "labels": label}


def _collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixel_values, "labels": torch.tensor([example["labels"] for example in examples])}


def timm_epoch(folder: Path, size: int, workers: int) -> float:
    """Return seconds of one epoch with timm's loader, augmentation and training loop, in float32."""
    import timm
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2

    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=2).train()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, momentum=0.9)
    loss_of = torch.nn.CrossEntropyLoss()
    started = time.perf_counter()
    loader = create_loader(
        create_dataset("", root=str(folder), split="train", is_training=True, batch_size=32),
        input_size=(3, size, size),
        batch_size=32,
        is_training=True,
        use_prefetcher=False,
        num_workers=workers,
        interpolation="random",
    )
    for images, labels in loader:
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()
    return time.perf_counter() - started


class UntilAuroc(TrainerCallback):
    """Stop at a validation AUROC, and record each score with its time."""

    def __init__(self, aim: float, started: float) -> None:
        self.aim, self.started, self.scores = aim, started, []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        seconds = round(time.time() - self.started, 1)
        self.scores.append(
            {"seconds": seconds, "epoch": round(state.epoch, 2), "auroc": round(metrics["eval_auroc"], 4)}
        )
        control.should_training_stop = metrics["eval_auroc"] >= self.aim
