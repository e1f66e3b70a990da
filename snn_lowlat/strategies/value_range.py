"""Neurons that accumulate their window and then fire (Yan, Zhou & Wong, 2022)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import Tensor

from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.plan import SitePlan
from snn_lowlat.strategies.initial_potential import check_initial_potential, potential_fraction
from snn_lowlat.strategies.registry import register_strategy
from snn_lowlat.strategies.threshold_strategy import ThresholdStrategy

__all__ = ["ValueRange"]

_LOGGER = logging.getLogger(__name__)


@register_strategy("value_range")
@dataclass(frozen=True, eq=False)
class ValueRange(ThresholdStrategy):
    r"""Neurons that add up the currents of a window and fire in the next, so that spike order costs no accuracy.

    Yan, Zhou & Wong, "Low latency conversion of artificial neural network models to rate-encoded spiking neural
    networks" (2022, arXiv 2211.08410). A neuron that has seen its whole window fires

    .. math:: k = \mathrm{clip}(\lfloor (T \bar z + v_0) / \theta \rfloor, 0, T)

    times, whatever the order of the spikes it got: the network equals one with the quantised activations
    :math:`k\,\theta / T`, layer by layer. The price is latency: each layer fires in the window after the one it has
    seen, :math:`T` times the depth in all (``latency_steps``).

    For a network trained with :class:`~snn_lowlat.training.ValueRangeReLU` or
    :class:`~snn_lowlat.training.QuantisedReLU`, thresholds and amplitudes are its ceilings and neurons start at its
    shift, whatever the options: with as many steps as it was trained for, the spiking network equals it. For a plain
    ReLU network, the thresholds are those with the smallest expected squared error for :math:`T` levels
    (``threshold="mmse"``), and the staircase is shifted by half a level: :math:`v_0 = \theta / 2`. The other options
    are those of :class:`~snn_lowlat.strategies.ThresholdStrategy`.

    Parameters
    ----------
    initial_potential : str, float or mapping of str to Tensor
        ``"half"`` or ``"zero"`` of the threshold; a fraction of it, from -1 to 1; or fractions for each site by its
        name, of shape ``[]`` or ``[C]``.

    Raises
    ------
    ValueError
        If an option has no meaning.
    """

    initial_potential: str | float | Mapping[str, Tensor] = field(default="half")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "initial_potential", check_initial_potential(self.initial_potential))

    def plan(self, statistics: SiteStatistics, timesteps: int) -> SitePlan:
        """Plan one site's neurons; see :meth:`Strategy.plan <snn_lowlat.Strategy.plan>`."""
        if statistics.levels is not None and statistics.ceiling is not None:
            threshold = statistics.ceiling
            potential = statistics.shift * threshold
            given = {field.name: (getattr(self, field.name), field.default) for field in fields(ValueRange)}
            idle = [f"{name}={value}" for name, (value, default) in given.items() if value not in (default, "ceiling")]
            if idle:
                _LOGGER.warning(
                    "%s: layer %s was trained with levels, which say where its neurons fire: %s has no effect there.",
                    *(self.name, statistics.name, ", ".join(idle)),
                )
            if statistics.levels != timesteps:
                _LOGGER.warning(
                    "value_range: layer %s was trained for %d steps; with %d the spiking network is another one.",
                    *(statistics.name, statistics.levels, timesteps),
                )
        else:
            fraction = potential_fraction(self.initial_potential, statistics)
            threshold = self.thresholds(statistics, timesteps, fraction).float()
            potential = fraction.float() * threshold  # type: ignore[union-attr]
        return SitePlan(
            threshold=threshold,
            initial_potential=potential,
            amplitude=threshold,
            neuron="accumulate_then_fire",
            parameters={"timesteps": timesteps},
        )
