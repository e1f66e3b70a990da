"""NIR, the Neuromorphic Intermediate Representation: converted networks as graphs that other tools read, and back.

A graph holds weights, pools, sums (several edges into one node) and ``nir.IF`` neurons, each with its threshold. What a
spike is worth is part of the weights behind the neurons, so spikes are 0 or 1 everywhere.

``nir.IF`` resets to ``v_reset`` and starts at 0. Converted networks reset by subtracting the threshold and start at an
initial potential, for which NIR has no words: each neuron's ``metadata`` say ``reset`` ("subtract") and ``v_init``.
**A reader that ignores them computes another network.**

What NIR lacks is written with what its readers do understand:

- channels and pixels that are picked, padded or joined are convolutions with weights 0 and 1;
- a factor for each channel, as where spikes enter a sum without a layer between, is a 1 x 1 convolution with a diagonal
  of weights: there is a ``nir.Scale``, but the readers of SpikingJelly, snnTorch, sinabs and norse do not know it;
- groups become zeros in the weights of a convolution without groups, and kernels are made square with zeros: the type
  check of nir 1.0.8 is wrong for anything else, and its reader refuses such files.

Written for nir 1.0.8 (Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 15, 8122,
2024). The unit of time is a step, as everywhere in this package.
"""

try:
    import nir  # noqa: F401
except ImportError as error:
    raise ImportError(
        "to_nir and from_nir need the package nir, which is not installed: pip install 'snn_lowlat[nir]'"
    ) from error

from snn_lowlat.nir.drift import Drift, LayerDrift
from snn_lowlat.nir.exchange import NIRExport, from_nir, to_nir

__all__ = ["Drift", "LayerDrift", "NIRExport", "from_nir", "to_nir"]
