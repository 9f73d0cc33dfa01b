"""``swift``: a mean-scale hyperprior with a checkerboard context whose transforms work at 1/8 and 1/16 resolution.

Dense 1×1 and 3×3 convolutions on few positions run near a CPU's peak where strided 5×5 ones with GDN do not. The first
layers start as a lapped Karhunen–Loève transform (``models.klt``), so training begins from a good linear codec.

    x ─ lap ─ unshuffle 8 ─ 1×1 ─ blocks ─ 3×3 ↓2 ─ blocks ─ 1×1 ─ y ──── · gain ─ Q ─ y_hat · 1/gain ── g_s ─ x_hat
                                                                   │                 │
                                                                   └ h_a ─ z ─ Q ─ h_s ┐ context (anchors → rest)
                                                                                  parameters ─ mean, scale

The entropy networks see y divided by a constant per channel (its standard deviation), before the gain; mean and scale
are multiplied by gain·std afterwards. So one small network serves every rate, and an untrained one already gives every
symbol about the right scale.

This file holds the float networks and the training ``forward``. Coding runs in integers: ``models.entropy``.

Sources: Ballé 2018 (arXiv 1802.01436), Minnen 2018 (1809.02736), He 2021 (checkerboard, 2103.15306), Cui 2021 (gain
units, 2003.02012), CompressAI's blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.layers import CheckerboardMaskedConv2d, conv1x1, conv3x3, subpel_conv3x3
from compressai.models.sensetime import ResidualBottleneckBlock
from compressai.models.utils import conv
from torch import Tensor, nn

from models.layers import Float32, LappedFilter
from models.rounding import ste_round, ste_symbols


@dataclass(frozen=True)
class SwiftConfig:
    """Sizes of ``swift``. Channels are at 1/8 (C), 1/16 (D), of y (M), of z (N); ``lmbda_*`` span the rate levels."""

    C: int = 192
    D: int = 320
    M: int = 320
    N: int = 128
    blocks_8: int = 5
    blocks_16: int = 5
    hyper: int = 192
    features: int = 256
    hidden: int = 384
    levels: int = 8
    lmbda_min: float = 0.0008
    lmbda_max: float = 0.3

    @property
    def lmbda_mid(self) -> float:
        """Return the geometric mean of the span of λ."""
        return math.sqrt(self.lmbda_min * self.lmbda_max)

    def lmbda(self, level: Tensor) -> Tensor:
        """Return λ of (fractional) levels: log-spaced between lmbda_min at level 0 and lmbda_max at the last."""
        span = math.log(self.lmbda_max / self.lmbda_min)
        return self.lmbda_min * torch.exp(level * (span / max(self.levels - 1, 1)))


def _blocks(channels: int, count: int) -> nn.Sequential:
    blocks = [ResidualBottleneckBlock(channels, channels) for _ in range(count)]
    for block in blocks:
        nn.init.zeros_(block.conv3.weight)  # each block starts as the identity
        nn.init.zeros_(block.conv3.bias)
    return nn.Sequential(*blocks)


class Analysis(nn.Sequential):
    """g_a: (B, 3, H, W) in [0, 1] → y (B, M, H/16, W/16); H and W multiples of 16."""

    lap: Float32
    stem: nn.Conv2d
    down: nn.Conv2d
    head: Float32

    def __init__(self, cfg: SwiftConfig) -> None:
        super().__init__()
        self.lap = Float32(LappedFilter())
        self.unshuffle = nn.PixelUnshuffle(8)
        self.stem = conv1x1(192, cfg.C)
        self.blocks_8 = _blocks(cfg.C, cfg.blocks_8)
        self.down = conv3x3(cfg.C, cfg.D, stride=2)
        self.blocks_16 = _blocks(cfg.D, cfg.blocks_16)
        self.head = Float32(conv1x1(cfg.D, cfg.M))


class Synthesis(nn.Sequential):
    """g_s: y_hat (B, M, H/16, W/16) → x_hat (B, 3, H, W), mirrors ``Analysis``."""

    head: Float32
    up: nn.Conv2d
    tail: nn.Conv2d

    def __init__(self, cfg: SwiftConfig) -> None:
        super().__init__()
        self.head = Float32(conv1x1(cfg.M, cfg.D))
        self.blocks_16 = _blocks(cfg.D, cfg.blocks_16)
        self.up = conv1x1(cfg.D, 4 * cfg.C)
        self.up_shuffle = nn.PixelShuffle(2)
        self.blocks_8 = _blocks(cfg.C, cfg.blocks_8)
        self.tail = conv1x1(cfg.C, 192)
        self.shuffle = nn.PixelShuffle(8)
        self.lap = Float32(LappedFilter(inverse=True))


class HyperAnalysis(nn.Sequential):
    """h_a: y / std (B, M, h, w) → z (B, N, h/4, w/4)."""

    def __init__(self, cfg: SwiftConfig) -> None:
        super().__init__(
            conv3x3(cfg.M, cfg.hyper),
            nn.ReLU(inplace=True),
            conv(cfg.hyper, cfg.hyper),
            nn.ReLU(inplace=True),
            Float32(conv(cfg.hyper, cfg.N)),
        )


class HyperSynthesis(nn.Sequential):
    """h_s: z_hat (B, N, h/4, w/4) → features (B, F, h, w)."""

    up_1: nn.Sequential
    up_2: nn.Sequential

    def __init__(self, cfg: SwiftConfig) -> None:
        super().__init__()
        self.up_1 = subpel_conv3x3(cfg.N, cfg.hyper, 2)
        self.relu_1 = nn.ReLU(inplace=True)
        self.up_2 = subpel_conv3x3(cfg.hyper, cfg.features, 2)
        self.relu_2 = nn.ReLU(inplace=True)


class Parameters(nn.Sequential):
    """Features and context (B, 2F, h, w) → mean and log2 scale of y / std (B, 2M, h, w)."""

    hidden: nn.Conv2d
    out: Float32

    def __init__(self, cfg: SwiftConfig) -> None:
        super().__init__()
        self.hidden = conv1x1(2 * cfg.features, cfg.hidden)
        self.relu = nn.ReLU(inplace=True)
        out = conv1x1(cfg.hidden, 2 * cfg.M)
        nn.init.zeros_(out.weight)  # mean 0 and scale 1: right for every channel and level at the start
        nn.init.zeros_(out.bias)
        self.out = Float32(out)


def anchor_mask(h: int, w: int, device: torch.device | None = None) -> Tensor:
    """Return the (h, w) bool mask of the positions that are coded first: (row + column) even."""
    rows = torch.arange(h, device=device)[:, None]
    return (rows + torch.arange(w, device=device)) % 2 == 0


class Swift(nn.Module):
    """The training network. ``forward`` gives x_hat and likelihoods; real bits come from ``models.entropy``."""

    cfg: SwiftConfig
    log2_std: Tensor

    def __init__(self, cfg: SwiftConfig | None = None) -> None:
        super().__init__()
        cfg = cfg or SwiftConfig()
        self.cfg = cfg
        self.g_a = Analysis(cfg)
        self.g_s = Synthesis(cfg)
        self.h_a = HyperAnalysis(cfg)
        self.h_s = HyperSynthesis(cfg)
        self.context = CheckerboardMaskedConv2d(cfg.M, cfg.features, kernel_size=5, padding=2)
        self.parameters_net = Parameters(cfg)
        self.entropy_bottleneck = EntropyBottleneck(cfg.N)
        self.gaussian_conditional = GaussianConditional(None)
        self.log2_gain = nn.Parameter(torch.zeros(cfg.levels, cfg.M))
        self.log2_gain_z = nn.Parameter(torch.zeros(cfg.levels, cfg.N))
        self.register_buffer("log2_std", torch.zeros(cfg.M))

    def gains(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain (B, M, 1, 1) and gain of z (B, N, 1, 1) at fractional levels (B,)."""
        low = level.floor().clamp(0, max(self.cfg.levels - 2, 0)).long()
        high = (low + 1).clamp(max=self.cfg.levels - 1)
        t = (level - low).float()[:, None]
        gain = self.log2_gain[low] * (1 - t) + self.log2_gain[high] * t
        gain_z = self.log2_gain_z[low] * (1 - t) + self.log2_gain_z[high] * t
        return gain.exp2()[:, :, None, None], gain_z.exp2()[:, :, None, None]

    def forward(self, x: Tensor, level: Tensor) -> dict[str, Tensor]:
        """Run the whole model with differentiable quantisation.

        x is (B, 3, H, W) in [0, 1], sides multiples of 64; level is (B,) in [0, levels - 1]. In training rates see
        uniform noise; synthesis, context and, in eval mode, rates see the coder's rounding (Minnen 2020, arXiv 2007.08739).
        Returns x_hat (B, 3, H, W), y_likelihoods (B, M, H/16, W/16), z_likelihoods (B, N, H/64, W/64).
        """
        gain, gain_z = self.gains(level)
        std = self.log2_std.exp2()[:, None, None]
        y = self.g_a(x)
        scale = gain * std
        z = self.h_a(y / std) * gain_z
        with torch.autocast(x.device.type, enabled=False):
            _, z_likelihoods = self.entropy_bottleneck(z)
        features = self.h_s(ste_round(z) / gain_z)
        y_hat, means, scales = self._context_walk(y * gain, features, scale)
        with torch.autocast(x.device.type, enabled=False):
            coded = y * gain if self.training else y_hat
            _, y_likelihoods = self.gaussian_conditional(coded, scales, means)
        return {"x_hat": self.g_s(y_hat / gain).float(), "y_likelihoods": y_likelihoods, "z_likelihoods": z_likelihoods}

    def _context_walk(self, v: Tensor, features: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        anchors = anchor_mask(v.shape[-2], v.shape[-1], v.device)
        context = torch.zeros_like(features)
        means, scales = self.means_scales(features, context, scale)
        y_hat = ste_symbols(v - means, scales) + means
        context = torch.relu(self.context(y_hat * anchors / scale)) * ~anchors
        means_2, scales_2 = self.means_scales(features, context, scale)
        means, scales = torch.where(anchors, means, means_2), torch.where(anchors, scales, scales_2)
        return torch.where(anchors, y_hat, ste_symbols(v - means, scales) + means), means, scales

    def means_scales(self, features: Tensor, context: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and scale (B, M, h, w) of y·gain from the (B, F, h, w) features and context."""
        mean, log2_scale = self.parameters_net(torch.cat([features, context.to(features.dtype)], dim=1)).chunk(2, dim=1)
        return mean * scale, log2_scale.clamp(-16, 16).exp2() * scale
