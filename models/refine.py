"""Time spent at the encoder: y is refined for one picture against the frozen decoder. Files decode as ever.

y·gain is optimised by stochastic Gumbel annealing: each value is a random mixture of its two neighbouring symbols, the
temperature falls, and what remains is a choice. The loss is the real one, bits + λ·255²·MSE, by floating-point twins of the
integer entropy networks (``models.quantise.dequantise``). z stays as it is: it is a hundredth of the bits.

Source: Yang, Bamler, Mandt, "Improving Inference for Neural Image Compression", NeurIPS 2020 (arXiv 2006.04240).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitstream.errors import UsageError
from models.checkpoint import Checkpoint
from models.network import Network
from models.quantise import dequantise
from models.rounding import ste_symbols

STEPS = (0, 15, 25, 40, 60, 90, 130, 180, 250, 350, 500)  # of effort 0 … 10
RATE = 0.025  # of Adam, in quantisation steps; a tenth of it at the end
BETAS = (0.9, 0.99)
HOT, COLD = 1.2, 0.15  # temperature at the start and at the end
LIKELIHOOD_MIN = 1e-9
EDGE = 1e-4  # distance from a symbol within which a value counts as that symbol


def gumbel_symbols(residual: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Return residuals as random mixtures of their two neighbouring integers, nearly one-hot when it is cold."""
    low = residual.detach().floor()
    part = (residual - low).clamp(EDGE, 1 - EDGE)
    logit = (torch.atanh(part) - torch.atanh(1 - part)) / temperature  # of the upper neighbour
    uniform = torch.rand(part.shape, generator=generator, device=part.device).clamp_(1e-7, 1 - 1e-7)
    return low + torch.sigmoid((logit + torch.logit(uniform)) / temperature)


class Refiner:
    """The float twin of a checkpoint, ready to refine. Raises UsageError for models that have no refinement."""

    def __init__(self, checkpoint: Checkpoint, network: Network, device: torch.device, autocast: bool) -> None:
        if not network.refinable:
            raise UsageError(f"{checkpoint.model} has no effort above 0: leave it away, or choose swift")
        dequantise(network, checkpoint.tensors)
        self.network = network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.autocast = autocast

    @torch.inference_mode(False)  # a caller's would leave nothing to differentiate
    def refine(
        self, x: Tensor, y: Tensor, z: Tensor, level: int, steps: int, progress: Callable[[float], None] = lambda _: None
    ) -> Tensor:
        """Return y (1, M, h, w) refined for a level in 1/256, or as it is if nothing better was found.

        x is (1, 3, H, W) in [0, 1], y and z (1, N, h/4, w/4) are what ``LoadedModel.analyse`` gave.
        """
        net = self.network
        device = next(net.parameters()).device
        position = torch.tensor([level / 256], device=device)
        weight = float(net.cfg.lmbda(position)) * 255**2 / 3  # of the squared errors, against bits
        generator = torch.Generator(device=device).manual_seed(0)  # the same picture gives the same file
        gain, gain_z = net.gains(position)
        scale = gain * net.std
        x, y = x.to(device).clone(), y.clone()  # inference tensors cannot be part of a graph
        start = y * gain
        with torch.no_grad(), self._precision(device):
            features = net.h_s(net.z_hat(z.clone() * gain_z) / gain_z)

        def loss(v: Tensor, symbols: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            net.symbols = symbols
            with self._precision(device):
                y_hat, arguments = net.predict(v, features, scale)
                x_hat = net.g_s(y_hat / gain).float()
            with torch.autocast(device.type, enabled=False):
                means = arguments.get("means")
                mass = net.gaussian_conditional._likelihood(y_hat, arguments["scales"], means).clamp(min=LIKELIHOOD_MIN)
                return weight * (x_hat[..., : x.shape[-2], : x.shape[-1]] - x).square().sum() - mass.log2().sum()

        def mixed(temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda residual, _: gumbel_symbols(residual, temperature, generator)

        v = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([v], lr=RATE, betas=BETAS)
        try:
            for step in range(steps):
                share = step / steps
                optimizer.param_groups[0]["lr"] = RATE * (1 - 0.9 * share)
                optimizer.zero_grad()
                with torch.enable_grad():
                    loss(v, mixed(HOT * (COLD / HOT) ** share)).backward()
                optimizer.step()
                progress((step + 1) / steps)
            with torch.no_grad():
                better = bool(loss(v, ste_symbols) < loss(start, ste_symbols))
        finally:
            del net.symbols
        return v.detach() / gain if better else y

    def _precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast)
