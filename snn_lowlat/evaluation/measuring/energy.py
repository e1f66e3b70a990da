"""What counted operations cost in energy, by models that are chosen by name and always named beside their figures.

No figure here is a measurement of a chip. A model multiplies counts by prices from the literature; prices differ by a
factor of six between models for the same counts, so energies and ratios compare only within one model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from snn_lowlat import checks
from snn_lowlat.evaluation.measuring.operations import LayerOperations, Operations

__all__ = ["COST_MODELS", "Cost", "CostModel", "Energy", "MemoryHierarchy", "PriceList", "cost_model"]

_HOROWITZ = "Horowitz, ISSCC 2014, doi 10.1109/ISSCC.2014.6757323 (45 nm, 0.9 V)"


@dataclass(frozen=True)
class Energy:
    """The energy of one image by one model.

    Parameters
    ----------
    model : str
        The model's name.
    parts : mapping of str to float
        What it is made of, in pJ: ``"synapses"``, ``"macs"``, ``"additions"``, ``"comparisons"``, ``"memory"``.
    layers : mapping of str to float
        The same energy by layer, in pJ.
    """

    model: str
    parts: Mapping[str, float]
    layers: Mapping[str, float]

    def __post_init__(self) -> None:
        for name in ("parts", "layers"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.model, dict(self.parts), dict(self.layers)))

    @property
    def total(self) -> float:
        """The energy of one image in pJ."""
        return float(sum(self.parts.values()))


@dataclass(frozen=True)
class CostModel(ABC):
    """A model of what operations cost, in pJ.

    Parameters
    ----------
    name : str
        By which it is chosen.
    description : str
        What it counts.
    source : str
        Where its prices come from.
    """

    name: str
    description: str
    source: str

    def energy(self, operations: Operations) -> Energy:
        """Return the energy of one image.

        Parameters
        ----------
        operations : Operations
            What :func:`~snn_lowlat.evaluation.measure_operations` or ``ann_operations`` counted.
        """
        totals: dict[str, float] = {}
        layers: dict[str, float] = {}
        for layer in operations.layers:
            for name, price in self.parts(layer, operations).items():
                totals[name] = totals.get(name, 0.0) + price
                layers[layer.name] = layers.get(layer.name, 0.0) + price
        return Energy(self.name, totals, layers)

    @abstractmethod
    def parts(self, layer: LayerOperations, operations: Operations) -> dict[str, float]:
        """Return what one layer of a network costs, in pJ, by what it is for."""


@dataclass(frozen=True)
class PriceList(CostModel):
    """One price for each kind of operation.

    Papers that give energies with the two prices of arithmetic count MACs and synaptic operations alone. Here the
    neurons' own additions and comparisons, each a subtraction, cost as much as any other addition; the parts of an
    :class:`Energy` say how much that is.

    Parameters
    ----------
    mac, addition : float
        The price of a multiply-accumulate, and of an addition or comparison, in pJ.
    access : float
        The price of reading or writing one number in memory, in pJ: a parameter or a neuron's state.
    """

    mac: float
    addition: float
    access: float = 0.0

    def parts(self, layer: LayerOperations, operations: Operations) -> dict[str, float]:
        """Return what one layer costs, in pJ."""
        return {
            "synapses": self.addition * layer.synaptic_operations,
            "macs": self.mac * layer.macs,
            "additions": self.addition * layer.additions,
            "comparisons": self.addition * layer.comparisons,
            "memory": self.access * layer.memory_accesses,
        }


@dataclass(frozen=True)
class MemoryHierarchy(CostModel):
    """Each layer has memories of its own for parameters, potentials, input and output; larger ones cost more an access.

    Lemaire et al., "An analytical estimation of spiking neural networks energy efficiency" (ICONIP 2022, arXiv
    2210.13107), for 32-bit integers: operations, the computation of addresses, and accesses to SRAM. The formulas are
    those of SpikingJelly's ``estimate_lemaire_energy``, and so are the prices; the counts are those of this package,
    because SpikingJelly's take converted networks for real-valued ones, approximate how many places a spike reaches,
    and know no pools and no sums.

    Parameters
    ----------
    queue : int
        The messages that the queue of spikes between two layers holds.
    """

    queue: int = 1000

    def parts(self, layer: LayerOperations, operations: Operations) -> dict[str, float]:
        """Return what one layer costs, in pJ; addressing belongs to the synapses and the MACs."""
        # SpikingJelly takes long to import, and nothing else here needs it.
        from spikingjelly.activation_based.op_counter import LemaireEnergyCostConfig

        prices = LemaireEnergyCostConfig()
        addition, mac = prices.e_add_pj, prices.e_mul_pj + prices.e_add_pj

        def access(elements: float) -> float:
            return 4 * float(prices.memory_cost_pj(4 * elements))

        convolution = layer.kernel > 0
        biases = layer.parameter_reads - layer.synaptic_operations - layer.macs
        passes = biases / layer.outputs if layer.macs else 0.0
        # Where an event leads to, and where a sum over the input goes on.
        synapse_addresses = addition * layer.synaptic_operations + (2 * mac * layer.events if convolution else 0.0)
        mac_addresses = layer.inputs + layer.outputs + layer.kernel
        memory = layer.parameter_reads * access(layer.parameters)
        memory += 2 * layer.synaptic_operations * access(layer.outputs)
        if layer.kind == "weights":
            memory += layer.events * access(self.queue)
            memory += (layer.macs if convolution else passes * layer.inputs) * access(layer.inputs)
            memory += 0.0 if operations.spiking else layer.outputs * access(layer.outputs)
        if layer.kind == "neurons":
            memory += layer.state_accesses * access(layer.outputs) + layer.events * access(self.queue)
        return {
            "synapses": addition * layer.synaptic_operations + synapse_addresses,
            "macs": mac * layer.macs + addition * passes * mac_addresses,
            "additions": addition * layer.additions,
            "comparisons": 0.0,
            "memory": memory,
        }


@dataclass(frozen=True)
class Cost:
    """What a network does for one image, and its energy by several models.

    Parameters
    ----------
    spikes, synaptic_operations, macs, additions, comparisons, memory_accesses : float
        See :class:`~snn_lowlat.evaluation.Operations`.
    energies : mapping of str to float
        In pJ, by the cost model's name.
    images : int
        How many images were measured; 0 where the operations do not depend on them.
    """

    spikes: float
    synaptic_operations: float
    macs: float
    additions: float
    comparisons: float
    memory_accesses: float
    energies: Mapping[str, float]
    images: int

    @classmethod
    def of(cls, operations: Operations, models: Iterable[CostModel]) -> Cost:
        """Work out the cost of counted operations."""
        return cls(
            spikes=operations.spikes,
            synaptic_operations=operations.synaptic_operations,
            macs=operations.macs,
            additions=operations.additions,
            comparisons=operations.comparisons,
            memory_accesses=operations.memory_accesses,
            energies={model.name: model.energy(operations).total for model in models},
            images=operations.images,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; ``energies`` in pJ."""
        return {**vars(self), "energies": dict(self.energies)}


_STEP = "SpikingJelly 2.0, SimpleEnergyCostConfig; memory 3.12 pJ a bit, openreview.net/pdf?id=SzwU2XrXIS"

COST_MODELS: dict[str, CostModel] = {
    model.name: model
    for model in (
        PriceList(
            "int32_45nm",
            "32-bit integers, arithmetic alone: 3.2 pJ a MAC, 0.1 pJ an addition",
            _HOROWITZ,
            mac=3.2,
            addition=0.1,
        ),
        PriceList(
            "fp32_45nm",
            "32-bit floats, arithmetic alone: 4.6 pJ a MAC, 0.9 pJ an addition",
            _HOROWITZ,
            mac=4.6,
            addition=0.9,
        ),
        PriceList(
            "fp32_45nm_memory",
            "32-bit floats, 4.6 pJ a MAC, 0.9 pJ an addition, 99.84 pJ an access of 4 bytes",
            f"{_HOROWITZ}; {_STEP}",
            mac=4.6,
            addition=0.9,
            access=4 * 24.96,
        ),
        PriceList(
            "fp16_45nm_memory",
            "16-bit floats, 1.5 pJ a MAC, 0.4 pJ an addition, 49.92 pJ an access of 2 bytes",
            f"{_HOROWITZ}; {_STEP}",
            mac=1.5,
            addition=0.4,
            access=2 * 24.96,
        ),
        PriceList(
            "int8_45nm_memory",
            "8-bit integers, 0.23 pJ a MAC, 0.03 pJ an addition, 24.96 pJ an access of 1 byte",
            f"{_HOROWITZ}; {_STEP}",
            mac=0.23,
            addition=0.03,
            access=24.96,
        ),
        MemoryHierarchy(
            "int32_45nm_sram",
            "32-bit integers, 3.2 pJ a MAC, 0.1 pJ an addition, addressing, and SRAM of each layer's own size",
            "Lemaire et al., ICONIP 2022, arXiv 2210.13107; prices of SpikingJelly 2.0, LemaireEnergyCostConfig",
        ),
    )
}
"""The cost models by name. Energies are in pJ for one image."""


def cost_model(name: str) -> CostModel:
    """Return a cost model by its name; ``ValueError`` names those there are."""
    return COST_MODELS[checks.one_of("cost model", name, COST_MODELS)]
