"""What all networks share: rate levels by gain vectors, and the training ``forward`` around a model's own prediction of y.

    x ── g_a ── y ─ · gain ─ Q ─ y_hat · 1/gain ── g_s ─ x_hat
                │                  │
                └ h_a ─ z ─ Q ─ h_s ── predict ─ mean, scale of y · gain

The entropy networks see y divided by a constant per channel (2^log2_std, about its size), before the gain; means and scales
are multiplied by gain·std afterwards. So one small network serves every rate, and an untrained one already gives every
symbol about the right scale. One level alone is the fixed-λ training of the papers.

Source of the gain vectors: Cui 2021 (gain and inverse gain units, arXiv 2003.02012).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from pytorch_msssim import ms_ssim
from torch import Tensor, nn

from models.configs import RateConfig
from models.latents import INVERSE_GAIN
from models.layers import Float32, at_levels, weight_and_bias
from models.layout import EntropyLayout
from models.rounding import ste_round, ste_symbols
from models.row_bits import row_bits

Symbols = Callable[[Tensor, Tensor], Tensor]  # (residual, scales) → symbols
MS_SSIM_SIDE = 160  # pixels; the five scales of MS-SSIM need more than that
MS_SSIM_WEIGHT = 1250.0  # CompressAI's λ for MS-SSIM are those for MSE times 1225 … 1333


class Network(nn.Module):
    """Base of all models. A model sets g_a, g_s, h_a, h_s and writes ``predict`` and ``entropy_layers``."""

    cfg: Any
    log2_std: Tensor
    rows: Tensor | None  # bits (64, 1024) of symbols by scale index and magnitude; None: y is rated by Gaussians
    log2_gain_context: nn.Parameter | None  # (levels, M), of what the context sees; None: 1
    log2_gain_s: nn.Parameter | None  # (levels, M), of what g_s sees besides 1/gain; None: 1
    level_bias_s: nn.Parameter | None  # (levels, M), of what g_s sees, in units of std; None: 0
    g_a: nn.Sequential
    g_s: nn.Sequential
    h_a: nn.Sequential
    h_s: nn.Sequential

    def __init__(self, cfg: RateConfig, *, hyper: bool = True) -> None:
        super().__init__()
        self.cfg = cfg
        self.entropy_bottleneck = EntropyBottleneck(cfg.N if hyper else cfg.M)
        self.log2_gain = nn.Parameter(torch.zeros(cfg.levels, cfg.M))
        self.register_parameter("log2_gain_context", None)
        for name in INVERSE_GAIN:
            self.register_parameter(name, nn.Parameter(torch.zeros(cfg.levels, cfg.M)) if cfg.inverse_gain else None)
        if hyper:
            self.gaussian_conditional = GaussianConditional(None)
            self.log2_gain_z = nn.Parameter(torch.zeros(cfg.levels, cfg.N))
        self.register_buffer("log2_std", torch.zeros(cfg.M))
        self.register_buffer("rows", None, persistent=False)

    @property
    def std(self) -> Tensor:
        """Return the constant per channel (M, 1, 1) that the entropy networks see y divided by."""
        return self.log2_std.exp2()[:, None, None]

    def interpolate(self, log2_gain: Tensor, level: Tensor) -> Tensor:
        """Return gains (B, C, 1, 1) at fractional levels (B,) from their logarithms (levels, C)."""
        return at_levels(log2_gain, level).exp2()[:, :, None, None]

    def gains(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain (B, M, 1, 1) and gain of z (B, N, 1, 1) at fractional levels (B,)."""
        return self.interpolate(self.log2_gain, level), self.interpolate(self.log2_gain_z, level)

    def hyper_input(self, y: Tensor) -> Tensor:
        """Return what h_a sees of y / std."""
        seen: Tensor = self.cfg.hyper_input(y)
        return seen

    def predict(
        self, v: Tensor, features: Tensor, scale: Tensor, level: Tensor, symbols: Symbols | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the rounded v = y·gain and the arguments of ``gaussian_conditional``, by any part of y_hat coded before.

        v is (B, M, h, w), features h_s(z_hat), scale = gain·std (B, M, 1, 1) at level (B,). ``symbols`` rounds residuals, given
        their scales, with a gradient: ``self.symbols`` if None; models that are not ``refinable`` have their own.
        """
        raise NotImplementedError

    def symbols(self, residual: Tensor, scales: Tensor) -> Tensor:
        """Round residuals as coding does; the gradient passes straight through."""
        return ste_symbols(residual, scales, self.layout().dead_zone_strength)

    def layout(self) -> EntropyLayout:
        """Return the structure of the integer entropy path."""
        layout: EntropyLayout = self.cfg.layout()
        return layout

    def entropy_layers(self) -> dict[str, nn.Module]:
        """Return the convolutions that become integer layers, by the names of a checkpoint, in the order they run."""
        raise NotImplementedError

    def z_hat(self, z: Tensor) -> Tensor:
        """Return z rounded around the medians of its density; the gradient passes straight through."""
        medians = self.entropy_bottleneck.quantiles[:, 0, 1].detach()[:, None, None]
        return ste_round(z - medians) + medians

    def forward(self, x: Tensor, level: Tensor, *, reconstruct: bool = True) -> dict[str, Tensor]:
        """Run the whole model with differentiable quantisation.

        x is (B, 3, H, W) in [0, 1], sides multiples of 64; level is (B,) in [0, levels - 1]. In training rates see
        uniform noise; synthesis, context and, in eval mode, rates see the coder's rounding (Minnen 2020, arXiv 2007.08739).
        Returns x_hat (B, 3, H, W), or x itself if not ``reconstruct``, y_likelihoods (B, M, H/16, W/16), z_likelihoods
        (B, N, H/64, W/64).
        """
        y, z_likelihoods, y_hat, arguments = self._latents(x, level)
        gain, _ = self.gains(level)
        with torch.autocast(x.device.type, enabled=False):
            y_likelihoods = self._y_likelihoods(y * gain, y_hat, arguments)
        x_hat = self.g_s(self.synthesis_input(y_hat, level)).float() if reconstruct else x
        return {"x_hat": x_hat, "y_likelihoods": y_likelihoods, "z_likelihoods": z_likelihoods}

    def synthesis_input(self, y_hat: Tensor, level: Tensor) -> Tensor:
        """Return what g_s takes (B, M, h, w) of y·gain as coded: without gain, with g_s's own gain and bias of the level."""
        return self.inverse_gained(y_hat / self.interpolate(self.log2_gain, level), level)

    def inverse_gained(self, latents: Tensor, level: Tensor) -> Tensor:
        """Return latents (B, M, h, w), of the size of y, with g_s's own gain and bias of the level."""
        if self.log2_gain_s is not None:
            latents = latents * self.interpolate(self.log2_gain_s, level)
        if self.level_bias_s is not None:
            latents = latents + at_levels(self.level_bias_s, level)[:, :, None, None] * self.std
        return latents

    def _y_likelihoods(self, v: Tensor, y_hat: Tensor, arguments: dict[str, Tensor]) -> Tensor:
        """Return the likelihoods of v = y·gain under uniform noise in training, else of y_hat; with ``rows`` those of coding.

        Those have no gradient in the symbols: the scales learn by them, y and the means in training by what residuals with
        uniform noise cost in the rows.
        """
        likelihoods: Tensor
        if self.rows is None:
            _, likelihoods = self.gaussian_conditional(v if self.training else y_hat, **arguments)
            return likelihoods
        scales, means = arguments["scales"], arguments.get("means")
        symbols = (y_hat if means is None else y_hat - means).detach().round()
        likelihoods = (-row_bits(self.rows, symbols, scales)).exp2()
        if self.training:
            noisy = row_bits(self.rows, (v if means is None else v - means) + torch.rand_like(v) - 0.5, scales.detach())
            likelihoods = likelihoods * (noisy.detach() - noisy).exp2()
        return likelihoods

    def coded(self, x: Tensor, level: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return y·gain as it is coded, and what ``predict`` says of it, for pictures and levels as ``forward`` takes them."""
        _, _, y_hat, arguments = self._latents(x, level)
        return y_hat, arguments

    def _latents(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Return y, the likelihoods of z, and what ``predict`` returns."""
        gain, gain_z = self.gains(level)
        y = self.g_a(x)
        z = self.h_a(self.hyper_input(y / self.std)) * gain_z
        with torch.autocast(x.device.type, enabled=False):
            _, z_likelihoods = self.entropy_bottleneck(z)
        features = self.h_s(self.z_hat(z) / gain_z)
        return y, z_likelihoods, *self.predict(y * gain, features, gain * self.std, level)

    def scales(self, raw: Tensor, scale: Tensor) -> Tensor:
        """Return the scale of y·gain from a network's output: log2 of it in units of std, or linear in imported weights."""
        if getattr(self.cfg, "linear_scale", False):
            return raw * scale
        return raw.clamp(-16, 16).exp2() * scale


def float32_at(layers: nn.Sequential, *indexes: int) -> nn.Sequential:
    """Wrap layers of a sequence into ``Float32``: those that make or take y and z."""
    for index in indexes:
        layers[index] = Float32(layers[index])
    return layers


def context_layers(h_s: nn.Sequential, context: nn.Module, parameters: nn.Sequential) -> dict[str, nn.Module]:
    """Return ``entropy_layers`` of CompressAI's networks with a context: all but the activations."""
    named = {"hyper": h_s, "parameters": parameters}
    kept = {name: [layer for layer in part if not isinstance(layer, nn.LeakyReLU)] for name, part in named.items()}
    hyper, last = ({f"{name}_{i}": layer for i, layer in enumerate(part, 1)} for name, part in kept.items())
    return hyper | {"context": context} | last


def zero_start(layer: nn.Module) -> None:
    """Start the last layer of an entropy network at mean 0 and scale 1: right for every channel and level."""
    for parameter in weight_and_bias(layer):
        nn.init.zeros_(parameter)


def rate_distortion(out: dict[str, Tensor], x: Tensor, tune: str = "psnr") -> tuple[Tensor, Tensor]:
    """Return bits per pixel (B,) and the ``distortion`` (B,) of a ``forward`` result."""
    pixels = x.shape[-2] * x.shape[-1]
    bits = [-value.log2().flatten(1).sum(1) for key, value in out.items() if key.endswith("_likelihoods")]
    return torch.stack(bits).sum(0) / pixels, distortion(out["x_hat"], x, tune)


def distortion(x_hat: Tensor, x: Tensor, tune: str = "psnr") -> Tensor:
    """Return the distortion (B,) of (B, 3, H, W) batches in [0, 1]: the mean squared error.

    With ``tune`` "ms-ssim" it is 1 − MS-SSIM (sides above 160), times ``MS_SSIM_WEIGHT`` / 255²: about as large at the same λ.
    """
    if tune == "ms-ssim":
        similarity = ms_ssim(x_hat.float(), x.float(), data_range=1.0, size_average=False)
        return (1 - similarity) * (MS_SSIM_WEIGHT / 255**2)
    return (x_hat - x).square().flatten(1).mean(1)
