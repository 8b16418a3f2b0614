"""Small baseline CNNs, registered with timm on import.

To load a published one with transformers or timm, first `import hf_pneumonia.modeling.cnn`.
"""

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

# Widths of a popular Keras notebook on the Kermany images, with 3 x 3 kernels and pooling after each layer:
# https://www.kaggle.com/madz2000/pneumonia-detection-using-cnn-92-6-accuracy
WIDTHS = (32, 64, 64, 128, 256)
DENSE = 128


class PlainCNN(nn.Module):
    """Five stages of convolution, ReLU and max-pooling, a dense layer and a linear head.

    Args:
        num_classes: 0 for no head.
        in_chans: channels of the input.
        img_size: side of the input in pixels, or (height, width); fixed by the dense layer.
        drop_rate: dropout before the head, 0 to 1.
        norm: whether BatchNorm follows each convolution.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        norm: bool = False,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.stages = nn.Sequential()
        for before, after in zip((in_chans, *WIDTHS), WIDTHS, strict=False):
            self.stages.append(_stage(before, after, norm))
            height, width = -(-height // 2), -(-width // 2)  # rounded up, as the pooling does
        # timm's list of stages, used by the heat maps and the out-of-distribution check.
        self.feature_info = [
            {"num_chs": after, "reduction": 2 ** (number + 1), "module": f"stages.{number}"}
            for number, after in enumerate(WIDTHS)
        ]
        self.num_classes, self.drop_rate = num_classes, drop_rate
        self.num_features, self.head_hidden_size = WIDTHS[-1], DENSE
        self.dense = nn.Linear(WIDTHS[-1] * height * width, DENSE)
        self.head_drop = nn.Dropout(drop_rate)
        for module in self.modules():
            # He et al. 2015, eq. 10: without BatchNorm, torch's default initialisation lets the signal fade.
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        self.reset_classifier(num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map (b, in_chans, height, width) to (b, num_features, height / 32, width / 32), rounded up."""
        return self.stages(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map features to (b, num_classes) logits, or to (b, head_hidden_size) with `pre_logits`."""
        x = self.head_drop(self.dense(x.flatten(1)).relu())
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head. `global_pool`, part of timm's interface, is ignored."""
        self.num_classes = num_classes
        self.head = nn.Linear(DENSE, num_classes).to(self.dense.weight) if num_classes else nn.Identity()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Return parameter name patterns by depth, for timm's layer-wise learning rates."""
        return {"stem": r"^stages\.0", "blocks": r"^stages\.(\d+)"}


def _stage(before: int, after: int, norm: bool) -> nn.Sequential:
    layers = [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(*layers[:1], *([nn.BatchNorm2d(after)] if norm else []), *layers[1:])


_NO_WEIGHTS = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "first_conv": "stages.0.0",
    "classifier": "head",
}
default_cfgs = generate_default_cfgs({"cnn_baseline": _NO_WEIGHTS, "cnn_improved": _NO_WEIGHTS})


@register_model
def cnn_baseline(pretrained: bool = False, **kwargs) -> PlainCNN:
    """Build a PlainCNN without BatchNorm; 2.0 million parameters at 224 pixels."""
    return build_model_with_cfg(PlainCNN, "cnn_baseline", pretrained, **kwargs)


@register_model
def cnn_improved(pretrained: bool = False, **kwargs) -> PlainCNN:
    """Build a PlainCNN with BatchNorm; its recipe adds dropout and L2."""
    return build_model_with_cfg(PlainCNN, "cnn_improved", pretrained, norm=True, **kwargs)
