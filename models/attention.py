"""``attention``: residual and attention blocks, Gaussian mixtures with a serial context, of Cheng, Sun, Takeuchi, Katto:
"Learned image compression with discretized Gaussian mixture likelihoods and attention modules", CVPR 2020,
https://arxiv.org/abs/2001.01568.

    x ── g_a ── y ──── · gain ─ Q ─ y_hat ─ · 1/gain ── g_s ── x_hat
                │               │ └ masked 5×5 context ┐
                └ h_a ─ z ─ Q ─ h_s ───────────────────┴ parameters ─ weight, mean, scale of 3 components

Networks are CompressAI's ``Cheng2020Attention`` (its ``Cheng2020Anchor`` without ``attention_blocks``), with three mixture
components as in the paper where CompressAI has one; added are gain vectors (``models.network``). y is rounded by itself: a
mixture has no one mean to round around.
"""

from __future__ import annotations

import torch
from compressai.entropy_models import GaussianMixtureConditional
from compressai.models import Cheng2020Anchor, Cheng2020Attention
from torch import Tensor, nn

from models.configs import AttentionConfig
from models.layers import Float32, weight_and_bias
from models.network import Network, Symbols, context_layers, float32_at, zero_start
from models.rounding import ste_round


class Attention(Network):
    """The training network. ``forward`` gives x_hat and likelihoods; real bits come from ``models.entropy``."""

    cfg: AttentionConfig

    def __init__(self, cfg: AttentionConfig | None = None) -> None:
        cfg = cfg or AttentionConfig()
        super().__init__(cfg)
        source = (Cheng2020Attention if cfg.attention_blocks else Cheng2020Anchor)(cfg.N)
        self.g_a = float32_at(source.g_a, *((-2, -1) if cfg.attention_blocks else (-1,)))
        self.g_s = float32_at(source.g_s, *((0, 1) if cfg.attention_blocks else (0,)))
        self.h_a = float32_at(source.h_a, -1)
        self.h_s = source.h_s
        self.context_prediction: nn.Conv2d = source.context_prediction
        self.entropy_parameters = source.entropy_parameters
        k = cfg.mixtures
        last = self.entropy_parameters[-1]
        if k > 1:
            last = nn.Conv2d(last.in_channels, 3 * k * cfg.M, 1)
            zero_start(last)
            with torch.no_grad():  # components of different scales, or all would learn the same
                weight_and_bias(last)[1][: k * cfg.M] = torch.linspace(-1, 1, k).repeat_interleave(cfg.M)
        self.entropy_parameters[-1] = Float32(last)
        self.gaussian_conditional = GaussianMixtureConditional(K=k)

    def predict(
        self, v: Tensor, features: Tensor, scale: Tensor, level: Tensor, symbols: Symbols | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Network.predict``."""
        y_hat = ste_round(v)
        context = self.context_prediction(y_hat / scale)
        raw = self.entropy_parameters(torch.cat([features, context.to(features.dtype)], dim=1))
        k, m = self.cfg.mixtures, self.cfg.M
        scale = scale.repeat(1, k, 1, 1)
        scales, means = self.scales(raw[:, : k * m], scale), raw[:, k * m : 2 * k * m] * scale
        if k == 1:
            weights = torch.ones_like(means)
        else:  # base 2, as the integer path has it
            logits = raw[:, 2 * k * m :].unflatten(1, (k, m)) * 0.6931471805599453
            weights = logits.softmax(dim=1).flatten(1, 2)
        return y_hat, {"scales": scales, "means": means, "weights": weights}

    def entropy_layers(self) -> dict[str, nn.Module]:
        """See ``Network.entropy_layers``."""
        return context_layers(self.h_s, self.context_prediction, self.entropy_parameters)
