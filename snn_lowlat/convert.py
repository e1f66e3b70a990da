"""From a trained network to a spiking one: the whole way on one screen."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from snn_lowlat import checks
from snn_lowlat.calibration import SiteStatistics, calibrate, inputs_of
from snn_lowlat.devices import device_of
from snn_lowlat.encoding import make_encoder
from snn_lowlat.errors import CalibrationError, ConversionError
from snn_lowlat.graph import (
    depth,
    describe,
    find_sites,
    normalise,
    with_per_step_max_pools,
)
from snn_lowlat.graph.vocabulary import by_dimensions
from snn_lowlat.hosts import get_backend
from snn_lowlat.images import floating_type, usable_images
from snn_lowlat.int8 import to_integers, with_rounded_weights
from snn_lowlat.model import SpikingModel
from snn_lowlat.neurons import MAX_POOLINGS
from snn_lowlat.plan import SitePlan
from snn_lowlat.processes import gathered, same_everywhere
from snn_lowlat.provenance import Provenance
from snn_lowlat.refinement import Refinement, make_refinement
from snn_lowlat.strategies import Strategy, make_strategy

__all__ = ["PRECISIONS", "Conversion", "convert"]

PRECISIONS = ("fp32", "int8")
"""In what networks can be computed: floating point, or whole numbers with weights of eight bits."""

_OTHER_NAMES = {
    **dict.fromkeys(("T", "steps", "time_steps", "timestep", "num_steps", "n_steps", "sim_steps"), "timesteps"),
    **dict.fromkeys(("host", "library"), "backend"),
    **dict.fromkeys(("loader", "dataloader", "data", "calibration_data", "calibration_loader"), "calibration"),
    **dict.fromkeys(("refinement", "corrections"), "refinements"),
    **dict.fromkeys(("encoding", "input_coding", "coding"), "encoder"),
    **dict.fromkeys(("dtype", "bits"), "precision"),
    **dict.fromkeys(("batches", "max_batches", "limit"), "calibration_batches"),
    "method": "strategy",
}
"""Other libraries' names, and likely guesses, of the arguments of :func:`convert`."""

_MOST_KEPT_BATCHES = 100_000
_MOST_KEPT_BYTES = 4 * 2**30


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
    max_pool: str = "cumulative",
    seed: int = 0,
    calibration_batches: int | None = None,
    progress: bool = False,
    **options: Any,
) -> SpikingModel:
    """Convert a trained ReLU network into a spiking network of a few time steps.

    Where ``torch.distributed`` is initialised, every process must call this with the same network and options and a
    share of the data; each gets the same network, planned and refined with the data of all.

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
        The host library, one of :data:`snn_lowlat.hosts.BACKENDS`.
    refinements : sequence of str or Refinement
        Corrections that follow the strategy, in order, such as ``"bias_correction"``.
    encoder : str
        How images enter: ``"direct"`` (a constant current), ``"poisson"`` (random spikes; images in [0, 1]) or
        ``"temporal_switch"`` (two spikes a pixel; images in [-1, 1]).
    precision : str
        ``"fp32"``, or ``"int8"``: weights of 8 bits, and thresholds, currents and pixels in whole numbers, so that
        spikes depend on no order of sums; see :func:`snn_lowlat.int8.to_integers`.
    max_pool : str
        What max-pools do with currents that vary from step to step: ``"cumulative"`` pools what they have added up to,
        which comes to what the original network computes; ``"per_step"`` pools each step's currents, which
        overestimates however many steps there are, and is there for comparison. See
        :mod:`snn_lowlat.neurons.max_pool`.
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
        If an argument is none that there is, or is no network, data, number or name; the message says what to give.
    """
    if isinstance(calibration, nn.Module) and not isinstance(model, nn.Module):
        raise ValueError("the network and the data are swapped: give convert(model, calibration).")
    host = get_backend(backend)
    make_encoder(encoder)
    checks.one_of("precision", precision, PRECISIONS)
    seed = checks.seed("seed", seed)
    conversion = Conversion.of(
        strategy,
        calibration,
        timesteps,
        refinements,
        calibration_batches,
        max_pool=max_pool,
        progress=progress,
        **options,
    )
    graph = conversion.normalise(model)
    conversion.calibrate(graph)
    graph, plan = conversion.plan(graph, precision)
    input_shape = tuple(conversion.example.shape[1:])
    provenance = Provenance.of(
        graph, conversion.strategy, conversion.refinements, input_shape=input_shape, precision=precision
    )
    if precision == "int8":
        graph, plan = to_integers(graph, plan, conversion.example, conversion.timesteps)
    return SpikingModel(
        host.build(graph, plan, input_shape),
        plan,
        timesteps=conversion.timesteps,
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
    max_pool : str
        What max-pools do over time.
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
    max_pool: str
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
        max_pool: str = "cumulative",
        progress: bool = False,
        **options: Any,
    ) -> Conversion:
        """Check and gather what a conversion needs; names become configured objects."""
        timesteps = checks.count("timesteps", timesteps)
        if limit is not None:
            limit = checks.count("calibration_batches", limit)
        if isinstance(refinements, str | Refinement):
            refinements = (refinements,)
        if not isinstance(refinements, Sequence):
            raise ValueError(f"refinements must be a list of names or Refinement objects, not {refinements!r}.")
        for option in options:
            if option in _OTHER_NAMES:
                raise ValueError(f"there is no option {option!r}: its name here is {_OTHER_NAMES[option]!r}.")
        try:
            batches = checks.batches("calibration", calibration)
        except ValueError as error:
            raise CalibrationError(str(error)) from error
        return cls(
            make_strategy(strategy, **options),
            # What can be read only once is kept, because refinements read it again.
            _kept(batches, limit) if isinstance(batches, Iterator) else batches,
            timesteps,
            [make_refinement(refinement) for refinement in refinements],
            limit,
            checks.one_of("max_pool", max_pool, MAX_POOLINGS),
            progress,
        )

    @cached_property
    def example(self) -> Tensor:
        """The first calibration batch that is not empty, ``[N, ...]``; that of the first process that has one."""
        batches = (inputs_of(batch) for batch in islice(self.batches, self.limit))
        own = next((images for images in batches if len(images)), None)
        examples = gathered(None if own is None else own.cpu())
        found = next((example for example in examples if example is not None), None)
        if found is None:
            raise CalibrationError("there are no calibration data: the loader yields no batch with images.")
        if own is None:
            return found
        return own if len(examples) == 1 else found.to(own.device)

    def normalise(self, model: nn.Module) -> fx.GraphModule:
        """Rewrite the network into the normal form."""
        model = checks.network("model", model, rewritten=True)
        try:
            self.example = usable_images(self.example, floating_type(model))
        except ValueError as error:
            raise CalibrationError(f"calibration data can't be used: {error}") from error
        try:
            graph = normalise(model, self.example)
        except ConversionError:
            _check_that_it_runs(model, self.example)
            raise
        if not find_sites(graph):
            raise ConversionError("this network has no ReLU: there is nothing to convert.")
        return same_everywhere(graph, {}, warn=True)[0]

    def calibrate(self, graph: fx.GraphModule) -> None:
        """Collect the statistics of every site in one pass of the data."""
        self.statistics = calibrate(graph, self.batches, limit=self.limit, progress=self.progress)

    @torch.no_grad()
    def plan(self, graph: fx.GraphModule, precision: str = "fp32") -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        """Choose every site's neuron from its statistics, then refine; the graph may get other biases.

        Refinements see the weights rounded as they will be in this precision, so that they mend that too. Where several
        processes convert together, all get the first one's network and plan.
        """
        if self.max_pool == "per_step":
            graph = with_per_step_max_pools(graph)
        plan = {name: self.strategy.plan(site, self.timesteps) for name, site in self.statistics.items()}
        graph, plan = same_everywhere(graph, plan)
        if precision == "int8" and self.refinements:
            graph = with_rounded_weights(graph, plan, self.example, self.timesteps)
        for refinement in self.refinements:
            graph, plan = refinement.refine(graph, plan, islice(self.batches, self.limit), self.timesteps)
            graph, plan = same_everywhere(graph, plan)
        return graph, plan


def _kept(batches: Iterator[object], limit: int | None) -> list[Tensor]:
    """Read an iterator's images to its end, or a limit.

    Raises
    ------
    CalibrationError
        If there are more than a computer should keep, as of a generator that never ends.
    """
    kept, size = [], 0
    for batch in islice(batches, limit):
        kept.append(inputs_of(batch))
        size += kept[-1].nbytes
        if limit is None and (len(kept) > _MOST_KEPT_BATCHES or size > _MOST_KEPT_BYTES):
            raise CalibrationError(
                f"calibration is an iterator, whose batches are kept; after {len(kept):,} batches ({size / 2**30:.1f} "
                "GiB) it still goes on. If it never ends, give calibration_batches, the number to read; else give what "
                "can be read again, such as a DataLoader, of which nothing is kept."
            )
    return kept


@torch.no_grad()
def _check_that_it_runs(model: nn.Module, images: Tensor) -> None:
    """Say so if a network, as it is, does not run on images: then nothing in it is the cause of what went wrong.

    Raises
    ------
    CalibrationError
        With what the images should be, where that is known.
    """
    try:
        copy.deepcopy(model).eval()(images[:2].to(device_of(model)))
    except Exception as error:
        dimensions = next((_DIMENSIONS[type(m)] for m in model.modules() if type(m) in _DIMENSIONS), None)
        weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
        advice = "give images as the network takes them"
        if images.dtype != weights:
            advice = f"its weights are of the type {weights}: give images.to({weights})"
        elif images.dim() == 1 or dimensions == images.dim() + 1:
            advice = "if a batch is one image, it needs a batch dimension: images.unsqueeze(0)"
        raise CalibrationError(
            f"the network does not run on the calibration images, of shape {[*images.shape]} and type {images.dtype} "
            f"({str(error).splitlines()[0]}): {advice}."
        ) from error


_KINDS = by_dimensions("convolution"), by_dimensions("transposed convolution"), by_dimensions("norm")
# Norms of one dimension take vectors too.
_DIMENSIONS: dict[type[nn.Module], int] = {
    layer: dimensions + 2 for kind in _KINDS for dimensions, layer in kind.items() if layer is not nn.BatchNorm1d
}
"""How many dimensions a batch has for a layer."""
