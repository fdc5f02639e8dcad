"""LPIPS: how different two pictures look, by the features of a VGG16 network (Zhang et al. 2018, arXiv 1801.03924, equation 1).

d(x, y) = sum over layers l of the mean over positions of w_l . (f_l(x) - f_l(y))^2, with f_l the features after the last convolution of each of five
groups, of unit length over the channels, and w_l >= 0 learnt. Built without a download: until weights are loaded, it refuses to be evaluated.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# VGG16 (configuration D of Simonyan & Zisserman 2014), cut before each pooling; names count the layers as torchvision's `vgg16().features` does.
CONVOLUTIONS = {
    "slice1": {0: (3, 64), 2: (64, 64)},
    "slice2": {5: (64, 128), 7: (128, 128)},
    "slice3": {10: (128, 256), 12: (256, 256), 14: (256, 256)},
    "slice4": {17: (256, 512), 19: (512, 512), 21: (512, 512)},
    "slice5": {24: (512, 512), 26: (512, 512), 28: (512, 512)},
}
FEATURES = (64, 128, 256, 512, 512)
# Mean and deviation of ImageNet's colours, for pictures in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
OWN_PREFIXES = ("net.", "lin")


class _ColourScale(nn.Module):
    """Pictures in [-1, 1] to the range that VGG16 was trained on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class _Slice(nn.Module):
    """The convolutions between two poolings, each followed by ReLU."""

    def __init__(self, convolutions: Mapping[int, tuple[int, int]]):
        super().__init__()
        for number, (incoming, outgoing) in convolutions.items():
            self.add_module(str(number), nn.Conv2d(incoming, outgoing, kernel_size=3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.children():
            x = F.relu(convolution(x))
        return x


class _Features(nn.Module):
    """The feature maps of the five groups of VGG16, finest first."""

    def __init__(self):
        super().__init__()
        for name, convolutions in CONVOLUTIONS.items():
            self.add_module(name, _Slice(convolutions))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for group in self.children():
            x = group(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        return maps


class _Weighting(nn.Module):
    """The weights w_l of one layer, as a 1x1 convolution; number 1 in `model`, since saved weights count a dropout before it."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.ModuleDict({"1": nn.Conv2d(channels, 1, kernel_size=1, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.model["1"](x)


def unit_length(x: Tensor, eps: float = 1e-10) -> Tensor:
    """x over its Euclidean norm along the channels (dim 1)."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + eps)


class LPIPS(nn.Module):
    """d(x, y) for pictures (B, 3, H, W) in [-1, 1] -> (B, 1, 1, 1). Frozen: its weights never train.

    A new one holds zeros. Weights come with a checkpoint that has them (`loss.perceptual_loss.*`) or from `adopt`. It has no dropout in
    training: that only helped to learn w_l, and a distance should be the same each time.
    """

    def __init__(self):
        super().__init__()
        self.scaling_layer = _ColourScale()
        self.net = _Features()
        for index, channels in enumerate(FEATURES):
            self.add_module(f"lin{index}", _Weighting(channels))
        for weight in self.parameters():
            nn.init.zeros_(weight)
            weight.requires_grad_(False)
        self._ready = False

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Take all weights found in `weights`: torchvision's VGG16 (`features.N.*`), the linear layers (`linN.model.1.weight`), or a state of LPIPS.

        Raises ValueError if there are none, or one has another shape.
        """
        layer_of = {number: group for group, convolutions in CONVOLUTIONS.items() for number in convolutions}
        own = self.state_dict()
        found = {}
        for key, value in weights.items():
            if key.startswith("features."):
                number, kind = key.split(".")[1:]
                key = f"net.{layer_of[int(number)]}.{number}.{kind}"
            key = key.rpartition("perceptual_loss.")[2]
            if key not in own or not key.startswith(OWN_PREFIXES):
                continue
            if value.shape != own[key].shape:
                raise ValueError(f"LPIPS: {key} has shape {tuple(value.shape)}, expected {tuple(own[key].shape)}")
            found[key] = value
        if not found:
            raise ValueError("LPIPS: no weights found; expected keys like features.0.weight (torchvision's VGG16) and lin0.model.1.weight")
        self.load_state_dict(found, strict=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not self._ready:
            self._require_weights()
        distance = 0.0
        for index, (f, g) in enumerate(zip(self.net(self.scaling_layer(x)), self.net(self.scaling_layer(y)), strict=True)):
            difference = (unit_length(f) - unit_length(g)).square()                            # (B, C_l, h_l, w_l)
            distance = distance + self.get_submodule(f"lin{index}")(difference).mean(dim=(2, 3), keepdim=True)
        return distance

    def _require_weights(self) -> None:
        empty = [name for name, weight in self.named_parameters() if not weight.any()]
        if empty:
            raise ValueError(
                f"LPIPS has no weights ({len(empty)} of its tensors are zero, {empty[0]} first). Start from a checkpoint that has loss.perceptual_loss.*, "
                "name files with VGG16 and the linear layers in perceptual_ckpt, or set perceptual_weight: 0 in lossconfig.params."
            )
        self._ready = True
