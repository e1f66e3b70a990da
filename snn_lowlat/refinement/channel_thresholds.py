"""Channel-wise threshold training: neurons that fire at once learn to fire as often as those that wait."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx

from snn_lowlat import checks
from snn_lowlat.graph import Site
from snn_lowlat.neurons import per_channel
from snn_lowlat.plan import SitePlan
from snn_lowlat.refinement.base import Refinement, check_counts
from snn_lowlat.refinement.registry import register_refinement
from snn_lowlat.refinement.walk import LayerwiseWalk, channel_mean, gather_images
from snn_lowlat.simulation import count_spikes, is_counted

__all__ = ["ChannelThresholds"]


@register_refinement("channel_thresholds")
@dataclass(frozen=True, eq=False)
class ChannelThresholds(Refinement):
    r"""Put online neurons in the place of neurons that see their whole window, with trained thresholds.

    Layer by layer and channel by channel, the threshold of integrate-and-fire neurons, fed by the spikes of such
    neurons, moves until they fire as often as the accumulate-then-fire neurons of the network given:

    .. math:: \theta_c \leftarrow \theta_c - \eta\, M_c\, (\bar k_c / T - \bar s_c)

    with the mean count :math:`\bar k` of the latter, the mean spikes per step :math:`\bar s` of the former and the
    given threshold :math:`M`. What a spike is worth stays. Afterwards the network answers as its input arrives, with a
    latency of :math:`T` steps in all. This is the channel-wise threshold training of Yan, Zhou & Wong (2022, arXiv
    2211.08410), one layer after the other.

    Parameters
    ----------
    images : int
        How many calibration images to use at the most. The currents of one layer for all of them are held in memory:
        ``images x timesteps x neurons of the layer`` floats.
    iterations : int
        How often each layer's thresholds are moved at the most; they rest once the mean difference of spikes per step
        is below 0.0005.
    rate : float
        The step :math:`\eta`.

    Raises
    ------
    ValueError
        If an option has no meaning.
    """

    images: int = 512
    iterations: int = 20
    rate: float = 1.0

    def __post_init__(self) -> None:
        check_counts(self, "images", "iterations")
        checks.positive("channel_thresholds: rate", self.rate)

    def refine(
        self,
        graph: fx.GraphModule,
        plan: dict[str, SitePlan],
        batches: Iterable[object],
        timesteps: int,
        reference: fx.GraphModule | None = None,
    ) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        """Return the network and a plan of integrate-and-fire neurons.

        Raises
        ------
        ValueError
            If the plan's neurons do not see their whole window.
        """
        if not is_counted(plan):
            raise ValueError(
                "channel_thresholds trains online neurons to do as those that see their whole window do: choose a "
                "strategy with such neurons, such as value_range."
            )
        images = gather_images(graph, batches, self.images, "channel_thresholds")
        walk = ThresholdWalk(graph, plan, images, timesteps, reference, iterations=self.iterations, rate=self.rate)
        return walk.run()


class ThresholdWalk(LayerwiseWalk):
    """The walk that gives online neurons the firing rates of neurons that see their whole window."""

    def __init__(
        self,
        graph: fx.GraphModule,
        plan: dict[str, SitePlan],
        images: Tensor,
        timesteps: int,
        reference: fx.GraphModule | None = None,
        *,
        iterations: int,
        rate: float,
    ) -> None:
        online = {name: replace(site, neuron="integrate_and_fire", parameters={}) for name, site in plan.items()}
        super().__init__(graph, online, images, timesteps, reference)
        self._given = plan
        self._iterations = iterations
        self._rate = rate

    def activation(self, site: Site, current: Tensor) -> Tensor:
        """Return the mean output of the neurons given, for their mean current ``[n, C, ...]``."""
        plan = self._given[site.name]
        return count_spikes(current, self.timesteps, plan) / self.timesteps * per_channel(plan.amplitude, current)

    def correct_site(self, site: Site, activations: Sequence[Tensor], currents: Sequence[Tensor]) -> None:
        """Move the layer's thresholds."""
        plan = self.plan[site.name]
        target = channel_mean(activations)
        target = target / plan.amplitude.to(target)
        given = plan.threshold.to(target).expand_as(target)
        threshold, potential = given, plan.initial_potential.to(target).expand_as(target)
        amplitude = plan.amplitude.to(target).expand_as(target)
        for _ in range(self._iterations):
            plan = replace(plan, threshold=threshold, initial_potential=potential, amplitude=amplitude)
            missing = target - channel_mean(self.fired(currents, plan))
            if missing.abs().mean() < 5e-4:
                break
            threshold = (threshold - self._rate * given * missing).clamp(min=0.05 * given, max=20 * given)
        self.plan[site.name] = replace(plan, threshold=threshold)

    def correct_output(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Leave the readout as it is."""
