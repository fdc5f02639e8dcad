"""Stand-in for the published repository: the KL autoencoder, as far as a diffusion model uses it, under its checkpoint keys."""
import pytorch_lightning as pl
import torch
from torch import nn


def _norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


def _swish(x):
    return x * x.sigmoid()


class _Residual(nn.Module):
    def __init__(self, channels, out_channels):
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2, self.conv2 = _norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x):
        return self.nin_shortcut(x) + self.conv2(_swish(self.norm2(self.conv1(_swish(self.norm1(x))))))


class _Attention(nn.Module):
    """One head over all places."""

    def __init__(self, channels):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # (B, C, hw)
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(dim=-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


def _middle(channels):
    return nn.ModuleDict({"block_1": _Residual(channels, channels), "attn_1": _Attention(channels), "block_2": _Residual(channels, channels)})


class _Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(nn.functional.pad(x, (0, 1, 0, 1)))


class _Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """Pictures (B, in_channels, H, W) -> moments (B, 2 z_channels, H / 2^levels, W / 2^levels)."""

    def __init__(self, ch, ch_mult, num_res_blocks, in_channels, z_channels, attn_resolutions=(), **ignored):
        super().__init__()
        assert not attn_resolutions
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down, channels = nn.ModuleList(), ch
        for level, times in enumerate(ch_mult):
            blocks = []
            for _ in range(num_res_blocks):
                blocks.append(_Residual(channels, times * ch))
                channels = times * ch
            parts = {"block": nn.ModuleList(blocks)}
            if level < len(ch_mult) - 1:
                parts["downsample"] = _Down(channels)
            self.down.append(nn.ModuleDict(parts))
        self.mid = _middle(channels)
        self.norm_out, self.conv_out = _norm(channels), nn.Conv2d(channels, 2 * z_channels, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for level in self.down:
            for block in level["block"]:
                h = block(h)
            if "downsample" in level:
                h = level["downsample"](h)
        for part in self.mid.values():
            h = part(h)
        return self.conv_out(_swish(self.norm_out(h)))


class Decoder(nn.Module):
    """Latents back to pictures."""

    def __init__(self, ch, ch_mult, num_res_blocks, out_ch, z_channels, **ignored):
        super().__init__()
        channels = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, channels, 3, padding=1)
        self.mid = _middle(channels)
        levels = []
        for level, times in reversed(list(enumerate(ch_mult))):
            blocks = []
            for _ in range(num_res_blocks + 1):
                blocks.append(_Residual(channels, times * ch))
                channels = times * ch
            parts = {"block": nn.ModuleList(blocks)}
            if level:
                parts["upsample"] = _Up(channels)
            levels.insert(0, nn.ModuleDict(parts))  # number 0 is the finest
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = _norm(channels), nn.Conv2d(channels, out_ch, 3, padding=1)

    def forward(self, z):
        h = self.conv_in(z)
        for part in self.mid.values():
            h = part(h)
        for level in reversed(self.up):
            for block in level["block"]:
                h = block(h)
            if "upsample" in level:
                h = level["upsample"](h)
        return self.conv_out(_swish(self.norm_out(h)))


class DiagonalGaussianDistribution:
    def __init__(self, parameters):
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = (0.5 * self.logvar).exp()

    def sample(self):
        return self.mean + self.std * torch.randn(self.mean.shape).to(self.parameters.device)

    def mode(self):
        return self.mean


class AutoencoderKL(pl.LightningModule):
    def __init__(self, ddconfig, lossconfig, embed_dim, monitor=None):
        super().__init__()
        self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)

    def encode(self, x):
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))
