"""The option that says with which membrane potential neurons start, for the strategies that have it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snn_lowlat import checks
from snn_lowlat.calibration import SiteStatistics
from snn_lowlat.errors import unknown_name

__all__ = ["check_initial_potential", "potential_fraction"]

_NAMED = {"half": 0.5, "zero": 0.0}


def check_initial_potential(given: str | float | Mapping[str, Tensor], *others: str) -> str | float | dict[str, Tensor]:
    """Check an initial potential as an option gives it.

    Parameters
    ----------
    given : str, float or mapping of str to Tensor
        ``"half"`` or ``"zero"`` of the threshold; a fraction of it, from -1 to 1; or fractions for each site by its
        name, of shape ``[]`` or ``[C]``.
    *others : str
        Names with a meaning of the strategy's own.

    Returns
    -------
    str, float or dict of str to Tensor
        The option, with the tensors of a mapping copied to the CPU.

    Raises
    ------
    ValueError
        If it has no meaning.
    """
    names = (*_NAMED, *others)
    if isinstance(given, str):
        return checks.one_of("initial potential", given, names)
    if isinstance(given, Mapping):
        return {str(site): _fractions(site, given[site]) for site in given}
    try:
        return checks.number("initial_potential", given, -1, 1)
    except ValueError as error:
        raise ValueError(
            f"{str(error)[:-1]}: it is a fraction of the threshold, {' or '.join(map(repr, names))}, or a mapping of "
            "site names to such fractions."
        ) from None


def potential_fraction(given: str | float | Mapping[str, Tensor], statistics: SiteStatistics) -> Tensor | None:
    """Return a site's initial potential as a fraction of the threshold.

    Parameters
    ----------
    given : str, float or mapping of str to Tensor
        A checked option.
    statistics : SiteStatistics
        The site's statistics.

    Returns
    -------
    Tensor or None
        Of shape ``[]`` or ``[C]``; None for a name with a meaning of the strategy's own.

    Raises
    ------
    ValueError
        If a mapping has no fraction for the site, or not one for each of its channels.
    """
    if isinstance(given, Mapping):
        if statistics.name not in given:
            raise unknown_name("site in initial_potential:", statistics.name, given)
        fraction = given[statistics.name]
        channels = statistics.histogram.channels
        if fraction.dim() == 1 and fraction.numel() != channels:
            raise ValueError(
                f"initial_potential of site {statistics.name!r} has {fraction.numel()} values for {channels} channels."
            )
        return fraction
    if isinstance(given, str):
        return torch.tensor(_NAMED[given]) if given in _NAMED else None
    return torch.tensor(float(given))


def _fractions(site: object, given: object) -> Tensor:
    value = checks.values(f"initial_potential of site {site!r}", given)
    if not bool((value.abs() <= 1).all()):
        raise ValueError(f"initial_potential of site {site!r} must be fractions of the threshold, from -1 to 1.")
    return value
