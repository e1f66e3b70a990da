"""Neurons that switch on once and off once (after Han & Roy, 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from snn_lowlat import checks
from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.plan import SitePlan
from snn_lowlat.strategies.registry import register_strategy
from snn_lowlat.strategies.value_range import ValueRange

__all__ = ["TemporalSwitch"]

_OUTPUTS = ("windowed", "pipelined", "online")


@register_strategy("temporal_switch")
@dataclass(frozen=True, eq=False)
class TemporalSwitch(ValueRange):
    r"""Neurons that send two events, ON and OFF; the value is the time in between.

    Han & Roy, "Deep spiking neural network: energy efficiency through time based coding" (ECCV 2020). An event adds its
    weight to the register of a synapse or subtracts it: at most two additions and two memory accesses a synapse,
    however long the window is. The rule by which hidden neurons switch is a reconstruction; there are three:

    - ``"windowed"``: neurons integrate their window and are on for

      .. math:: d = \mathrm{clip}(\lfloor (T \bar z + v_0) / \theta \rfloor, 0, T)

      steps from the start of the next. The network equals one with the quantised activations :math:`d\,\theta / T`,
      that of :class:`~snn_lowlat.strategies.ValueRange`, whose latency and thresholds it has;
    - ``"pipelined"``: a layer's window starts ``gap`` steps after that of the layer before, and neurons may switch on
      from then, once. Latency is ``gap`` times the depth and one window; charge that comes too late is lost;
    - ``"online"``: integrate-and-fire neurons that send the changes of their state instead of every spike. Latency is
      one window; neurons may switch more than once, so the bound is lost.

    Parameters
    ----------
    output : str
        ``"windowed"``, ``"pipelined"`` or ``"online"``.
    gap : int, optional
        Steps from the start of a layer's window to the start of the next layer's, from 0 to the number of steps; half
        of that by default. Only for ``"pipelined"``.
    hysteresis : float
        How many thresholds switch a neuron on, at least 1; one keeps it on. Only for ``"online"``: 1 fires as
        integrate-and-fire neurons do, 2 sends fewer events.

    Raises
    ------
    ValueError
        If an option has no meaning.
    """

    output: str = "windowed"
    gap: int | None = None
    hysteresis: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("output rule", self.output, _OUTPUTS)
        if self.gap is not None:
            checks.count("gap", self.gap, 0)
        checks.number("hysteresis", self.hysteresis, 1)
        for option, rule, default in (("gap", "pipelined", None), ("hysteresis", "online", 1)):
            if self.output != rule and getattr(self, option) != default:
                raise ValueError(f"{option} has a meaning with output={rule!r} only, not with {self.output!r}.")

    def plan(self, statistics: SiteStatistics, timesteps: int) -> SitePlan:
        """Plan one site's neurons; see :meth:`Strategy.plan <snn_lowlat.Strategy.plan>`."""
        site = super().plan(statistics, timesteps)
        if self.output == "online":
            # A current of one threshold a step, which is the largest that spikes can carry, must switch a neuron on.
            checks.number(f"hysteresis, for {timesteps} steps,", self.hysteresis, 1, 2 * timesteps)
            # Half of what switches a neuron on, not of one threshold, is what makes its mean right.
            potential, parameters = self.hysteresis * site.initial_potential, {"hysteresis": float(self.hysteresis)}
            return replace(site, initial_potential=potential, neuron="temporal_switch_online", parameters=parameters)
        gap = timesteps // 2 if self.gap is None else self.gap
        if self.output == "windowed" or gap >= timesteps:
            return replace(site, neuron="temporal_switch")
        return replace(site, neuron="temporal_switch_pipelined", parameters={"timesteps": timesteps, "gap": gap})
