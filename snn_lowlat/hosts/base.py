"""From a network in normal form and its plan to a network of a host library.

A host is anything with the functions that :class:`Backend` names: this package's own are modules, imported when they
are first asked for; other packages bring theirs by the entry point ``snn_lowlat.hosts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, fx, nn

from snn_lowlat.plan import Plan, SitePlan
from snn_lowlat.registry import Catalogue

__all__ = ["BACKENDS", "Backend", "get_backend", "register_host"]


class Backend(Protocol):
    """What a host provides."""

    def build(self, graph: fx.GraphModule, plan: Plan, input_shape: Sequence[int]) -> nn.Module:
        """Return the host's network for a network in normal form and its plan; neither is changed.

        Parameters
        ----------
        graph : GraphModule
            A network in normal form.
        plan : mapping of str to SitePlan
            What each site becomes.
        input_shape : sequence of int
            The shape of one input image.

        Returns
        -------
        Module
            The spiking network, ``[N, ...]`` in, the output of one step out.

        Raises
        ------
        ValueError
            If a site's neuron model has no counterpart in the host.
        """

    def run(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Reset the network and run input currents ``[T, N, ...]``; returns each step's output, ``[T, N, classes]``."""

    def count(self, network: nn.Module, inputs: Tensor, timesteps: int) -> Tensor:
        """Map a window's mean input ``[N, ...]`` to the mean output, in one pass on the counts of its spikes."""

    def reset(self, network: nn.Module) -> None:
        """Put every neuron into its initial state."""

    def spiking_layers(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return the neuron modules by the names of their sites."""

    def fired(self, layer: nn.Module, output: object) -> Tensor:
        """Return the spikes, worth 1 each, in what a neuron module has returned.

        Parameters
        ----------
        layer : Module
            One of the neuron modules.
        output : object
            What its ``forward`` returned in :meth:`run` or :meth:`count`.

        Returns
        -------
        Tensor
            ``[T * N, C, ...]``; their mean, ``[N, C, ...]``, from :meth:`count`.
        """

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """Return the weights of the layers between the neurons, by their names in the normal form."""

    def current_plan(self, network: nn.Module, plan: Plan) -> dict[str, SitePlan]:
        """Return the plan with the values that the neurons have now: they may have been trained."""


BACKENDS: Catalogue[Any] = Catalogue(
    "backend",
    "snn_lowlat.hosts",
    {name: f"{__package__}.{name}" for name in ("spikingjelly", "snntorch")},
    modules=True,
)
"""The host libraries by name."""


def get_backend(name: str) -> Backend:
    """Return a host library by its name; ``ValueError`` names those there are."""
    return BACKENDS.find(name)  # type: ignore[no-any-return]


def register_host(name: str, host: Backend) -> Backend:
    """Make a host library known by a name, and return it; ``ValueError`` if another has that name."""
    return BACKENDS.add(name, host)  # type: ignore[no-any-return]
