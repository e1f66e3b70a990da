"""A converted network free of its host, with gradients: what fine-tuning trains."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils.checkpoint import checkpoint

from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.graph import find_sites
from snn_lowlat.graph.names import free_name
from snn_lowlat.graph.passes import fold_batch_norms
from snn_lowlat.neurons.surrogate import SpikeOptions, surrogate_integrate_and_fire
from snn_lowlat.plan import Plan, SitePlan

__all__ = ["TrainableNetwork", "TrainableNeurons"]

_NEURONS = ("integrate_and_fire", "leaky_integrate_and_fire")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# So many images, or steps of images, go through a layer at a time.
_IMAGE_STEPS = 64
_NORM_OF: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


class TrainableNeurons(nn.Module):
    """A layer of integrate-and-fire neurons whose thresholds and leak can be trained.

    What a spike is worth and where the potential starts keep their ratio to the threshold.

    Parameters
    ----------
    plan : SitePlan
        What the neurons are now.
    timesteps : int
        The number of steps.
    options : SpikeOptions
        How gradients pass spikes.
    dropout : float
        The probability with which a neuron is silent for an image in training, in all steps.

    Attributes
    ----------
    threshold : Parameter
        ``[]`` or ``[C]``, in units of the pre-activation.
    leak : Parameter
        ``[]``: what stays of the potential from one step to the next.
    initial_fraction, height : Tensor
        The initial potential and what a spike is worth, in units of the threshold.
    """

    smallest: float = 1e-3
    """No threshold falls below this fraction of what it was at the start."""

    def __init__(self, plan: SitePlan, timesteps: int, options: SpikeOptions, dropout: float = 0.0) -> None:
        super().__init__()
        self.threshold = nn.Parameter(plan.threshold.clone())
        self.leak = nn.Parameter(torch.tensor(float(plan.parameters.get("leak", 1.0))).to(plan.threshold))
        self.register_buffer("initial_fraction", plan.initial_potential / plan.threshold)
        self.register_buffer("height", plan.amplitude / plan.threshold)
        self.register_buffer("least", self.smallest * plan.threshold)
        self.timesteps = timesteps
        self.options = options
        self.dropout = dropout

    initial_fraction: Tensor
    height: Tensor
    least: Tensor

    def forward(self, currents: Tensor) -> Tensor:
        """Map currents ``[T, N, C, ...]``, or ``[1, N, C, ...]`` for all steps, to outputs ``[T, N, C, ...]``."""
        outputs = surrogate_integrate_and_fire(
            currents, self.threshold, self.initial_fraction, self.height, self.leak, self.timesteps, self.options
        )
        if self.training and self.dropout:
            outputs = outputs * nn.functional.dropout(torch.ones_like(outputs[0]), self.dropout)
        return outputs

    @torch.no_grad()
    def keep_valid(self) -> None:
        """Bring thresholds and leak back into their ranges, which a step of an optimizer may leave."""
        self.threshold.clamp_(min=self.least)
        self.leak.clamp_(0, 1)

    def site_plan(self) -> SitePlan:
        """Return what the neurons are now."""
        leak = float(self.leak.detach())
        return SitePlan(
            threshold=self.threshold,
            initial_potential=self.initial_fraction * self.threshold,
            amplitude=self.height * self.threshold,
            neuron="integrate_and_fire" if leak == 1 else "leaky_integrate_and_fire",
            parameters={} if leak == 1 else {"leak": leak},
        )

    def extra_repr(self) -> str:
        """Show how many thresholds there are and the leak."""
        return f"thresholds={self.threshold.numel()}, leak={float(self.leak.detach()):.4g}, dropout={self.dropout}"


class TrainableNetwork(nn.Module):
    """A spiking network that gradients can pass, built from a network in normal form and its plan.

    Time is folded into the batch: ``[T * N, ...]`` through the layers, ``[T, N, ...]`` through the neurons. What lies
    before the first neurons is computed once if the input is constant in time.

    Memory grows in proportion to the number of steps: for each neuron and step two numbers are kept for the way back,
    three with batch norm. With ``segments`` above 1 only what passes between so many parts of the network is kept, and
    one part at a time is computed again on the way back.

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
        self._norms = _insert_batch_norms(self.graph, input_shape) if batch_norm else []
        device = next(graph.parameters()).device
        for name in find_sites(self.graph):
            if plan[name].neuron not in _NEURONS:
                raise SnnLowlatError(
                    f"layer {name!r} has neurons of the model {plan[name].neuron!r}, which surrogate gradients can't "
                    f"train: convert with a strategy whose neurons are {' or '.join(_NEURONS)}."
                )
            neurons = TrainableNeurons(plan[name], timesteps, options, dropout).to(device)
            neurons.threshold.requires_grad_(train_thresholds)
            neurons.leak.requires_grad_(train_leaks)
            setattr(self.graph, name, neurons)
        self.register_buffer("measured", torch.tensor(not batch_norm))
        self.register_buffer("updates", torch.tensor(0))
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
        # A few images at a time stay in a processor's cache, forwards and backwards; batch norms need them all.
        size = len(inputs if constant else inputs[0])
        if inputs.device.type == "cpu" and not self._norms:
            size = max(1, _IMAGE_STEPS // self.timesteps)
        parts = torch.split(inputs, size, 0 if constant else 1)
        outputs = [self._outputs(part, constant) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _outputs(self, inputs: Tensor, constant: bool) -> Tensor:
        walk = _Pass(self.graph, self.timesteps, constant)
        values: dict[fx.Node, Tensor] = {walk.nodes[0]: inputs if constant else inputs.flatten(0, 1)}
        parts = self.segments if self.training and torch.is_grad_enabled() else 1
        bounds = [round(len(walk.nodes) * part / parts) for part in range(parts + 1)]
        for start, end in pairwise(bounds):
            values = walk.run(start, end, values) if parts == 1 else self._checkpointed(walk, start, end, values)
        (outputs,) = values.values()
        return outputs.view(self.timesteps, -1, *outputs.shape[1:]).mean(0)

    def train(self, mode: bool = True) -> TrainableNetwork:
        """Set the mode; batch norms that the converted network had itself are affine layers and stay so."""
        super().train(mode)
        for name, module in self.graph.named_modules():
            if isinstance(module, _BATCH_NORMS) and name not in self._norms:
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
        fold_batch_norms(graph)
        return graph, plan

    def _checkpointed(self, walk: _Pass, start: int, end: int, values: dict[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        before, after = list(values), list[fx.Node]()

        def part(*tensors: Tensor) -> tuple[Tensor, ...]:
            found = walk.run(start, end, dict(zip(before, tensors, strict=True)))
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


class _Pass:
    """The nodes of a network in order, and what becomes of a window that passes them."""

    def __init__(self, graph: fx.GraphModule, timesteps: int, constant: bool) -> None:
        self.nodes = list(graph.graph.nodes)
        self._timesteps = timesteps
        self._interpreter = fx.Interpreter(graph)
        self._modules = dict(graph.named_modules())
        self._last_reader = {before: node for node in self.nodes for before in node.all_input_nodes}
        self._varying: set[fx.Node] = set()
        for node in self.nodes:
            varies = not constant if node.op == "placeholder" else self._neurons(node) is not None
            if varies or not self._varying.isdisjoint(node.all_input_nodes):
                self._varying.add(node)

    def run(self, start: int, end: int, values: dict[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        """Compute some of the nodes; maps the values that they read to those that are read after them."""
        values = dict(values)
        for node in self.nodes[start:end]:
            if node.op != "placeholder":
                values[node] = self._compute(node, values)
            for before in node.all_input_nodes:
                if self._last_reader[before] is node:
                    del values[before]
        return values

    def _compute(self, node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Any:
        neurons = self._neurons(node)
        if neurons is not None:
            (current,) = node.all_input_nodes
            steps = self._timesteps if current in self._varying else 1
            currents = values[current]
            return neurons(currents.reshape(steps, -1, *currents.shape[1:])).flatten(0, 1)

        def value(before: fx.Node) -> Tensor:
            found = values[before]
            if node not in self._varying or before in self._varying or before.op == "get_attr":
                return found
            return found.repeat(self._timesteps, *[1] * (found.dim() - 1))

        args, kwargs = map_arg((node.args, node.kwargs), value)
        return getattr(self._interpreter, node.op)(node.target, args, kwargs)

    def _neurons(self, node: fx.Node) -> TrainableNeurons | None:
        module = self._modules[str(node.target)] if node.op == "call_module" else None
        return module if isinstance(module, TrainableNeurons) else None


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
    """Put a batch norm that changes nothing behind each layer that feeds neurons; return their names."""
    reference = next(graph.parameters())
    with torch.no_grad():
        ShapeProp(graph).propagate(torch.zeros(2, *input_shape, dtype=reference.dtype, device=reference.device))
    sites = {site.node for site in find_sites(graph).values()}
    feeding: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if any(user in sites or user in feeding for user in node.users):
            feeding.add(node)
    names = []
    for node in [node for node in graph.graph.nodes if node in feeding]:
        layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind = _NORM_OF.get(type(layer)) if layer is not None else None
        # A linear layer along a last dimension that is not the channels' has no batch norm that folds.
        if kind is None or (isinstance(layer, nn.Linear) and len(node.meta["tensor_meta"].shape) != 2):
            continue
        names.append(_insert_batch_norm(graph, node, layer, kind))
    graph.graph.lint()
    graph.recompile()
    return names


def _insert_batch_norm(graph: fx.GraphModule, node: fx.Node, layer: Any, kind: type[Any]) -> str:
    norm = kind(layer.weight.shape[0]).to(layer.weight)
    norm.running_var.fill_(1 - norm.eps)
    if layer.bias is not None:
        norm.bias = layer.bias
        layer.bias = None
    name = free_name(graph, f"{node.target}_norm")
    graph.add_submodule(name, norm)
    with graph.graph.inserting_after(node):
        normed = graph.graph.call_module(name, (node,))
    node.replace_all_uses_with(normed, delete_user_cb=lambda user: user is not normed)
    return name
