"""Time spent at the encoder: y is refined for one picture against the frozen decoder. Files decode as ever.

y·gain is optimised by stochastic annealing: each value is a mixture of its two neighbouring symbols, by its distance from
them and some noise; the temperature falls, and what remains is a choice. Where it begins, plain rounding gives the symbols of
plain coding, dead zone and all. The loss is the real one, bits of the CDF rows + λ·distortion (of ``swift``, λ is the slope of
the curve that files lie on), by floating-point twins of the integer entropy networks (``models.dequantise``). z stays as it is:
to refine it as well saves nothing. All activations of the picture are held.

Source: Yang, Bamler, Mandt, "Improving Inference for Neural Image Compression", NeurIPS 2020 (arXiv 2006.04240), with less
noise: theirs is the temperature's, which falls with its square, and spends half of 90 steps on getting back to where it begins.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bitstream.tables import MasterTable
from models.checkpoint import Checkpoint
from models.rounding import evened
from models.row_bits import bits_of_rows, row_bits

if TYPE_CHECKING:
    from models.network import Network, Symbols

STEPS = (0, 15, 25, 40, 60, 90, 130, 180, 250, 350, 500)  # of effort 0 … 10
RATE = 0.015  # of Adam, in quantisation steps; a tenth of it at the end
BETAS = (0.9, 0.99)
NOISE = (0.4, 0.2)  # of the choice between symbols at the start and at the end, in its logit
TEMPERATURE = (0.5, 0.2)  # at the start and at the end
EDGE = 1e-4  # distance from a symbol within which a value counts as that symbol


def soft_symbols(residual: Tensor, noise: float, temperature: float, generator: torch.Generator) -> Tensor:
    """Return residuals as noisy mixtures of their two neighbouring integers, nearly one-hot when it is cold."""
    low = residual.detach().floor()
    logit = torch.logit((residual - low).clamp(EDGE, 1 - EDGE))  # of the upper neighbour
    uniform = torch.rand(logit.shape, generator=generator, device=logit.device).clamp_(1e-7, 1 - 1e-7)
    return low + torch.sigmoid((logit + noise * torch.logit(uniform)) / temperature)


def _mixed(noise: float, temperature: float, generator: torch.Generator, residual: Tensor, scales: Tensor) -> Tensor:
    return soft_symbols(residual, noise, temperature, generator)


def falling(ends: tuple[float, float], share: float) -> float:
    """Return what a value is after a share of its geometric fall."""
    start, end = ends
    return start * (end / start) ** share


class Rated(NamedTuple):
    """What some y·gain cost, what they are coded as, and the means and scales (1, M, h, w) that they are coded with."""

    cost: Tensor
    y_hat: Tensor
    means: Tensor
    scales: Tensor


class Refiner:
    """The float twin of a checkpoint, ready to refine. ``autocast`` runs its convolutions in bf16."""

    def __init__(
        self, checkpoint: Checkpoint, network: Network, y_table: MasterTable, device: torch.device, *, autocast: bool
    ) -> None:
        from models.dequantise import dequantise  # with CompressAI: not for those who only want to know STEPS

        dequantise(network.to(torch.float32), checkpoint.tensors)  # whatever a caller's default type is
        self.bits = bits_of_rows(y_table).to(device)
        layout = torch.channels_last if network.cfg.bf16_channels_last else torch.contiguous_format
        self.network = network.to(device).to(memory_format=layout).eval().requires_grad_(False)
        self.device, self.autocast = device, autocast

    @torch.inference_mode(False)  # a caller's would leave nothing to differentiate
    def refine(
        self, x: Tensor, y: Tensor, z: Tensor, level: int, steps: int, progress: Callable[[float], None] = lambda _: None,
        *, around: Tensor | None = None, place: tuple[int, int] = (0, 0),
    ) -> Tensor:  # fmt: skip
        """Return y (1, M, h, w) refined for a level in 1/256, at whole symbols, or as it is if nothing better was found.

        x is (1, 3, H, W) in [0, 1] or uint8, y and z (1, N, h/4, w/4) are what ``LoadedModel.analyse`` gave. ``around`` is
        the y of all of x if y is only a tile of it, from row and column ``place`` on. On one machine with one number of
        threads the same picture gives the same result.
        """
        x, y = x.to(self.device).clone(), y.clone()  # inference tensors cannot be part of a graph
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        rated = self._rating(x, z.clone(), level, (y if around is None else around).clone(), place)
        gain, _ = self.network.gains(torch.tensor([level / 256], dtype=torch.float32, device=self.device))
        generator = torch.Generator(device=self.device).manual_seed(0)
        with torch.no_grad():
            plain = rated(y * gain, self.network.symbols)
            v = plain.means + evened(y * gain - plain.means, plain.scales, self.network.layout().dead_zone_strength)
        v.requires_grad_(True)
        optimizer = torch.optim.Adam([v], lr=RATE, betas=BETAS)
        for step in range(steps):
            share = step / steps
            soft = partial(_mixed, falling(NOISE, share), falling(TEMPERATURE, share), generator)
            optimizer.param_groups[0]["lr"] = RATE * (1 - 0.9 * share)
            optimizer.zero_grad()
            with torch.enable_grad():
                rated(v, soft).cost.backward()
            optimizer.step()
            progress((step + 1) / steps)
        with torch.no_grad():
            # what is handed over is rounded: coding meets whole residuals, of which its dead zone may still drop a few
            refined = rated(v, lambda residual, scales: self.network.symbols(residual.round(), scales))
        return refined.y_hat / gain if refined.cost < plain.cost else y

    def _rating(
        self, x: Tensor, z: Tensor, level: int, around: Tensor, place: tuple[int, int]
    ) -> Callable[[Tensor, Symbols], Rated]:
        """Return the function from y·gain (1, M, h, w), and a way to round it, to bits + λ·255²·pixels·distortion."""
        from models.network import MS_SSIM_SIDE, distortion

        net, (h, w) = self.network, x.shape[-2:]
        position = torch.tensor([level / 256], dtype=torch.float32, device=self.device)
        weight = float(net.cfg.lmbda(position)) * 255**2 * h * w
        tune = net.cfg.tune if min(h, w) > MS_SSIM_SIDE else "psnr"  # about as large at the same λ
        gain, gain_z = net.gains(position)
        surround, (top, left) = (around * gain).round(), place
        with torch.no_grad(), self._precision():
            features = net.h_s(net.z_hat(z * gain_z) / gain_z)

        def rated(v: Tensor, symbols: Symbols) -> Rated:
            with self._precision():
                y_hat, arguments = net.predict(v, features, gain * net.std, position, symbols)
                seen = surround.clone()
                seen[..., top : top + v.shape[-2], left : left + v.shape[-1]] = y_hat
                x_hat = net.g_s(net.synthesis_input(seen, position)).float()[..., :h, :w]
            with torch.autocast(self.device.type, enabled=False):
                means, scales = arguments["means"], arguments["scales"]
                rate = row_bits(self.bits, y_hat - means, scales).sum()
                return Rated(weight * distortion(x_hat, x, tune).sum() + rate, y_hat, means, scales)

        return rated

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)
