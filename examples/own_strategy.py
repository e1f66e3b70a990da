"""Write a strategy of one's own: one class, and it works in every host, with every refinement, from the command line.

python examples/own_strategy.py

The strategy here sets each threshold at so many standard deviations of the positive pre-activations.
"""

from __future__ import annotations

from dataclasses import dataclass

from trained_digits import trained_digits

import snn_lowlat
from snn_lowlat.calibration import SiteStatistics


@snn_lowlat.register_strategy("deviations")
@dataclass(frozen=True, eq=False)
class Deviations(snn_lowlat.Strategy):
    """Thresholds of so many standard deviations, initial potentials of half of them."""

    deviations: float = 3.0

    def __post_init__(self) -> None:
        if self.deviations <= 0:
            raise ValueError(f"deviations must be positive, not {self.deviations}.")

    def plan(self, statistics: SiteStatistics, timesteps: int) -> snn_lowlat.SitePlan:
        """Plan one site's neurons from what calibration saw there."""
        histogram = statistics.histogram
        threshold = (self.deviations * histogram.variance.sqrt()).clamp(min=1e-6).float()
        return snn_lowlat.SitePlan(threshold=threshold, initial_potential=threshold / 2, amplitude=threshold)


def main() -> dict[str, float]:
    model, data = trained_digits()

    accuracies = {}
    for name, options in (("deviations", {"deviations": 2.5}), ("optimized_potential", {})):
        snn = snn_lowlat.convert(
            model,
            data.calibration_dataloader(500, 100),
            strategy=name,
            timesteps=4,
            refinements=["bias_correction"],
            **options,
        )
        report = snn_lowlat.evaluate(snn, data.test_dataloader(), ann=model)
        print(report)
        accuracies[name] = report.accuracy
    return accuracies


if __name__ == "__main__":
    main()
