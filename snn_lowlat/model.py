"""The converted network: run it, read it out after every step, save it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal, overload
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from snn_lowlat import checks
from snn_lowlat.encoding import make_encoder
from snn_lowlat.errors import SnnLowlatError
from snn_lowlat.graph import describe, rebuild
from snn_lowlat.hosts import get_backend
from snn_lowlat.hosts.watch import Sight, Watch
from snn_lowlat.images import floating_type, usable_images
from snn_lowlat.int8 import whole_numbers
from snn_lowlat.model_file import write_contents
from snn_lowlat.modes import eval_mode
from snn_lowlat.neurons import NEURONS
from snn_lowlat.plan import SitePlan
from snn_lowlat.provenance import Provenance
from snn_lowlat.simulation import EventRecorder, Events, Observer, Simulator, is_counted, micro_batches

__all__ = ["Provenance", "SpikingModel"]

_PRECISIONS = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}
_FAST = (torch.float32, torch.float64)


class SpikingModel(nn.Module):
    """A spiking network that came out of a conversion.

    Whatever has been done to the host's network, calling this module computes what the host's own modules do as they
    are now, in evaluation mode, in the type of their weights. It may be called from several threads at once.

    Parameters
    ----------
    network : Module
        The host library's network.
    plan : mapping of str to SitePlan
        What each site became.
    timesteps : int
        The window it was planned for, in steps.
    backend : str
        The host library's name.
    encoder : str
        The input coding's name.
    seed : int
        Seed of the encoder's random numbers.
    depth : int
        The number of spiking layers on the longest way through the network.
    structure : dict
        What the network computes between its neurons, as :func:`snn_lowlat.graph.describe` puts it.
    provenance : Provenance
        How it was made.

    Attributes
    ----------
    network : Module
        The host's module, to use in the host's own idiom.
    plan : dict of str to SitePlan
        The plan it was built from, by site.
    ann_accuracy : float or None
        The accuracy of the network it came from, where known, in [0, 1].
    micro_batch : int or None
        Images simulated at a time; None chooses so that they stay in the processor's cache.
    run_on_host : bool
        Always simulate with the host's own modules. Otherwise that happens on accelerators, with weights of 16 bits,
        and while somebody watches the modules (hooks, as monitors use), has put others in their place or has changed
        their options; a CPU has a faster way to the same spikes, :class:`snn_lowlat.simulation.Simulator`, which takes
        its weights and neurons from the host's modules as they are at the time.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: Mapping[str, SitePlan],
        *,
        timesteps: int,
        backend: str,
        encoder: str,
        seed: int,
        depth: int,
        structure: dict[str, Any],
        provenance: Provenance,
    ) -> None:
        super().__init__()
        self.network = network
        self.plan = dict(plan)
        self.timesteps = checks.count("timesteps", timesteps)
        self.backend = backend
        self.encoder = encoder
        self.seed = checks.seed("seed", seed)
        self.depth = depth
        self.structure = structure
        self.provenance = provenance
        self.ann_accuracy: float | None = None
        self.micro_batch: int | None = None
        self.run_on_host = False
        self._watch = Watch(network)
        self._known: _Known | None = None
        self.eval()

    @property
    def strategy(self) -> str:
        """The name of the strategy that planned it."""
        return self.provenance.strategy

    @property
    def precision(self) -> str:
        """What the network computes in now, read from its numbers.

        ``"int8"`` if all of them are whole, weights have 8 bits and all sums are exact; else the type of its weights,
        ``"fp32"``, ``"fp64"``, ``"fp16"`` or ``"bf16"``. What it was converted to is in the provenance.
        """
        with _turn_of(self.network).lock:
            known = self._look()
            if self.timesteps not in known.precision:
                known.precision[self.timesteps] = self._read_precision(known.sight)
            return known.precision[self.timesteps]

    def _read_precision(self, sight: Sight) -> str:
        dtype = floating_type(self.network)
        name = _PRECISIONS.get(dtype, str(dtype).removeprefix("torch."))
        # What modules compute that somebody has put in, nobody knows.
        if sight.changed is not None or sight.observed:
            return name
        return "int8" if whole_numbers(*self.normal_form(share=True), self.timesteps).everything else name

    @property
    def latency_steps(self) -> int:
        """Steps from the first input to the last output, end to end."""
        return self.latency_steps_at(self.timesteps)

    def latency_steps_at(self, timesteps: int) -> int:
        """Return the end-to-end latency, in steps, when each layer's window is ``timesteps``."""
        timesteps = checks.count("timesteps", timesteps)
        return max(NEURONS[site.neuron].latency_steps(timesteps, self.depth, site) for site in self.plan.values())

    @property
    def is_counted(self) -> bool:
        """Whether counts say all there is to know: every neuron sees its whole window before it fires.

        Such a network equals one with quantised activations, and calling it evaluates the counts of its spikes in one
        pass, whatever the number of steps; :meth:`simulate` runs the spikes.
        """
        # Pixels that differ from step to step are rounded in each, and not their mean.
        rounded = self.encoder != "direct" and any(node["target"] == "round" for node in self.structure["nodes"])
        return is_counted(self.plan) and not rounded

    def forward(self, images: Tensor) -> Tensor:
        """Return the readout after the last step: in one pass if :attr:`is_counted`, else spike by spike.

        Parameters
        ----------
        images : Tensor
            A batch ``[N, ...]``, as the original network takes it.

        Returns
        -------
        Tensor
            Logits ``[N, classes]``: the output averaged over the steps.
        """
        return self.count(images) if self.is_counted else self.simulate(images)

    @overload
    def simulate(self, images: Tensor, record_events: Literal[False] = False) -> Tensor: ...

    @overload
    def simulate(self, images: Tensor, record_events: Literal[True]) -> tuple[Tensor, Events]: ...

    def simulate(self, images: Tensor, record_events: bool = False) -> Tensor | tuple[Tensor, Events]:
        """Return the readout after the last step, always computed spike by spike.

        Parameters
        ----------
        images : Tensor
            A batch ``[N, ...]``, as the original network takes it.
        record_events : bool
            Return also what the neurons sent: spikes, or where they switched on and off.

        Returns
        -------
        logits : Tensor
            The output averaged over the steps, ``[N, classes]``.
        events : Events
            Layer, image, neuron, time and sign of each event; only with ``record_events``.
        """
        if not record_events:
            return self.readout(images)[-1]
        recorder = EventRecorder(self)
        logits = self.readout(images, observe=recorder)[-1]
        return logits, recorder.events(images)

    @torch.no_grad()
    def count(self, images: Tensor, timesteps: int | None = None, observe: Observer | None = None) -> Tensor:
        """Return the readout after the last step from the counts of the spikes, in one pass.

        Parameters
        ----------
        images : Tensor
            A batch ``[N, ...]``, as the original network takes it.
        timesteps : int, optional
            The length of every layer's window instead of the one planned for.
        observe : callable, optional
            ``observe(site, mean)`` is called at each site with the mean of the spikes, ``[N, C, ...]``.

        Returns
        -------
        Tensor
            Logits ``[N, classes]``.

        Raises
        ------
        ValueError
            If the network is not counted, images have another shape than those it was converted with, or ``timesteps``
            is less than 1.
        """
        if not self.is_counted:
            raise ValueError("its neurons fire as their input arrives, so counts are not enough: use simulate().")
        images, timesteps = self._checked(images, timesteps)
        currents = images if self.encoder == "direct" else self._encoded(images, timesteps).mean(0)
        turn = _turn_of(self.network)
        with turn.lock, _full_precision(images):
            self._look()
            with turn.of_the_modules(), eval_mode(self.network), self._watched(observe):
                return get_backend(self.backend).count(self.network, currents, timesteps)

    @torch.no_grad()
    def readout(self, images: Tensor, timesteps: int | None = None, observe: Observer | None = None) -> Tensor:
        """Return the readout after every step, from one pass.

        Parameters
        ----------
        images : Tensor
            A batch ``[N, ...]``, as the original network takes it.
        timesteps : int, optional
            Run for so many steps instead of the number planned for.
        observe : callable, optional
            ``observe(site, spikes)`` is called at each site, for a few images at a time, with what its neurons fire,
            0 or 1, ``[T, N, C, ...]``.

        Returns
        -------
        Tensor
            ``[T, N, classes]``: entry ``t`` is the output averaged over steps ``1 .. t+1``, where neurons see their
            whole window first, over those of the last window.

        Raises
        ------
        ValueError
            If images have another shape than those it was converted with, or ``timesteps`` is less than 1.
        """
        images, timesteps = self._checked(images, timesteps)
        currents = self._encoded(images, timesteps)
        parts = [part.transpose(0, 1) for part in micro_batches(currents.transpose(0, 1), timesteps, self.micro_batch)]
        turn = _turn_of(self.network)
        with _full_precision(images):
            with turn.lock:
                simulator = self._simulator(images)
                if simulator is None:
                    host = get_backend(self.backend)
                    with turn.of_the_modules(), eval_mode(self.network), self._watched(observe, timesteps):
                        outputs = [host.run(self.network, part) for part in parts]
            if simulator is not None:
                outputs = [simulator(part, observe) for part in parts]
        steps = torch.arange(1, timesteps + 1, device=images.device)
        total = torch.cat(outputs, dim=1).cumsum(0)
        return total / steps.view(-1, *[1] * (total.dim() - 1))

    def _simulator(self, images: Tensor) -> Simulator | None:
        """Return what simulates the network as it is now; None if the host has to. The caller holds the lock."""
        known = self._look()
        fast = known.sight.changed is None and not known.sight.observed and known.sight.numbers is not None
        if self.run_on_host or not fast or images.device.type != "cpu" or images.dtype not in _FAST:
            return None
        if known.simulator is None:
            with torch.inference_mode(False):
                example = torch.zeros(1, *images.shape[1:], dtype=images.dtype)
                known.simulator = Simulator(*self.normal_form(share=True), example)
        return known.simulator

    def _look(self) -> _Known:
        """Return what is known of the network as it is now; the caller holds the lock.

        Raises
        ------
        SnnLowlatError
            If weights or values of neurons have become NaN or infinite.
        """
        sight = self._watch.look(self.network)
        if self._known is None or sight.numbers is None or self._known.sight != sight:
            _check_numbers(self.network)
            self._known = _Known(sight)
        return self._known

    @contextmanager
    def _watched(self, observe: Observer | None, timesteps: int | None = None) -> Iterator[None]:
        """Let somebody see what the host's neurons fire, ``[T, N, C, ...]``, or its mean, ``[N, C, ...]``."""
        host = get_backend(self.backend)

        def watch(name: str, layer: nn.Module, output: Any) -> None:
            spikes = host.fired(layer, output)
            if observe is not None:
                observe(name, spikes if timesteps is None else spikes.reshape(timesteps, -1, *spikes.shape[1:]))

        layers = {} if observe is None else self.spiking_layers()
        hooks = [
            layer.register_forward_hook(lambda layer, _, output, name=name: watch(name, layer, output))
            for name, layer in layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _checked(self, images: Tensor, timesteps: int | None) -> tuple[Tensor, int]:
        timesteps = checks.count("timesteps", self.timesteps if timesteps is None else timesteps)
        return usable_images(images, floating_type(self.network), self.provenance.input_shape), timesteps

    def _encoded(self, images: Tensor, timesteps: int) -> Tensor:
        return make_encoder(self.encoder)(images, timesteps, self.seed)

    def reset(self) -> None:
        """Put every neuron of the host's network into its initial state."""
        get_backend(self.backend).reset(self.network)

    def spiking_layers(self) -> dict[str, nn.Module]:
        """Return the host's neuron modules by the names of their sites; their outputs are the spikes."""
        return get_backend(self.backend).spiking_layers(self.network)

    def normal_form(self, *, share: bool = False) -> tuple[fx.GraphModule, dict[str, SitePlan]]:
        """Return the network free of its host: layers with the weights, and a plan with the values, that it has now.

        Parameters
        ----------
        share : bool
            Share the weights with the host's network instead of copying them.

        Returns
        -------
        graph : GraphModule
            The network in normal form; an ``nn.ReLU`` stands in each site.
        plan : dict of str to SitePlan
            What each site is. It differs from :attr:`plan` where the host's neurons have been trained.

        Raises
        ------
        SnnLowlatError
            If weights or values of neurons are no numbers that a network can have, or modules are not those it was
            built with.
        """
        changed = self._watch.changed(self.network)
        if changed is not None:
            raise SnnLowlatError(
                f"{f'layer {changed!r}' if changed else 'the network'} is not what was built (another class, option, "
                "parametrization or forward), so this package can run it but not write it down: undo that, or make it "
                "in the original network and convert again."
            )
        _check_numbers(self.network)
        host = get_backend(self.backend)
        plan = host.current_plan(self.network, self.plan)
        try:
            return rebuild(self.structure, host.weights(self.network), share=share), plan
        except (KeyError, RuntimeError) as error:
            raise SnnLowlatError(
                f"the layers have other numbers than those they were built with ({error}): make pruning and the like "
                "permanent first, or convert again."
            ) from error

    def rebuilt(self, graph: fx.GraphModule, plan: Mapping[str, SitePlan]) -> SpikingModel:
        """Return this model with other weights and plans, in the same host, as after fine-tuning its normal form.

        Parameters
        ----------
        graph : GraphModule
            A network in normal form with the sites of this one.
        plan : mapping of str to SitePlan
            What each site becomes.
        """
        other = copy.copy(self)
        other._modules = {}
        other.network = get_backend(self.backend).build(graph, plan, self.provenance.input_shape)
        other.plan = dict(plan)
        other.structure = describe(graph)
        other._watch = Watch(other.network)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": None}

    def save(self, path: str | PathLike[str]) -> None:
        """Write weights, plan and provenance to one file, which appears whole or not at all.

        Parameters
        ----------
        path : path
            The file to write; :func:`snn_lowlat.load` reads it.

        Raises
        ------
        ValueError
            If the path is empty.
        OSError
            If it is a folder, or can't be written, as on a full disk; what was there before is unchanged.
        """
        graph, plan = self.normal_form()
        contents = {
            "structure": self.structure,
            "weights": {name: value.cpu() for name, value in graph.state_dict().items()},
            "plan": {
                name: {
                    "threshold": site.threshold,
                    "initial_potential": site.initial_potential,
                    "amplitude": site.amplitude,
                    "neuron": site.neuron,
                    "parameters": dict(site.parameters),
                }
                for name, site in plan.items()
            },
            "timesteps": self.timesteps,
            "backend": self.backend,
            "encoder": self.encoder,
            "seed": self.seed,
            "depth": self.depth,
            "ann_accuracy": self.ann_accuracy,
            "provenance": self.provenance.as_dict(),
        }
        write_contents(contents, path)

    def _shown_precision(self) -> str:
        try:
            return self.precision
        except SnnLowlatError:
            return "unknown"

    def extra_repr(self) -> str:
        """Show how the network was made."""
        return (
            f"strategy={self.strategy}, backend={self.backend}, timesteps={self.timesteps}, "
            f"latency_steps={self.latency_steps}, layers={len(self.plan)}, precision={self._shown_precision()}"
        )


@dataclass
class _Known:
    """What has been found out about a network that looks like this."""

    sight: Sight
    simulator: Simulator | None = None
    precision: dict[int, str] = field(default_factory=dict)
    """By the number of steps, over which sums in whole numbers have to be exact."""


class _Turn:
    """Whose turn it is with a host's modules, which keep what they compute with in themselves."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._running = False

    @contextmanager
    def of_the_modules(self) -> Iterator[None]:
        """Run the modules; the caller holds the lock."""
        if self._running:
            raise SnnLowlatError(
                "a hook or observer calls the spiking network while the network runs: call a copy.deepcopy() of it."
            )
        self._running = True
        try:
            yield
        finally:
            self._running = False


_TURNS: WeakKeyDictionary[nn.Module, _Turn] = WeakKeyDictionary()
_TURNS_LOCK = threading.Lock()


def _turn_of(network: nn.Module) -> _Turn:
    """Return the lock on a host's network, the same for all models that share it."""
    with _TURNS_LOCK:
        return _TURNS.setdefault(network, _Turn())


def _full_precision(images: Tensor) -> torch.autocast:
    """Compute in the type of the weights: sums of spikes rounded to 16 bits would be other spikes."""
    return torch.autocast(images.device.type, enabled=False)


def _check_numbers(network: nn.Module) -> None:
    """Raise :class:`SnnLowlatError` if a weight, threshold or any other number of a network is NaN or infinite."""
    values = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    if not values:
        return
    # Nearly always all is well, which one look at the largest numbers says.
    largest = torch._foreach_norm([value.detach() for value in values.values() if value.numel()], torch.inf)
    if bool(torch.isfinite(torch.stack([norm.double() for norm in largest])).all()):
        return
    for name, value in values.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            layer, _, attribute = name.rpartition(".")
            raise SnnLowlatError(
                f"layer {layer!r}: {bad} of {value.numel()} numbers in its {attribute} are NaN or infinite, and a "
                "neuron that gets such currents is silent: find out what has set them (half() does so to what is above "
                "65504), or load the weights again."
            )
