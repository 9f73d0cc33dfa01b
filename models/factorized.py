"""``factorized``: y coded with one non-parametric density per channel and nothing else, of Ballé, Laparra, Simoncelli:
"End-to-end optimized image compression", ICLR 2017, https://arxiv.org/abs/1611.01704; density with K = 4 layers of Ballé,
Minnen, Singh, Hwang, Johnston, 2018, https://arxiv.org/abs/1802.01436, appendix 6.1.

    x ── g_a ── y ─ · gain ─ Q ─ y_hat ─ · 1/gain ── g_s ── x_hat
                             │
                     density per channel

Networks are CompressAI's ``FactorizedPrior``; added are gain vectors (``models.network``). The density is of y itself: at
gain g a symbol k has the mass of [(k − 1/2) / g, (k + 1/2) / g], so one density serves every rate.
"""

from __future__ import annotations

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.models import FactorizedPrior
from torch import Tensor, nn

from models.configs import FactorizedConfig
from models.network import Network, float32_at
from models.rounding import ste_round

LIKELIHOOD_MIN = 1e-9  # CompressAI's bound


class Factorized(Network):
    """The training network. ``forward`` gives x_hat and likelihoods; real bits come from ``models.factorized_entropy``."""

    cfg: FactorizedConfig

    def __init__(self, cfg: FactorizedConfig | None = None) -> None:
        cfg = cfg or FactorizedConfig()
        super().__init__(cfg, hyper=False)
        self.entropy_bottleneck = EntropyBottleneck(cfg.M, init_scale=1.0)  # it sees y / std
        source = FactorizedPrior(cfg.N, cfg.M)
        self.g_a = float32_at(source.g_a, -1)
        self.g_s = float32_at(source.g_s, 0)

    @property
    def medians(self) -> Tensor:
        """Return the medians of y / std (M, 1, 1): what a symbol 0 stands for."""
        return self.entropy_bottleneck.quantiles[:, 0, 1].detach()[:, None, None]

    def cumulative(self, y: Tensor) -> Tensor:
        """Return the logits of the cumulative density of y / std, (M, 1, n)."""
        return self.entropy_bottleneck._logits_cumulative(y, stop_gradient=False)

    def forward(self, x: Tensor, level: Tensor, *, reconstruct: bool = True) -> dict[str, Tensor]:
        """See ``Network.forward``; there is no z."""
        gain = self.interpolate(self.log2_gain, level)
        y = self.g_a(x)
        with torch.autocast(x.device.type, enabled=False):
            step = 1 / (gain * self.std)  # of y / std
            y_hat = (ste_round((y / self.std - self.medians) / step) * step + self.medians) * self.std
            noise = torch.rand_like(y) - 0.5
            coded = y / self.std + noise * step if self.training else y_hat / self.std
            lower, upper = (self.cumulative((coded + side * step).transpose(0, 1).flatten(1)[:, None]) for side in (-0.5, 0.5))
            sign = -torch.sign(lower + upper).detach()  # the difference of sigmoids is exact on the side of small values
            mass = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
            b, m, h, w = y.shape
            likelihoods = mass.clamp(min=LIKELIHOOD_MIN).reshape(m, b, h, w).transpose(0, 1)
        return {
            "x_hat": self.g_s(self.inverse_gained(y_hat, level)).float() if reconstruct else x,
            "y_likelihoods": likelihoods,
        }

    def entropy_layers(self) -> dict[str, nn.Module]:
        """There are none."""
        return {}
