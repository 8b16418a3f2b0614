import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.features import stage_statistics, watch_stages

FILMS = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("resnet10t", 64).eval()


def test_the_statistics_are_mean_and_deviation_of_what_timm_extracts_at_each_stage(model):
    inputs = network_input(torch.from_numpy(FILMS))
    with torch.inference_mode(), watch_stages(model.timm_model) as kept:
        model(inputs)
    extractor = timm.create_model("resnet10t", features_only=True).eval()
    extractor.load_state_dict(model.timm_model.state_dict(), strict=False)
    with torch.inference_mode():
        stages = extractor(inputs)
    # One more: the middle stage, by fields.
    fields = kept.pop(len(stages) // 2)
    for found, maps in zip(kept, stages, strict=True):
        expected = torch.cat([maps.mean((2, 3)), maps.flatten(2).std(2, correction=0)], 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    middle = stages[len(stages) // 2]
    torch.testing.assert_close(fields, F.adaptive_avg_pool2d(middle, 4).flatten(1), rtol=1e-4, atol=1e-5)


def test_watching_changes_no_answer_and_leaves_no_hook(model):
    inputs = network_input(torch.from_numpy(FILMS))
    with torch.inference_mode():
        before = model(inputs).logits
        with watch_stages(model.timm_model) as kept:
            during = model(inputs).logits
        model(inputs)
    assert torch.equal(before, during) and len(kept) == len(model.timm_model.feature_info) + 1
    assert not any(module._forward_hooks for module in model.timm_model.modules())


def test_the_size_of_a_batch_makes_no_difference(model):
    for one, other in zip(stage_statistics(model, FILMS, 2), stage_statistics(model, FILMS, 5), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "convnext_atto"])
def test_networks_with_channels_last_and_with_tokens_are_watched_too(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=2).eval()
    with torch.inference_mode(), watch_stages(network) as kept:
        network(torch.randn(2, 3, 224, 224))
    widths = {stage["num_chs"] for stage in network.feature_info}
    assert kept and {one.shape[1] for one in kept} <= {2 * width for width in widths} | {
        16 * width for width in widths
    }
    assert all(one.shape[0] == 2 and torch.isfinite(one).all() for one in kept)
