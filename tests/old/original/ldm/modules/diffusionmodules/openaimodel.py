"""Stand-in for the published repository: the UNet with text, as far as text-to-image models use it, under its checkpoint keys."""
import torch
from torch import nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.util import normalization, timestep_embedding


def _zeroed(module):
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class _Stage(nn.Sequential):
    """Layers in a row, each given what it takes."""

    def forward(self, x, time, text):
        for layer in self:
            x = layer(x, time) if isinstance(layer, ResBlock) else layer(x, text) if isinstance(layer, SpatialTransformer) else layer(x)
        return x


class ResBlock(nn.Module):
    def __init__(self, channels, time_width, out_channels):
        super().__init__()
        self.in_layers = nn.Sequential(normalization(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, out_channels))
        last = _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(normalization(out_channels), nn.SiLU(), nn.Identity(), last)
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, time):
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(nn.functional.interpolate(x, scale_factor=2, mode="nearest"))


class UNetModel(nn.Module):
    """(B, in_channels, h, w), timesteps (B,), context (B, L, context_dim) -> (B, out_channels, h, w)."""

    def __init__(
        self, image_size, in_channels, model_channels, out_channels, num_res_blocks, attention_resolutions, channel_mult, num_heads,
        use_spatial_transformer, context_dim, transformer_depth=1, use_checkpoint=False, legacy=True,
    ):  # fmt: skip
        super().__init__()
        assert use_spatial_transformer and not legacy, "the stand-in knows the networks of the text-to-image configurations only"
        self.image_size, self.in_channels, self.model_channels = image_size, in_channels, model_channels
        width = 4 * model_channels

        def stage(channels, out, factor):
            layers = [ResBlock(channels, width, out)]
            if factor in attention_resolutions:
                layers.append(SpatialTransformer(out, num_heads, out // num_heads, transformer_depth, context_dim))
            return layers

        self.time_embed = nn.Sequential(nn.Linear(model_channels, width), nn.SiLU(), nn.Linear(width, width))
        self.input_blocks = nn.ModuleList([_Stage(nn.Conv2d(in_channels, model_channels, 3, padding=1))])
        channels, kept = model_channels, [model_channels]
        for level, times in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(_Stage(*stage(channels, times * model_channels, 2**level)))
                channels = times * model_channels
                kept.append(channels)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(_Stage(Downsample(channels)))
                kept.append(channels)
        middle = SpatialTransformer(channels, num_heads, channels // num_heads, transformer_depth, context_dim)
        self.middle_block = _Stage(ResBlock(channels, width, channels), middle, ResBlock(channels, width, channels))
        self.output_blocks = nn.ModuleList()
        for level, times in reversed(list(enumerate(channel_mult))):
            for number in range(num_res_blocks + 1):
                layers = stage(channels + kept.pop(), times * model_channels, 2**level)
                channels = times * model_channels
                if level and number == num_res_blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(_Stage(*layers))
        self.out = nn.Sequential(normalization(channels), nn.SiLU(), _zeroed(nn.Conv2d(model_channels, out_channels, 3, padding=1)))

    def forward(self, x, timesteps=None, context=None, y=None, **kwargs):
        time = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        kept = []
        for block in self.input_blocks:
            x = block(x, time, context)
            kept.append(x)
        x = self.middle_block(x, time, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, kept.pop()], dim=1), time, context)
        return self.out(x)
