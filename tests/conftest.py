"""Fixtures: small images in the layout and with the file names of real data sets, models, and a local Hub."""

import atexit
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

# Before any library reads them: no downloads, and a cache of the tests' own.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HOME"] = os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="hf-pneumonia-tests-")
# Uploads of pages without an UploadFolder; Gradio does not delete them.
os.environ["GRADIO_TEMP_DIR"] = os.path.join(os.environ["HF_HOME"], "gradio")

import numpy as np
import pytest
from browser import browser  # noqa: F401  a fixture
from filelock import FileLock
from PIL import Image
from stub_page import page_server  # noqa: F401  a fixture

ROOT = Path(__file__).parents[1]
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)


def write_image(path: Path, label: int, rng: np.random.Generator, size: tuple[int, int] = (90, 70)) -> None:
    """Write a gray JPEG: two dark fields on a light background, one with an opacity if the label is 1."""
    width, height = size
    pixels = rng.normal(170, 12, (height, width))
    pixels[10:60, 10:40] -= 90
    pixels[10:60, 50:80] -= 90
    if label:
        pixels[35:60, 12:38] += 70
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)


def write_images(
    folder: Path, normal: int, pneumonia: int, first: int = 0, names=("NORMAL", "PNEUMONIA")
) -> None:
    """Write class folders with one image per patient, numbered from `first`."""
    rng = np.random.default_rng(first)
    for number in range(first, first + normal):
        write_image(folder / names[0] / f"IM-{number:04d}-0001.jpeg", 0, rng)
    for number in range(first, first + pneumonia):
        write_image(folder / names[1] / f"person{number}_bacteria_{number}.jpeg", 1, rng)


def until(condition, seconds: float = 20) -> bool:
    """Wait until a condition is true; return whether it is."""
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return held


def zipped(members: list[tuple[str, bytes]], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def made_once(tmp_path_factory, name: str, make) -> Path:
    """Return the folder `name`, filled by `make(folder)` once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Split folders: 80 + 20 + 30 images, and more images of the first training patients. Read-only."""
    return made_once(tmp_path_factory, "films", write_splits)


def write_splits(folder: Path) -> None:
    write_images(folder / "train", 40, 40)
    write_images(folder / "val", 10, 10, first=100)
    write_images(folder / "test", 12, 18, first=200)
    rng = np.random.default_rng(7)
    for number in range(5):
        write_image(folder / "train" / "PNEUMONIA" / f"person{number}_bacteria_9{number}.jpeg", 1, rng)


@pytest.fixture(scope="session")
def shortcut_images(tmp_path_factory):
    """Cohort of 400 simulated patients with a shortcut: images of 64 pixels, decoded to 32."""
    from hf_pneumonia.data.cohort import prepare_cohort
    from hf_pneumonia.data.phantom_folder import write_dataset

    folder = tmp_path_factory.mktemp("shortcut")
    write_dataset(folder / "phantoms", patients=400, size=64, shortcut=True)
    return prepare_cohort(str(folder / "phantoms"), 32, folder)


def run_train(*flags: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run train.py in a subprocess, directly or with a launcher (a module and its flags)."""
    start = [sys.executable, *(["-m", *launcher] if launcher else []), ROOT / "train.py", *map(str, flags)]
    return subprocess.run(start, capture_output=True, text=True, timeout=300)


# Launcher for `run_train` with two processes.
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")

TINY = (
    "--image_size", 64, "--num_train_epochs", 3, "--per_device_train_batch_size", 16, "--learning_rate", 1e-3,
)  # fmt: skip


@pytest.fixture(scope="session")
def finished_run(image_folder, tmp_path_factory) -> Path:
    """A finished run folder; its parent has the output of train.py in output.txt. Read-only."""

    def make(folder: Path) -> None:
        done = run_train("--dataset", image_folder, "--output_dir", folder / "tiny", *TINY)
        assert done.returncode == 0, done.stderr
        (folder / "output.txt").write_text(done.stdout + done.stderr)

    return made_once(tmp_path_factory, "finished", make) / "tiny"


@pytest.fixture
def timm_folder(tmp_path) -> Path:
    """A small ResNet with random weights, saved by this project."""
    import torch

    from hf_pneumonia.modeling.build import build_model

    torch.manual_seed(0)
    model = build_model("resnet10t", 64)
    model.config.pneumonia = {"threshold": 0.3}
    model.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def vit_folder(tmp_path) -> Path:
    """A vision transformer of transformers with random weights, as others publish one."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    from hf_pneumonia.data.labels import LABELS

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64,
        patch_size=16, id2label=dict(enumerate(LABELS)), label2id={"NORMAL": 0, "PNEUMONIA": 1},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    size = {"height": 64, "width": 64}
    processor = ViTImageProcessor(size=size, image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.2, 0.1])
    processor.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture(scope="session")
def small_images(image_folder, tmp_path_factory):
    """Cohort of the folder, decoded to 32 pixels. Read-only."""
    from hf_pneumonia.data.cohort import prepare_cohort

    return prepare_cohort(str(image_folder), 32, tmp_path_factory.mktemp("small"))


@pytest.fixture
def trainer(small_images, tmp_path):
    """A function that makes a PneumoniaTrainer of timm's smallest ResNet from recipe flags."""
    # Imported late: the environment above has to be set first.
    import torch

    from hf_pneumonia.modeling.augment import Augment
    from hf_pneumonia.modeling.build import build_model
    from hf_pneumonia.training.arguments import parse_recipe
    from hf_pneumonia.training.image_dataset import ImageDataset
    from hf_pneumonia.training.trainer import PneumoniaTrainer

    train, validation = (ImageDataset(small_images, split) for split in ("train", "validation"))

    def make(*flags, recipe="quickstart"):
        flags = ("--image_size", "32", "--output_dir", str(tmp_path / "run"), "--bf16", "false", *flags)
        args, _ = parse_recipe([str(ROOT / "recipes" / f"{recipe}.yaml"), *flags], default=None)
        torch.manual_seed(0)
        model = build_model("test_resnet", 32, args.drop_rate)
        return PneumoniaTrainer(model, args, train, validation, Augment(**args.augmentation))

    return make


@pytest.fixture(scope="session")
def _hub_server():
    from local_hub import LocalHub

    with LocalHub() as hub:
        yield hub


@pytest.fixture
def local_hub(_hub_server, monkeypatch):
    """An empty local Hub, for `HfApi(local_hub.url, token)`."""
    _hub_server.reset()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return _hub_server
