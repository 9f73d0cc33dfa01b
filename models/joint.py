"""``joint``: mean-scale hyperprior with a serial context of Minnen, Ballé, Toderici: "Joint autoregressive and hierarchical
priors for learned image compression", NeurIPS 2018, https://arxiv.org/abs/1809.02736.

    x ── g_a ── y ──── · gain ─ Q ─ y_hat ─ · 1/gain ── g_s ── x_hat
                │               │ └ masked 5×5 context ┐
                └ h_a ─ z ─ Q ─ h_s ───────────────────┴ parameters ─ mean, scale

Networks are CompressAI's ``JointAutoregressiveHierarchicalPriors``; added are gain vectors (``models.network``). Coding
runs in wavefronts: all positions of equal x + 3y depend on earlier ones alone (``models.schedule``).
"""

from __future__ import annotations

import torch
from compressai.models import JointAutoregressiveHierarchicalPriors
from torch import Tensor, nn

from models.configs import ContextConfig
from models.network import Network, Symbols, context_layers, float32_at, zero_start
from models.rounding import ste_round, ste_symbols

PASSES = 3  # of an estimate outside of training


class Joint(Network):
    """The training network. ``forward`` gives x_hat and likelihoods; real bits come from ``models.entropy``."""

    cfg: ContextConfig

    def __init__(self, cfg: ContextConfig | None = None) -> None:
        cfg = cfg or ContextConfig()
        super().__init__(cfg)
        source = JointAutoregressiveHierarchicalPriors(cfg.N, cfg.M)
        self.g_a = float32_at(source.g_a, -1)
        self.g_s = float32_at(source.g_s, 0)
        self.h_a = float32_at(source.h_a, -1)
        self.h_s = source.h_s
        self.context_prediction: nn.Conv2d = source.context_prediction
        self.entropy_parameters = source.entropy_parameters
        zero_start(self.entropy_parameters[-1])
        float32_at(self.entropy_parameters, -1)

    def means_scales(self, features: Tensor, context: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and scale (B, M, h, w) of y·gain from the (B, 2M, h, w) features and context."""
        raw, mean = self.entropy_parameters(torch.cat([features, context.to(features.dtype)], dim=1)).chunk(2, dim=1)
        return mean * scale, self.scales(raw, scale)

    def predict(
        self, v: Tensor, features: Tensor, scale: Tensor, level: Tensor, symbols: Symbols | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Network.predict``. Contexts see what an earlier pass rounded to, that of the first pass plainly rounded v.

        Coding has y_hat there, position by position; each pass comes nearer to it.
        """
        if self.cfg.plain_rounding:
            y_hat = ste_round(v)
            means, scales = self.means_scales(features, self.context_prediction(y_hat / scale), scale)
            return y_hat, {"scales": scales, "means": means}
        with torch.no_grad():
            near = v.round()
            for _ in range(1 if self.training else PASSES):
                means, scales = self.means_scales(features, self.context_prediction(near / scale), scale)
                near = ste_symbols(v - means, scales) + means
        means, scales = self.means_scales(features, self.context_prediction((v + (near - v).detach()) / scale), scale)
        return ste_symbols(v - means, scales) + means, {"scales": scales, "means": means}

    def entropy_layers(self) -> dict[str, nn.Module]:
        """See ``Network.entropy_layers``."""
        return context_layers(self.h_s, self.context_prediction, self.entropy_parameters)
