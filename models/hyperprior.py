"""``hyperprior``: the scale hyperprior of Ballé, Minnen, Singh, Hwang, Johnston: "Variational image compression with a scale
hyperprior", ICLR 2018, https://arxiv.org/abs/1802.01436.

    x ── g_a ── y ──── · gain ─ Q ─ y_hat ─ · 1/gain ── g_s ── x_hat
                │               │
                └ |y| ─ h_a ─ z ─ Q ─ h_s ─ scale

With ``means`` it is the mean-scale hyperprior (Minnen 2018, https://arxiv.org/abs/1809.02736, without its context).
Networks are CompressAI's ``ScaleHyperprior`` and ``MeanScaleHyperprior``; added are gain vectors (``models.network``).
"""

from __future__ import annotations

import torch
from compressai.models import MeanScaleHyperprior, ScaleHyperprior
from torch import Tensor, nn

from models.configs import HyperpriorConfig
from models.network import Network, Symbols, float32_at, zero_start


class Hyperprior(Network):
    """The training network. ``forward`` gives x_hat and likelihoods; real bits come from ``models.entropy``."""

    cfg: HyperpriorConfig

    def __init__(self, cfg: HyperpriorConfig | None = None) -> None:
        cfg = cfg or HyperpriorConfig()
        super().__init__(cfg)
        source = (MeanScaleHyperprior if cfg.means else ScaleHyperprior)(cfg.N, cfg.M)
        self.g_a = float32_at(source.g_a, -1)
        self.g_s = float32_at(source.g_s, 0)
        self.h_a = float32_at(source.h_a, -1)
        self.h_s = source.h_s
        if isinstance(self.h_s[-1], nn.ReLU):  # of a linear scale
            self.h_s = self.h_s[:-1]
        zero_start(self.h_s[-1])
        float32_at(self.h_s, -1)

    def predict(
        self, v: Tensor, features: Tensor, scale: Tensor, level: Tensor, symbols: Symbols | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Network.predict``."""
        symbols = symbols or self.symbols
        if self.cfg.means:
            raw, mean = features.chunk(2, dim=1)
            means = mean * scale
        else:
            raw, means = features, torch.zeros_like(v)
        scales = self.scales(raw, scale)
        return symbols(v - means, scales) + means, {"scales": scales, "means": means}

    def entropy_layers(self) -> dict[str, nn.Module]:
        """See ``Network.entropy_layers``."""
        return {"hyper_1": self.h_s[0], "hyper_2": self.h_s[2], "hyper_3": self.h_s[4]}
