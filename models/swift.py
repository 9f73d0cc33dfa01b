"""``swift``: a mean-scale hyperprior with a two-pass context whose transforms work at 1/8 and 1/16 resolution.

Dense 1×1 and 3×3 convolutions on few positions run near a CPU's peak where strided 5×5 ones with GDN do not. The first
layers start as a lapped Karhunen–Loève transform (``models.klt``), so training begins from a good linear codec.

    x ─ lap ─ unshuffle 8 ─ 1×1 ─ blocks ─ 3×3 ↓2 ─ blocks ─ 1×1 ─ y ──── · gain ─ Q ─ y_hat · 1/gain + bias ── g_s ─ x_hat
                                                                   │                 │
                                                                   └ h_a ─ z ─ Q ─ h_s ┐ context (first pass → second)
                                                                                  parameters ─ mean, scale

The context is crossed: the first pass codes the even channels at anchors and the odd ones elsewhere, the second the rest, from
the 3×3 neighbours and half of the channels at the very position. What it sees has a gain for each level, it and the parameter
network have a bias: at low rates neighbours are noisy. Or it is a plain checkerboard of positions ("checkerboard"). What g_s
sees has an inverse gain and a bias for each level too, where config has ``inverse_gain`` (``models.network``).

This file holds the float networks; gains and the training ``forward`` are in ``models.network``. Coding runs in integers:
``models.entropy``.

Sources: Ballé 2018 (arXiv 1802.01436), Minnen 2018 (1809.02736), He 2021 (checkerboard, 2103.15306), CompressAI's blocks.
"""

from __future__ import annotations

import torch
from compressai.layers import CheckerboardMaskedConv2d, conv1x1, conv3x3, subpel_conv3x3
from compressai.models.sensetime import ResidualBottleneckBlock
from compressai.models.utils import conv
from torch import Tensor, nn

from models.configs import SwiftConfig
from models.layers import Float32, LappedFilter, LevelBias, Transform
from models.network import Network, Symbols, zero_start
from models.schedule import anchor_mask, crossed_mask


def _blocks(channels: int, count: int) -> nn.Sequential:
    blocks = [ResidualBottleneckBlock(channels, channels) for _ in range(count)]
    for block in blocks:
        nn.init.zeros_(block.conv3.weight)  # each block starts as the identity
        nn.init.zeros_(block.conv3.bias)
    return nn.Sequential(*blocks)


class Analysis(Transform):
    """g_a: (B, 3, H, W) in [0, 1] → y (B, M, H/16, W/16); H and W multiples of 16."""

    float32_layers = ("stem",)
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


class Synthesis(Transform):
    """g_s: y_hat (B, M, H/16, W/16) → x_hat (B, 3, H, W), mirrors ``Analysis``."""

    float32_layers = ("up", "tail")
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


class Parameters(nn.Module):
    """Features and context (B, 2F, h, w), and the level (B,) → mean and log2 scale of y / std (B, 2M, h, w)."""

    def __init__(self, cfg: SwiftConfig) -> None:
        super().__init__()
        self.hidden = LevelBias(conv1x1(2 * cfg.features, cfg.hidden), cfg.context_levels)
        self.out = LevelBias(Float32(conv1x1(cfg.hidden, 2 * cfg.M)), cfg.context_levels)
        zero_start(self.out)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(x, level)), level)


class Swift(Network):
    """The training network. ``forward`` gives x_hat and likelihoods; real bits come from ``models.entropy``."""

    cfg: SwiftConfig
    g_a: Analysis
    g_s: Synthesis
    h_s: HyperSynthesis

    def __init__(self, cfg: SwiftConfig | None = None) -> None:
        cfg = cfg or SwiftConfig()
        super().__init__(cfg)
        self.g_a = Analysis(cfg)
        self.g_s = Synthesis(cfg)
        self.h_a = HyperAnalysis(cfg)
        self.h_s = HyperSynthesis(cfg)
        if cfg.order == "crossed":
            context = conv3x3(cfg.M, cfg.features)
            self.log2_gain_context = nn.Parameter(torch.zeros(cfg.levels, cfg.M))
        else:
            context = CheckerboardMaskedConv2d(cfg.M, cfg.features, kernel_size=5, padding=2)
        self.context = LevelBias(context, cfg.context_levels)
        self.parameters_net = Parameters(cfg)

    def predict(
        self, v: Tensor, features: Tensor, scale: Tensor, level: Tensor, symbols: Symbols | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Network.predict``: the first pass without context, then the second with the first as context."""
        symbols = symbols or self.symbols
        first = self._first_pass(v)
        means, scales = self.means_scales(features, torch.zeros_like(features), scale, level)
        y_hat = symbols(v - means, scales) + means
        seen = y_hat * first / scale
        if self.log2_gain_context is not None:
            seen = seen * self.interpolate(self.log2_gain_context, level)
        context = torch.relu(self.context(seen, level))
        means_2, scales_2 = self.means_scales(features, context, scale, level)
        means, scales = torch.where(first, means, means_2), torch.where(first, scales, scales_2)
        y_hat = torch.where(first, y_hat, symbols(v - means, scales) + means)
        return y_hat, {"scales": scales, "means": means}

    def _first_pass(self, v: Tensor) -> Tensor:
        """Return the mask, (h, w) or (M, h, w), of what is coded first of v (B, M, h, w)."""
        channels, h, w = v.shape[1:]
        return crossed_mask(channels, h, w, v.device) if self.cfg.order == "crossed" else anchor_mask(h, w, v.device)

    def means_scales(self, features: Tensor, context: Tensor, scale: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and scale (B, M, h, w) of y·gain from the (B, F, h, w) features and context."""
        both = torch.cat([features, context.to(features.dtype)], dim=1)
        mean, log2_scale = self.parameters_net(both, level).chunk(2, dim=1)
        return mean * scale, self.scales(log2_scale, scale)

    def entropy_layers(self) -> dict[str, nn.Module]:
        """See ``Network.entropy_layers``."""
        return {
            "hyper_1": self.h_s.up_1,
            "hyper_2": self.h_s.up_2,
            "context": self.context,
            "parameters_1": self.parameters_net.hidden,
            "parameters_2": self.parameters_net.out,
        }
