import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, run_train
from safetensors.torch import load_file

from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.build import build_model, network_input

NAMES = ["cnn_baseline", "cnn_improved"]


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_are_those_of_the_notebook(name):
    network = timm.create_model(name, num_classes=2)
    shapes = [m.weight.shape for m in network.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert shapes == [
        (32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3),
        (128, 256 * 7 * 7), (2, 128),
    ]  # fmt: skip
    norms = [m.num_features for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == ([32, 64, 64, 128, 256] if name == "cnn_improved" else [])


def test_the_answer_is_that_of_the_layers_written_out():
    network = timm.create_model("cnn_baseline", num_classes=2, img_size=50).eval()
    weights = network.state_dict()
    films = torch.randn(2, 3, 50, 50)
    x = films
    for stage in range(5):
        weight, bias = (weights[f"stages.{stage}.0.{key}"] for key in ("weight", "bias"))
        x = torch.nn.functional.conv2d(x, weight, bias, padding=1).clamp(min=0)
        x = torch.nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))  # 0 is the least there is
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    assert x.shape == (2, 256, 2, 2)
    x = (x.reshape(2, -1) @ weights["dense.weight"].T + weights["dense.bias"]).clamp(min=0)
    expected = x @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(network(films), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_they_behave_as_timms_own_networks(name):
    network = timm.create_model(name, num_classes=5, in_chans=1, img_size=(70, 40), drop_rate=0.3).eval()
    films = torch.randn(3, 1, 70, 40)
    features = network.forward_features(films)
    assert features.shape == (3, network.num_features, 3, 2)
    hidden = network.forward_head(features, pre_logits=True)
    assert hidden.shape == (3, network.head_hidden_size)
    assert torch.equal(network.get_classifier()(hidden), network(films)) and network(films).shape == (3, 5)
    assert network.head_drop.p == network.drop_rate == 0.3
    config = network.pretrained_cfg
    assert network.get_submodule(config["classifier"]) is network.get_classifier()
    assert network.get_submodule(config["first_conv"]).in_channels == 1
    network.reset_classifier(0)
    assert torch.equal(network(films), hidden) and network.num_classes == 0
    network.reset_classifier(7)
    assert network(films).shape == (3, 7)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_falls_on_the_heads_input_in_training_only(name):
    network = timm.create_model(name, num_classes=2, img_size=32, drop_rate=0.5)
    features = network.forward_features(torch.randn(64, 3, 32, 32))
    kept = network.eval().forward_head(features, pre_logits=True)
    dropped = network.train().forward_head(features, pre_logits=True)
    share = (dropped == 0)[kept > 0].float().mean()
    assert 0.4 < share < 0.6
    torch.testing.assert_close(dropped[dropped > 0], 2 * kept[dropped > 0])


@pytest.mark.parametrize("name", NAMES)
def test_the_first_weights_keep_the_signals_strength(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=2, img_size=96).requires_grad_(False)
    x = torch.randn(4, 3, 96, 96)
    powers = []
    for stage in network.stages:
        # He's weights keep the mean square of what a ReLU passes on, whatever the width.
        before = x.square().mean()
        inner = stage[0](x)
        powers.append(float(inner.square().mean() / 2 / before))
        x = inner.relu()
    assert powers == pytest.approx([1] * 5, rel=0.4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 50, 96])
def test_they_are_built_for_the_films_size_and_keep_it_in_their_arguments(name, size, tmp_path):
    model = build_model(name, size, drop_rate=0.5).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"] == {
        "drop_rate": 0.5,
        "img_size": size,
    }
    own = timm.create_model(name, num_classes=2, img_size=size).state_dict()
    assert load_file(tmp_path / "model.safetensors").keys() == own.keys()
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    films = network_input(torch.randint(0, 256, (2, size, size), dtype=torch.uint8))
    with torch.no_grad():
        assert torch.equal(loaded(films), model(films).logits)


def test_a_saved_one_can_be_fine_tuned_further_with_a_new_head(tmp_path):
    first = build_model("cnn_improved", 64)
    first.save_pretrained(tmp_path)
    second = build_model("cnn_improved", 64, pretrained=str(tmp_path))
    assert torch.equal(second.timm_model.dense.weight, first.timm_model.dense.weight)
    assert not torch.equal(second.timm_model.head.weight, first.timm_model.head.weight)
    with pytest.raises(UsageError, match="another architecture than cnn_baseline"):
        build_model("cnn_baseline", 64, pretrained=str(tmp_path))
    with pytest.raises(UsageError, match="or of another --image_size"):
        build_model("cnn_improved", 96, pretrained=str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_nobody_published_are_an_error_that_says_so(name):
    with pytest.raises(UsageError, match=f"no published weights of {name}; .*--pretrained false"):
        build_model(name, 64, pretrained="true")


def _run(name: str, film_folder, folder) -> None:
    """A run of the recipe, two steps long."""
    done = run_train(
        ROOT / "recipes" / f"{name}.yaml", "--dataset", film_folder, "--output_dir", folder,
        "--image_size", 40, "--max_steps", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


LOAD = """
import csv, json, sys
from PIL import Image

run = sys.argv[1]
model = transformers.AutoModelForImageClassification.from_pretrained(run).eval()
processor = transformers.AutoImageProcessor.from_pretrained(run)
rows = csv.DictReader(open(f"{run}/predictions_test.csv"))
images = [Image.open(row["file"]).convert("RGB") for row in rows]
with torch.no_grad():
    inputs = processor(images)["pixel_values"]
    logits = {"transformers": model(inputs).logits}
    logits["timm"] = timm.create_model(f"local-dir:{run}", pretrained=True).eval()(inputs)
answers = transformers.pipeline("image-classification", model=run)(images)
print(json.dumps({
    **{name: value.softmax(1)[:, 1].tolist() for name, value in logits.items()},
    "pipeline": [next(a["score"] for a in answer if a["label"] == "PNEUMONIA") for answer in answers],
    "ours": sorted(name for name in sys.modules if name.startswith("hf_pneumonia")),
}))
"""


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("cnn_baseline", "import hf_pneumonia, timm, torch, transformers"),
        ("cnn_improved", "import timm, torch, transformers, hf_pneumonia"),
    ],
)
def test_other_peoples_tools_load_a_run_after_our_import_in_either_order(name, order, film_folder, tmp_path):
    run = tmp_path / name
    _run(name, film_folder, run)
    answers = json.loads(_python(order + LOAD, tmp_path, str(run)).splitlines()[-1])
    with open(run / "predictions_test.csv") as file:
        own = np.genfromtxt(file, delimiter=",", names=True, dtype=None, encoding="utf8")["probability"]
    for tool in ("transformers", "timm", "pipeline"):
        np.testing.assert_allclose(answers[tool], own, atol=1e-5, err_msg=tool)
    assert answers["ours"] == [
        "hf_pneumonia", "hf_pneumonia.modeling", "hf_pneumonia.modeling.cnn", "hf_pneumonia.registration"
    ]  # fmt: skip


def _python(code: str, folder, *flags: str) -> str:
    """Run where the package is found by its name only, and give what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r})\n{code}", *flags],
        capture_output=True, text=True, cwd=folder, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
