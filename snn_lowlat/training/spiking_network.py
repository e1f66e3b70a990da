"""A converted network free of its host, with gradients: what fine-tuning trains."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.graph import BATCH_NORMS, channel_dimensions, find_sites
from snn_lowlat.graph.names import free_name
from snn_lowlat.graph.passes import fold_batch_norms
from snn_lowlat.graph.vocabulary import by_dimensions, module_of, modules
from snn_lowlat.neurons import NEURONS
from snn_lowlat.neurons.surrogate import SpikeOptions
from snn_lowlat.plan import Plan, SitePlan
from snn_lowlat.training.layout import lay_channels_last
from snn_lowlat.training.trainable_neurons import TrainableNeurons
from snn_lowlat.training.window_pass import WindowPass

__all__ = ["TrainableNetwork"]

_NORMED = modules("convolution", "linear")
_NORMS = by_dimensions("norm")


class TrainableNetwork(nn.Module):
    """A spiking network that gradients can pass, built from a network in normal form and its plan.

    Time is folded into the batch: ``[T * N, ...]`` through the layers, ``[T, N, ...]`` through the neurons. What lies
    before the first neurons is computed once if the input is constant in time.

    Memory grows in proportion to the number of steps: for each neuron and step one number is kept for the way back, the
    potential, from which layers that read spikes get them again; two with batch norm. With ``segments`` above 1 only
    what passes between so many parts of the network is kept, and one part at a time is computed again on the way back.

    Parameters
    ----------
    graph : GraphModule
        A network in normal form without ceilings; copied.
    plan : mapping of str to SitePlan
        What its sites are.
    input_shape : sequence of int
        The shape of one input image.
    timesteps : int
        The number of steps.
    options : SpikeOptions
        How gradients pass spikes.
    dropout : float
        See :class:`TrainableNeurons`.
    batch_norm : bool
        Put a batch norm behind each convolution and linear layer that feeds neurons, which changes nothing in
        evaluation mode. In training its statistics are those of the batch over all steps, so call :meth:`measure`
        before. :meth:`folded` folds it into the layer again.
    segments : int
        In how many parts the network is computed; more than one is gradient checkpointing.
    train_thresholds, train_leaks : bool
        Whether these are trained beside the weights.

    Raises
    ------
    SnnLowlatError
        If neurons are not integrate-and-fire neurons.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        plan: Plan,
        input_shape: Sequence[int],
        timesteps: int,
        options: SpikeOptions,
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
        segments: int = 1,
        train_thresholds: bool = True,
        train_leaks: bool = True,
    ) -> None:
        super().__init__()
        self.graph = copy.deepcopy(graph)
        self.timesteps = timesteps
        self.segments = segments
        self._input_shape = tuple(input_shape)
        self._norms = _insert_batch_norms(self.graph, input_shape) if batch_norm else []
        device = next(graph.parameters()).device
        for name in find_sites(self.graph):
            if not NEURONS[plan[name].neuron].soft_reset:
                known = " or ".join(neuron for neuron, model in NEURONS.items() if model.soft_reset)
                raise SnnLowlatError(
                    f"layer {name!r} has neurons of the model {plan[name].neuron!r}, which surrogate gradients can't "
                    f"train: convert with a strategy whose neurons are {known}."
                )
            neurons = TrainableNeurons(plan[name], timesteps, options, dropout).to(device)
            neurons.threshold.requires_grad_(train_thresholds)
            neurons.leak.requires_grad_(train_leaks)
            setattr(self.graph, name, neurons)
        self.register_buffer("measured", torch.tensor(not batch_norm))
        self.register_buffer("updates", torch.tensor(0))
        if device.type == "cpu":
            # Convolutions take three quarters of the time, forwards and backwards.
            lay_channels_last(self.graph)
        # A trainer leaves modes as they are.
        self.train()

    measured: Tensor
    """Whether the batch norms, if there are any, have statistics: measured, or trained and loaded."""

    updates: Tensor
    """How often the weights have been updated; whoever trains counts."""

    def forward(self, inputs: Tensor, constant: bool = True) -> Tensor:
        """Return the readout.

        Parameters
        ----------
        inputs : Tensor
            Input currents ``[N, ...]`` for all steps, or ``[T, N, ...]`` if they are not constant.
        constant : bool
            Whether they are.

        Returns
        -------
        Tensor
            ``[N, classes]``: the output averaged over the steps.
        """
        images = inputs if constant else inputs.flatten(0, 1)
        if images.dim() == 4 and images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        segments = self.segments if self.training and torch.is_grad_enabled() else 1
        walk = WindowPass(self.graph, self.timesteps, constant, whole=segments == 1)
        values: dict[fx.Node, Tensor] = {walk.nodes[0]: images}
        bounds = [round(len(walk.nodes) * part / segments) for part in range(segments + 1)]
        for start, end in pairwise(bounds):
            values = walk.part(start, end, values) if segments == 1 else self._checkpointed(walk, start, end, values)
        (outputs,) = values.values()
        return outputs.view(self.timesteps, -1, *outputs.shape[1:]).mean(0)

    def train(self, mode: bool = True) -> TrainableNetwork:
        """Set the mode; batch norms that the converted network had itself are affine layers and stay so."""
        super().train(mode)
        for name, module in self.graph.named_modules():
            if isinstance(module, BATCH_NORMS) and name not in self._norms:
                module.eval()
        return self

    def neurons(self) -> dict[str, TrainableNeurons]:
        """Return the layers of neurons by the names of their sites."""
        return {name: module for name, module in self.graph.named_modules() if isinstance(module, TrainableNeurons)}

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor], constant: bool = True) -> None:
        """Give the batch norms the statistics of some images, and the weights with which they change nothing.

        Parameters
        ----------
        batches : iterable of Tensor
            Inputs as :meth:`forward` takes them.
        constant : bool
            Whether they are constant in time.
        """
        norms: dict[str, Any] = {name: self.graph.get_submodule(name) for name in self._norms}
        moments = {name: _Moments() for name in norms}
        hooks = [norm.register_forward_pre_hook(moments[name].hook) for name, norm in norms.items()]
        training = self.training
        self.eval()
        for inputs in batches:
            self(inputs, constant)
        self.train(training)
        for hook in hooks:
            hook.remove()
        for name, norm in norms.items():
            mean, variance = moments[name].result()
            before = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            norm.bias.copy_(norm.bias + before * (mean - norm.running_mean.double()))
            norm.weight.copy_(before * (variance + norm.eps).sqrt())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
        self.measured.fill_(True)

    def folded(self) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        """Return the network in normal form and its plan as they are now, with the batch norms folded."""
        plan = {name: neurons.site_plan() for name, neurons in self.neurons().items()}
        graph = copy.deepcopy(self.graph).eval().requires_grad_(True)
        for name in plan:
            setattr(graph, name, nn.ReLU())
        reference = next(graph.parameters())
        fold_batch_norms(graph, reference.new_zeros(2, *self._input_shape))
        return graph, plan

    def _checkpointed(
        self, walk: WindowPass, start: int, end: int, values: dict[fx.Node, Tensor]
    ) -> dict[fx.Node, Tensor]:
        before, after = list(values), list[fx.Node]()

        def part(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = walk.part(start, end, dict(zip(before, tensors, strict=True)))
            after[:] = found
            return tuple(found.values())

        tensors = checkpoint(
            part, *values.values(), use_reentrant=False, context_fn=lambda: (nullcontext(), self._again())
        )
        return dict(zip(after, tensors, strict=True))

    @contextmanager
    def _again(self) -> Iterator[None]:
        """Compute a part again without counting its batch into the running statistics twice."""
        norms: list[Any] = [self.graph.get_submodule(name) for name in self._norms]
        before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, (momentum, batches) in zip(norms, before, strict=True):
                norm.momentum = momentum
                norm.num_batches_tracked.copy_(batches)


class _Moments:
    """Mean and variance of each channel over batches."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._square = torch.zeros(())

    def hook(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Count the input of a batch norm, ``[N, C, ...]``."""
        (values,) = inputs
        variance, mean = torch.var_mean(values.float(), [0, *range(2, values.dim())], correction=0)
        count = values.numel() // values.shape[1]
        self._mean = self._mean.to(mean.device) + count * mean.double()
        self._square = self._square.to(mean.device) + count * (variance.double() + mean.double() ** 2)
        self._count += count

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance, ``[C]``."""
        mean = self._mean / self._count
        return mean, (self._square / self._count - mean**2).clamp(min=0)


def _insert_batch_norms(graph: fx.GraphModule, input_shape: Sequence[int]) -> list[str]:
    """Put a batch norm that changes nothing behind each layer that feeds neurons; return their names.

    Where a layer's channels are not in dimension 1, it stands behind the permutation that brings them there. A layer
    without one, such as a linear layer over tokens whose outputs are added up first, gets none.
    """
    reference = next(graph.parameters())
    channels = channel_dimensions(graph, reference.new_zeros(2, *input_shape))
    sites = {site.node for site in find_sites(graph).values()}
    feeding: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if any(user in sites or user in feeding for user in node.users):
            feeding.add(node)
    names = []
    for node in [node for node in graph.graph.nodes if node in feeding]:
        layer = module_of(graph, node)
        if type(layer) not in _NORMED:
            continue
        place, dimension = node, channels[node]
        while dimension != 1 and [user.target for user in place.users] == ["permute"]:
            (place,) = place.users
            dimension = list(place.args[1:]).index(dimension)
        if dimension == 1:
            kind = _NORMS[max(len(place.meta["tensor_meta"].shape) - 2, 1)]
            names.append(_insert_batch_norm(graph, node, place, layer, kind))
    graph.graph.lint()
    graph.recompile()
    return names


def _insert_batch_norm(graph: fx.GraphModule, node: fx.Node, place: fx.Node, layer: Any, kind: type[Any]) -> str:
    norm = kind(layer.weight.shape[0]).to(layer.weight)
    norm.running_var.fill_(1 - norm.eps)
    if layer.bias is not None:
        norm.bias = layer.bias
        layer.bias = None
    name = free_name(graph, f"{node.target}_norm")
    graph.add_submodule(name, norm)
    with graph.graph.inserting_after(place):
        normed = graph.graph.call_module(name, (place,))
    place.replace_all_uses_with(normed, delete_user_cb=lambda user: user is not normed)
    return name
