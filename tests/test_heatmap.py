"""Where the network looked, against networks whose evidence is at a known place."""

import os
import threading

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from scipy import ndimage
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from hf_pneumonia.data.phantom import simulate_patient
from hf_pneumonia.modeling.build import build_model, network_input
from hf_pneumonia.modeling.heatmap import PLACES, heat_maps


class _Wrapper(nn.Module):
    """What is used of transformers' wrapper: the network's attribute."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.timm_model = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.timm_model(inputs)


class _Pooled(nn.Module):
    """Brightness of 8 x 8 cells is channel 0 and darkness channel 1; white is pneumonia."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(8)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])

    def forward_features(self, inputs):
        cells = self.pool(inputs[:, :1])
        return torch.cat([cells, 1 - cells], 1)

    def forward_head(self, features):
        return self.head(features.mean((2, 3)))


class _Dense(_Pooled):
    """One cell of the map, and nothing else, decides: the evidence's place is in the head's weights."""

    def __init__(self, cell: tuple[int, int]) -> None:
        super().__init__()
        self.head = nn.Linear(2 * 8 * 8, 2, bias=False)
        weight = torch.zeros(2, 2, 8, 8)
        weight[1, 0, cell[0], cell[1]] = 1.0
        self.head.weight.data = weight.flatten(1)

    def forward_head(self, features):
        return self.head(features.flatten(1))


def films_of(size: int) -> torch.Tensor:
    """(3, 3, size, size) network input of noise."""
    return network_input(
        torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, size, size), np.uint8))
    )


def enlarged(cam: torch.Tensor, size: int) -> torch.Tensor:
    """(b, h, w) evidence -> (b, size, size), the highest of each being 1."""
    cam = nn.functional.interpolate(cam[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    return cam / cam.amax((1, 2), keepdim=True)


def hooks_of(model: nn.Module) -> int:
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())


def spot(row: int, column: int) -> torch.Tensor:
    """(1, 3, 64, 64), black but for one white cell."""
    film = torch.zeros(1, 3, 64, 64)
    film[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
    return film


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = build_model("resnet10t", 96)
    # Mostly in favour of pneumonia, so that the maps are not empty.
    model.timm_model.fc.weight.data = torch.stack([0.8 * torch.rand(512), torch.rand(512)])
    return model.eval()


@pytest.fixture(scope="module")
def inputs():
    return films_of(96)


@pytest.mark.parametrize("place", [(0, 0), (2, 5), (7, 7)])
def test_the_map_is_hottest_where_the_evidence_is(place):
    (heat,) = heat_maps(_Wrapper(_Pooled()), spot(*place))
    row, column = divmod(int(heat.argmax()), 64)
    assert (row // 8, column // 8) == place
    assert heat.shape == (64, 64) and heat.dtype == torch.float32 and heat.min() == 0 and heat.max() == 1


def test_places_that_speak_against_pneumonia_stay_cold():
    network = _Pooled()
    network.head.weight.data = network.head.weight.data.flip(0)  # now white is normal
    film = spot(3, 3)
    (heat,) = heat_maps(_Wrapper(network), film)
    assert heat[24 + 4, 24 + 4] < 0.2 and heat[4, 4] == 1  # smoothed, so not quite 0


def test_a_head_that_flattens_the_map_shows_each_place_that_has_a_weight():
    cells = nn.functional.avg_pool2d(spot(2, 5)[:, :1], 8)
    (heat,) = heat_maps(_Wrapper(_Dense((2, 5))), spot(2, 5))
    row, column = divmod(int(heat.argmax()), 64)
    assert cells[0, 0, row // 8, column // 8] == 1


def test_with_a_pooled_linear_head_the_gradient_gives_the_class_activation_map(resnet):
    inputs = films_of(192)  # whose last map has 6 x 6 places
    with torch.no_grad():
        features = resnet.timm_model.forward_features(inputs)
        assert features.shape[-1] == PLACES
        weight = resnet.timm_model.fc.weight
        cam = torch.einsum("c,bchw->bhw", weight[1] - weight[0], features).relu()
    torch.testing.assert_close(heat_maps(resnet, inputs), enlarged(cam, 192), atol=1e-4, rtol=1e-4)


class _Difference(nn.Module):
    """The one number that is explained, as captum wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = self.model(inputs).logits
        return logits[:, 1] - logits[:, 0]


@pytest.mark.parametrize(
    "architecture, size, layer",
    [
        ("resnet18", 96, "layer3"),
        ("resnet18", 192, "layer4"),
        ("resnet50", 96, "layer3"),
        ("cnn_baseline", 96, "stages.3"),
        ("cnn_improved", 96, "stages.3"),
        ("mobilenetv3_small_100", 96, "blocks.3"),
        ("efficientnet_b0", 96, "blocks.4"),
        ("efficientnet_b0", 192, "bn2"),
        ("convnext_atto", 96, "stages.2"),
        ("convnext_atto", 192, "norm_pre"),
    ],
)
def test_maps_are_captums(architecture, size, layer):
    torch.manual_seed(2)
    model = build_model(architecture, size).eval()
    nn.init.normal_(model.timm_model.get_classifier().weight)
    inputs = films_of(size)
    captum = LayerGradCam(_Difference(model), model.timm_model.get_submodule(layer))
    expected = enlarged(captum.attribute(inputs, relu_attributions=True).detach()[:, 0], size)
    found = heat_maps(model, inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.amax((1, 2)).tolist() == [1, 1, 1] and (found < 0.5).any()


def test_nothing_in_favour_is_a_map_of_zeros(resnet, inputs):
    weight = resnet.timm_model.fc.weight.data.clone()
    resnet.timm_model.fc.weight.data = torch.stack([torch.ones(512), -torch.ones(512)])
    assert heat_maps(resnet, inputs).count_nonzero() == 0
    resnet.timm_model.fc.weight.data = weight


def test_films_do_not_change_each_others_maps(resnet, inputs):
    together = heat_maps(resnet, inputs)
    singly = torch.cat([heat_maps(resnet, one[None]) for one in inputs])
    torch.testing.assert_close(together, singly, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("inference", [False, True])
def test_the_network_is_left_as_it_was(resnet, inputs, inference):
    resnet.train()
    resnet.timm_model.bn1.eval()
    resnet.timm_model.conv1.requires_grad_(False)
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    modes = [module.training for module in resnet.modules()]
    with torch.inference_mode(inference):
        heat = heat_maps(resnet, inputs.clone())
        assert torch.is_inference_mode_enabled() == inference
    assert not heat.requires_grad
    assert [module.training for module in resnet.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    assert all(weight.grad is None for weight in resnet.parameters())
    assert hooks_of(resnet) == 0
    frozen = [weight for weight in resnet.parameters() if not weight.requires_grad]
    assert len(frozen) == len(list(resnet.timm_model.conv1.parameters()))
    resnet.timm_model.conv1.requires_grad_(True)
    resnet.eval()


def test_an_error_within_the_network_leaves_no_hook_and_no_mode_behind(resnet, inputs):
    class Fault(Exception):
        pass

    def fail(*_):
        raise Fault

    resnet.train()
    for place in ("layer1", "layer4", "fc"):  # before, after and behind the map
        mine = resnet.timm_model.get_submodule(place).register_forward_pre_hook(fail)
        with pytest.raises(Fault):
            heat_maps(resnet, inputs)
        assert hooks_of(resnet) == 1 and all(module.training for module in resnet.modules())
        mine.remove()
    resnet.eval()


def test_threads_that_share_a_network_get_the_maps_of_their_own_films(resnet):
    films = [films_of(96).roll(shift, 3) for shift in range(0, 96, 12)]
    alone = [heat_maps(resnet, one) for one in films]
    with torch.inference_mode():
        answers = [resnet(one).logits for one in films]
    found: dict = {}

    def explain(number: int) -> None:
        for _ in range(5):
            found[number] = heat_maps(resnet, films[number])

    def answer(number: int) -> None:
        for _ in range(10):
            with torch.inference_mode():
                found["answer", number] = resnet(films[number]).logits

    threads = [
        threading.Thread(target=job, args=(number,)) for number in range(8) for job in (explain, answer)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        torch.testing.assert_close(found[number], alone[number])
        torch.testing.assert_close(found["answer", number], answers[number])
    assert len(found) == 16 and hooks_of(resnet) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision_looks_at_the_same_places(inputs, dtype):
    torch.manual_seed(2)
    model = build_model("resnet10t", 96).eval()
    nn.init.normal_(model.timm_model.fc.weight)
    full = heat_maps(model, inputs)
    half = heat_maps(model.to(dtype), inputs.to(dtype))
    assert half.dtype == torch.float32 and all(weight.dtype == dtype for weight in model.parameters())
    assert np.corrcoef(full.flatten(), half.flatten())[0, 1] > 0.99


@pytest.mark.parametrize(
    "architecture", ["convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224", "deit_tiny_patch16_224"]
)
def test_other_families_have_maps_too(architecture, inputs):
    torch.manual_seed(1)
    model = build_model(architecture, 96)
    nn.init.normal_(model.timm_model.get_classifier().weight)
    heat = heat_maps(model, inputs)
    assert heat.shape == (3, 96, 96) and torch.isfinite(heat).all()
    assert heat.amax((1, 2)).tolist() == [1, 1, 1] and (heat.amin((1, 2)) < 1).all()


def test_a_channels_last_map_is_read_as_one():
    class Last(_Pooled):
        output_fmt = "NHWC"

        def forward_features(self, inputs):
            return super().forward_features(inputs).permute(0, 2, 3, 1)

        def forward_head(self, features):
            return self.head(features.mean((1, 2)))

    last, first = (heat_maps(_Wrapper(network), spot(1, 6)) for network in (Last(), _Pooled()))
    torch.testing.assert_close(last, first)


def test_a_class_tokens_map_follows_the_patch_that_it_attends_to():
    class Attend(nn.Module):
        """The class token takes the mean of all tokens."""

        def forward(self, tokens):
            return tokens.mean(1, keepdim=True).expand_as(tokens)

    class Transformer(_Pooled):
        global_pool, num_prefix_tokens = "token", 1

        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(nn.Identity(), Attend())

        def forward_features(self, inputs):
            patches = super().forward_features(inputs).flatten(2).transpose(1, 2)
            return self.blocks(torch.cat([torch.zeros_like(patches[:, :1]), patches], 1))

        def forward_head(self, features):
            return self.head(features[:, 0])

    model = _Wrapper(Transformer())
    row, column = divmod(int(heat_maps(model, spot(4, 1)).argmax()), 64)
    assert (row // 8, column // 8) == (4, 1)
    assert not model.timm_model.blocks[-1]._forward_pre_hooks
    model.timm_model.forward_head = None
    with pytest.raises(TypeError):
        heat_maps(model, spot(4, 1))
    assert not model.timm_model.blocks[-1]._forward_pre_hooks


def test_what_has_no_map_says_so(resnet):
    with pytest.raises(ValueError, match="no places"):
        heat_maps(resnet, torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="does not part"):
        heat_maps(_Wrapper(nn.Linear(2, 2)), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="ResNetForImageClassification does not part"):
        heat_maps(ResNetForImageClassification(ResNetConfig(depths=[1] * 4)), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="HighResolutionNet hands on a list"):
        heat_maps(build_model("hrnet_w18_small", 96), torch.zeros(1, 3, 96, 96))
    with pytest.raises(ValueError, match="not finite"):
        heat_maps(resnet, torch.full((1, 3, 96, 96), torch.nan))


class _Small(nn.Module):
    """Three halvings, so that a film of 64 px has a map of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, halve in ((3, 16, True), (16, 32, True), (32, 64, True), (64, 64, False)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * halve
        self.body, self.head = nn.Sequential(*layers), nn.Linear(64, 2)

    def forward_features(self, inputs):
        return self.body(inputs)

    def forward_head(self, features):
        return self.head(features.mean((2, 3)))

    def forward(self, inputs):
        return self.forward_head(self.forward_features(inputs))


def simulated(patients: range) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Network inputs, labels and lesions of simulated films of 64 px."""
    films = [film for patient in patients for film in simulate_patient(patient, size=64)]
    label = torch.tensor([int(film.label == "PNEUMONIA") for film in films])
    inputs = network_input(torch.from_numpy(np.stack([film.image for film in films])))
    return inputs, label, np.stack([film.lesion for film in films])


# benchmarks/heat_maps.py measures the same of a run of train.py.
@pytest.mark.skipif(not os.environ.get("HF_PNEUMONIA_SLOW"), reason="half a minute; HF_PNEUMONIA_SLOW=1")
def test_a_trained_networks_maps_are_hottest_at_the_lesions_of_simulated_films():
    torch.manual_seed(0)
    model, (inputs, label, _) = _Wrapper(_Small()), simulated(range(1, 401))
    epochs, steps = 12, len(inputs) // 32
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs))[: 32 * steps].view(steps, 32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), label[batch]).backward()
            optimizer.step()
            schedule.step()

    inputs, label, lesions = simulated(range(401, 521))
    with torch.no_grad():
        found = (model.eval()(inputs).argmax(1) == 1) & (label == 1)
    heat = torch.cat([heat_maps(model, part) for part in inputs[found].split(32)])
    hottest = heat.flatten(1).argmax(1).numpy()
    # Within a tenth of the film's side of the lesion.
    near = np.stack([ndimage.distance_transform_edt(~one) <= 6.4 for one in lesions[found.numpy()]])
    near = near.reshape(len(heat), -1)
    hits = near[np.arange(len(near)), hottest].mean()
    # Of other films' lesions: lungs are where lungs are, whatever the network looks at.
    chance = near[:, hottest].mean()
    assert len(near) > 60 and hits >= 0.8 and hits > chance + 0.1, (len(near), hits, chance)
