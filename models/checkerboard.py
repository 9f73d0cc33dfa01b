"""``checkerboard``: the context of ``joint`` in two passes, of He, Zheng, Sun, Wang, Qin: "Checkerboard context model for
efficient learned image compression", CVPR 2021, https://arxiv.org/abs/2103.15306.

    x ── g_a ── y ──── · gain ─ Q ─ y_hat ─ · 1/gain ── g_s ── x_hat
                │               │ └ anchors ─ checkerboard 5×5 context ┐ (0 for the anchors)
                └ h_a ─ z ─ Q ─ h_s ───────────────────────────────────┴ parameters ─ mean, scale

Networks are those of ``joint`` with CompressAI's ``CheckerboardMaskedConv2d``.
"""

from __future__ import annotations

import torch
from compressai.layers import CheckerboardMaskedConv2d
from torch import Tensor

from models.configs import CheckerboardConfig, ContextConfig
from models.joint import Joint
from models.network import Symbols
from models.schedule import anchor_mask


class Checkerboard(Joint):
    """The training network. ``forward`` gives x_hat and likelihoods; real bits come from ``models.entropy``."""

    def __init__(self, cfg: ContextConfig | None = None) -> None:
        super().__init__(cfg or CheckerboardConfig())
        self.context_prediction = CheckerboardMaskedConv2d(self.cfg.M, 2 * self.cfg.M, kernel_size=5, padding=2)

    def predict(
        self, v: Tensor, features: Tensor, scale: Tensor, level: Tensor, symbols: Symbols | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Network.predict``: the anchors without context, then the rest with the anchors as context."""
        symbols = symbols or self.symbols
        anchors = anchor_mask(v.shape[-2], v.shape[-1], v.device)
        means, scales = self.means_scales(features, torch.zeros_like(features), scale)
        y_hat = symbols(v - means, scales) + means
        context = self.context_prediction(y_hat * anchors / scale)
        means_2, scales_2 = self.means_scales(features, context, scale)
        means, scales = torch.where(anchors, means, means_2), torch.where(anchors, scales, scales_2)
        y_hat = torch.where(anchors, y_hat, symbols(v - means, scales) + means)
        return y_hat, {"scales": scales, "means": means}
