"""SpikingJelly's idiom: every registered strategy as a recipe that the stock converter runs, by name or as a class.

::

    from spikingjelly.activation_based.ann2snn import FXConverter
    from snn_lowlat.spikingjelly import LowLatencyRecipe, OptimizedPotentialRecipe

    snn = FXConverter(LowLatencyRecipe("optimized_potential", calibration=loader, timesteps=8)).convert(ann)
    snn = FXConverter(OptimizedPotentialRecipe(calibration=loader, timesteps=8)).convert(ann)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from spikingjelly.activation_based.ann2snn.recipes import FXConversionRecipe
from torch import fx, nn

from snn_lowlat.convert import Conversion
from snn_lowlat.hosts.spikingjelly import build
from snn_lowlat.strategies import Strategy, strategies

__all__ = ["LowLatencyRecipe"]


class LowLatencyRecipe(FXConversionRecipe):  # type: ignore[misc]
    """Any strategy of this package as a recipe for SpikingJelly's ``FXConverter``.

    Parameters
    ----------
    strategy : str or Strategy
        A registered name, or a configured strategy.
    calibration : iterable
        Batches of training images: tensors, ``(x, y)`` tuples or dicts. Read once, and once more for each refinement.
    timesteps : int
        The number of steps the network will run for.
    refinements : sequence of str or Refinement
        Corrections that follow, in order.
    calibration_batches : int, optional
        Read only so many batches.
    max_pool : str
        What max-pools do over time; see :func:`snn_lowlat.convert`.
    progress : bool
        Show a progress bar while calibrating.
    **options
        The strategy's options, when it is given by name.
    """

    def __init__(
        self,
        strategy: str | Strategy,
        *,
        calibration: Iterable[object],
        timesteps: int,
        refinements: Sequence[object] = (),
        calibration_batches: int | None = None,
        max_pool: str = "cumulative",
        progress: bool = False,
        **options: Any,
    ) -> None:
        self.conversion = Conversion.of(
            strategy,
            calibration,
            timesteps,
            refinements,
            calibration_batches,
            max_pool=max_pool,
            progress=progress,
            **options,
        )

    def before_trace(self, converter: Any, ann: nn.Module) -> nn.Module:
        """Hand the converter the network's normal form, which its own trace leaves as it is."""
        return self.conversion.normalise(ann)

    def calibrate(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Collect the statistics of every site in one pass."""
        self.conversion.calibrate(fx_model.eval())
        return fx_model

    def replace(self, converter: Any, fx_model: fx.GraphModule) -> fx.GraphModule:
        """Plan, refine, and put neurons in place of the activations."""
        graph, plan = self.conversion.plan(fx_model)
        return build(graph, plan, self.conversion.example.shape[1:])


def __getattr__(name: str) -> type[LowLatencyRecipe]:
    """Return the recipe class of a registered strategy: ``OptimizedPotentialRecipe`` for ``optimized_potential``."""
    names = {"".join(word.capitalize() for word in key.split("_")) + "Recipe": key for key in strategies()}
    if name not in names:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its recipes are {', '.join(names)}")

    def __init__(self: LowLatencyRecipe, **options: Any) -> None:  # noqa: N807
        LowLatencyRecipe.__init__(self, names[name], **options)

    documentation = f"The strategy ``{names[name]}`` as a recipe; see :class:`LowLatencyRecipe` for the parameters."
    recipe = type(name, (LowLatencyRecipe,), {"__init__": __init__, "__doc__": documentation, "__module__": __name__})
    globals()[name] = recipe
    return recipe
