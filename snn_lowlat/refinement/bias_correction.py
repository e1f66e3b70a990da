"""Bias correction: the channel means of the spiking network are brought to those of the original one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from snn_lowlat.graph import Site, bias_carrier, output_bias_carrier
from snn_lowlat.plan import SitePlan
from snn_lowlat.refinement.base import Refinement, check_counts
from snn_lowlat.refinement.registry import register_refinement
from snn_lowlat.refinement.walk import LayerwiseWalk, channel_mean, gather_images

__all__ = ["BiasCorrection"]

_LOGGER = logging.getLogger(__name__)


@register_refinement("bias_correction")
@dataclass(frozen=True, eq=False)
class BiasCorrection(Refinement):
    r"""Correct each layer's bias so that its mean output over images, positions and steps is the original network's.

    Layer by layer, with all layers before it already corrected, the difference of channel means

    .. math:: b_c \leftarrow b_c + \overline{a_c} - \frac{1}{T} \sum_t \overline{x_c(t)}

    of the activation :math:`a` and the neurons' output :math:`x` is added to the bias that feeds the layer, a few times
    over because the mean does not move by as much as the bias does. The readout is corrected in the same way. This is
    the light calibration of Li et al., "A Free Lunch From ANN" (ICML 2021, arXiv 2106.06984), repeated.

    A layer without a bias of its own, such as one that reads a concatenation which others read too, keeps its currents;
    the log names it.

    Parameters
    ----------
    images : int
        How many calibration images to use at the most. The currents of one layer for all of them are held in memory:
        ``images x timesteps x neurons of the layer`` floats.
    iterations : int
        How often the difference is measured and added, for each layer.
    """

    images: int = 512
    iterations: int = 4

    def __post_init__(self) -> None:
        check_counts(self, "images", "iterations")

    def refine(
        self,
        graph: fx.GraphModule,
        plan: dict[str, SitePlan],
        batches: Iterable[object],
        timesteps: int,
        reference: fx.GraphModule | None = None,
    ) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        """Return a copy of the network with corrected biases; the plan stays as it is."""
        images = gather_images(graph, batches, self.images, "bias_correction")
        return BiasWalk(graph, plan, images, timesteps, reference, iterations=self.iterations).run()


class BiasWalk(LayerwiseWalk):
    """The walk that brings each layer's channel means to those of the original network."""

    def __init__(self, *args: Any, iterations: int) -> None:
        super().__init__(*args)
        self._iterations = iterations

    def correct_site(self, site: Site, activations: Sequence[Tensor], currents: Sequence[Tensor]) -> Tensor | None:
        """Add the difference of the channel means to the layer's bias."""
        carrier = bias_carrier(self.graph, site, self.channels)
        if carrier is None:
            _LOGGER.warning("bias_correction: layer %s has no bias of its own and stays uncorrected.", site.name)
            return None
        plan, target = self.plan[site.name], channel_mean(activations)
        shift = torch.zeros_like(target)
        for _ in range(self._iterations):
            shift += target - plan.amplitude.to(target) * channel_mean(self.fired(currents, plan, shift))
        self.add_bias(carrier, shift)
        return shift

    def correct_output(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Add the difference of the mean outputs, channel by channel, to the last layer's bias."""
        carrier = output_bias_carrier(self.graph, self.channels)
        if carrier is None:
            _LOGGER.warning("bias_correction: the readout has no bias of its own and stays uncorrected.")
            return
        output = next(node for node in self.graph.graph.nodes if node.op == "output").all_input_nodes[0]
        dimension = self.channels[output]
        self.add_bias(carrier, channel_mean(expected, dimension) - channel_mean(found, dimension))
