import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.numpy import load_file, save_file

from hf_pneumonia.errors import UsageError
from hf_pneumonia.modeling.saved import load_model


def _change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def _refusal(folder) -> str:
    with pytest.raises(UsageError) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


LARGER = {
    "a vision transformer of gigabytes": ("vit_giant_patch14_224", {}),
    "one as deep as nobody builds": ("vit_tiny_patch16_224", {"depth": 100_000}),
    "one of a wide film": ("vit_tiny_patch16_224", {"img_size": 100_000}),
    "one of many channels": ("resnet10t", {"channels": [100_000] * 4}),
    "one of many layers": ("resnet18", {"layers": [500_000] * 4}),
    "one whose windows are wide": ("swin_tiny_patch4_window7_224", {"window_size": 10_000}),
}


@pytest.mark.parametrize("asked", LARGER)
def test_a_network_larger_than_the_weights_beside_it_is_refused_without_its_memory(timm_folder, asked):
    architecture, arguments = LARGER[asked]
    _change(timm_folder, architecture=architecture, model_args=arguments)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert "larger than the weights beside it" in _refusal(timm_folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    assert time.monotonic() - started < 30  # of minutes that the deep ones would take


def test_numbers_that_are_counted_up_to_are_refused_before_anything_is_built(timm_folder, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig", None)
    _change(timm_folder, architecture="vit_tiny_patch16_224", model_args={"depth": 10**9})
    assert "a number above 1,000,000 (depth)" in _refusal(timm_folder)


@pytest.mark.parametrize("name", ["other.safetensors", "adapter_model.bin", "weights.safetensors.index.json"])
def test_weights_of_another_name_than_those_that_are_checked_are_refused(timm_folder, name):
    (timm_folder / name).write_bytes((timm_folder / "model.safetensors").read_bytes())
    _change(timm_folder, transformers_weights=name)
    assert f"asks for more than its own weights (transformers_weights: {name})" in _refusal(timm_folder)


@pytest.mark.parametrize("side", [10**6, 4096, 0, -1, "96", 96.5, None])
def test_a_film_of_absurd_size_is_refused_before_it_is_made(timm_folder, side):
    own = json.loads((timm_folder / "config.json").read_text())["pretrained_cfg"]
    _change(timm_folder, pretrained_cfg={**own, "input_size": [3, side, side]})
    assert "expected is a square of 8 to 2048 pixels" in _refusal(timm_folder)


@pytest.mark.parametrize("mean", [[0.5, 0.5], [0.5, "x", 0.5], [float("nan")] * 3, [1e300] * 3, {}, None])
def test_deviations_that_are_no_numbers_are_refused(timm_folder, mean):
    own = json.loads((timm_folder / "config.json").read_text())["pretrained_cfg"]
    _change(timm_folder, pretrained_cfg={**own, "std": mean})
    _refusal(timm_folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_args": {"checkpoint_path": "x.pth"}}, "checkpoint_path"),
        ({"architecture": "hf-hub:evil/model"}, "hf-hub:evil/model"),
        ({"attn_implementation": "evil/kernel"}, "attn_implementation: evil/kernel"),
        ({"text_config": {"_attn_implementation": "evil/kernel"}}, "evil/kernel"),
    ],
)
def test_what_would_fetch_or_run_more_than_the_weights_is_never_loaded(timm_folder, changed, said):
    _change(timm_folder, **changed)
    refusal = _refusal(timm_folder)
    assert "asks for more than its own weights" in refusal and said in refusal


def test_an_adapter_beside_the_weights_is_never_loaded(timm_folder):
    (timm_folder / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in _refusal(timm_folder)


@pytest.mark.parametrize("part", ["evil.bin", "../model.safetensors", "", 5])
def test_a_list_of_parts_that_names_another_file_is_refused(timm_folder, part):
    index = {"metadata": {}, "weight_map": {"fc.weight": part}}
    (timm_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json" in _refusal(timm_folder)


def test_a_model_in_parts_loads_as_in_one_piece(timm_folder):
    expected = load_model(str(timm_folder)).model.state_dict()
    load_model(str(timm_folder)).model.save_pretrained(timm_folder / "parts", max_shard_size="4MB")
    assert len(list((timm_folder / "parts").glob("model-*.safetensors"))) > 1
    found = load_model(str(timm_folder / "parts")).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_config_that_is_huge_or_deep_is_refused(timm_folder):
    (timm_folder / "config.json").write_text(json.dumps({"a": "x" * 6_000_000}))
    assert "more than 5,000,000 bytes" in _refusal(timm_folder)
    (timm_folder / "config.json").write_text('{"a":' * 100 + "1" + "}" * 100)
    assert "nested more than 64 deep" in _refusal(timm_folder)
    (timm_folder / "config.json").write_text('{"a":' * 100_000)
    assert "recursion" in _refusal(timm_folder)


def test_weights_whose_header_claims_more_than_the_file_has_are_refused(timm_folder):
    file = timm_folder / "model.safetensors"
    file.write_bytes((2**40).to_bytes(8, "little") + file.read_bytes()[8:])
    assert "its model.safetensors is damaged: its header claims" in _refusal(timm_folder)


def test_weights_that_are_no_numbers_give_no_answer(timm_folder):
    from hf_pneumonia.inference.classifier import PneumoniaClassifier

    tensors = load_file(timm_folder / "model.safetensors")
    tensors["fc.bias"] = np.full_like(tensors["fc.bias"], np.nan)
    save_file(tensors, timm_folder / "model.safetensors")
    classifier = PneumoniaClassifier.from_pretrained(timm_folder)
    with pytest.raises(UsageError, match="its answers are no numbers"):
        classifier(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))


def test_nothing_of_all_this_is_left_behind_for_the_next_network(timm_folder):
    _change(timm_folder, model_args={"channels": [5000] * 4})
    _refusal(timm_folder)
    torch.nn.Linear(20_000, 20_000, device="meta")


def test_the_soaks_own_cases_end_as_they_should():
    """A short soak, in the process of its own that it starts: 150 cases, each kind among them."""
    command = [sys.executable, "-m", "soak.hostile_files", "--files", "150", "--seed", "77"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, found["failures"], found["files"]) == (0, 0, 150), done.stdout + done.stderr
    assert len(found["kinds"]) == 13
