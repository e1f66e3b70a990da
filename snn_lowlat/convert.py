"""From a trained network to a spiking one: the whole way on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat.adapters import get_backend
from snn_lowlat.calibration import SiteStatistics, calibrate, inputs_of
from snn_lowlat.encoding import make_encoder
from snn_lowlat.errors import CalibrationError, ConversionError, unknown_name
from snn_lowlat.graph import depth, describe, find_sites, normalise, to_integers, with_rounded_weights
from snn_lowlat.images import floating_type, usable_images
from snn_lowlat.model import Provenance, SpikingModel
from snn_lowlat.plan import SitePlan
from snn_lowlat.refinement import Refinement, make_refinement
from snn_lowlat.strategies import Strategy, make_strategy

__all__ = ["PRECISIONS", "Conversion", "convert"]

PRECISIONS = ("fp32", "int8")
"""In what networks can be computed: floating point, or whole numbers with weights of eight bits."""


def convert(
    model: nn.Module,
    calibration: Iterable[object],
    *,
    strategy: str | Strategy = "optimized_potential",
    timesteps: int = 8,
    backend: str = "spikingjelly",
    refinements: Sequence[str | Refinement] = (),
    encoder: str = "direct",
    precision: str = "fp32",
    seed: int = 0,
    calibration_batches: int | None = None,
    progress: bool = False,
    **options: Any,
) -> SpikingModel:
    """Convert a trained ReLU network into a spiking network of a few time steps.

    Parameters
    ----------
    model : Module
        The trained network: one input ``[N, ...]``, one output ``[N, classes]``. It is not changed.
    calibration : iterable
        Batches of training images: tensors, ``(x, y)`` tuples or dicts. Never test images.
    strategy : str or Strategy
        How thresholds, initial potentials and amplitudes are chosen: one of :func:`snn_lowlat.strategies`, or a
        configured one.
    timesteps : int
        The simulation window of a layer, in steps.
    backend : str
        The host library, one of :data:`snn_lowlat.adapters.BACKENDS`.
    refinements : sequence of str or Refinement
        Corrections that follow the strategy, in order, such as ``"bias_correction"``.
    encoder : str
        How images enter: ``"direct"`` (a constant current), ``"poisson"`` (random spikes; images in [0, 1]) or
        ``"temporal_switch"`` (two spikes a pixel; images in [-1, 1]).
    precision : str
        ``"fp32"``, or ``"int8"``: weights of 8 bits, and thresholds, currents and pixels in whole numbers, so that
        spikes depend on no order of sums; see :func:`snn_lowlat.graph.to_integers`.
    seed : int
        Seed of the encoder's random numbers.
    calibration_batches : int, optional
        Read only so many batches.
    progress : bool
        Show a progress bar while calibrating.
    **options
        The strategy's options, when it is given by name.

    Returns
    -------
    SpikingModel
        The spiking network; ``snn(images)`` gives logits.

    Raises
    ------
    ConversionError
        If the network can't be converted; the message lists every obstacle.
    CalibrationError
        If the calibration data are missing or can't be used.
    ValueError
        If a name or option does not exist; the message says which do.
    """
    host = get_backend(backend)
    make_encoder(encoder)
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    conversion = Conversion.of(
        strategy, calibration, timesteps, refinements, calibration_batches, progress=progress, **options
    )
    graph = conversion.normalise(model)
    conversion.calibrate(graph)
    graph, plan = conversion.plan(graph, precision)
    input_shape = tuple(conversion.example.shape[1:])
    provenance = Provenance.of(
        graph, conversion.strategy, conversion.refinements, input_shape=input_shape, precision=precision
    )
    if precision == "int8":
        graph, plan = to_integers(graph, plan, conversion.example, timesteps)
    return SpikingModel(
        host.build(graph, plan, input_shape),
        plan,
        timesteps=timesteps,
        backend=backend,
        encoder=encoder,
        seed=seed,
        depth=depth(graph),
        structure=describe(graph),
        provenance=provenance,
    )


@dataclass
class Conversion:
    """The steps every backend shares; :func:`convert` and SpikingJelly's recipe take them in the same order.

    Attributes
    ----------
    strategy : Strategy
        The configured strategy.
    batches : iterable
        The calibration batches, which can be read again and again.
    timesteps : int
        The window planned for, in steps.
    refinements : list of Refinement
        The corrections that follow.
    limit : int or None
        Read only so many batches.
    progress : bool
        Show a progress bar.
    statistics : dict of str to SiteStatistics
        What calibration found; empty before.
    """

    strategy: Strategy
    batches: Iterable[object]
    timesteps: int
    refinements: list[Refinement]
    limit: int | None
    progress: bool
    statistics: dict[str, SiteStatistics] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        strategy: str | Strategy,
        calibration: Iterable[object],
        timesteps: int,
        refinements: Sequence[Any] = (),
        limit: int | None = None,
        *,
        progress: bool = False,
        **options: Any,
    ) -> Conversion:
        """Check and gather what a conversion needs; names become configured objects."""
        if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
            raise ValueError(f"timesteps must be a whole number of at least 1, not {timesteps!r}.")
        if isinstance(refinements, str):
            refinements = (refinements,)
        if isinstance(calibration, Tensor):
            calibration = [calibration]
        # What can be read only once is kept, because refinements read it again.
        batches = list(islice(calibration, limit)) if isinstance(calibration, Iterator) else calibration
        return cls(
            make_strategy(strategy, **options),
            batches,
            timesteps,
            [make_refinement(refinement) for refinement in refinements],
            limit,
            progress,
        )

    @cached_property
    def example(self) -> Tensor:
        """The first calibration batch, ``[N, ...]``."""
        for batch in self.batches:
            return inputs_of(batch)
        raise CalibrationError("there are no calibration data: the loader yields no batch.")

    def normalise(self, model: nn.Module) -> fx.GraphModule:
        """Rewrite the network into the normal form."""
        try:
            self.example = usable_images(self.example, floating_type(model))
        except ValueError as error:
            raise CalibrationError(f"calibration data can't be used: {error}") from error
        graph = normalise(model, self.example)
        if not find_sites(graph):
            raise ConversionError("this network has no ReLU: there is nothing to convert.")
        return graph

    def calibrate(self, graph: fx.GraphModule) -> None:
        """Collect the statistics of every site in one pass of the data."""
        self.statistics = calibrate(graph, self.batches, limit=self.limit, progress=self.progress)

    @torch.no_grad()
    def plan(self, graph: fx.GraphModule, precision: str = "fp32") -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        """Choose every site's neuron from its statistics, then refine; the graph may get other biases.

        Refinements see the weights rounded as they will be in this precision, so that they mend that too.
        """
        plan = {name: self.strategy.plan(site, self.timesteps) for name, site in self.statistics.items()}
        if precision == "int8" and self.refinements:
            graph = with_rounded_weights(graph, plan, self.example, self.timesteps)
        for refinement in self.refinements:
            graph, plan = refinement.refine(graph, plan, islice(self.batches, self.limit), self.timesteps)
        return graph, plan
