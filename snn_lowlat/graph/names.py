"""Names for what is added to a network, and which names are safe in one.

``torch.fx`` writes the names of nodes, layers and constants into the source of ``forward``, where a name can be
anything from a keyword to a statement. Hence every name in a network of this package went through :func:`safe_name`,
whether it comes from a user's network or from a file.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Iterable

from torch import fx, nn

__all__ = ["free_name", "is_safe_name", "safe_name", "safe_names"]

_LONGEST = 1000

# What a graph module has of its own; most of it stands in no class, so an instance is asked.
_RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def safe_name(wanted: str) -> str:
    """Return a name that stays a name in the source that ``torch.fx`` writes; the same for the same name wanted.

    Letters, digits and underscores stay, so that most names do; anything else becomes an underscore. Keywords and
    ``self`` get one at their end, and so do names on ``_amplitude``: in SpikingJelly, what the spikes of a site are
    worth is a module ``<site>_amplitude``. Digits may come first, as in the layers of an ``nn.Sequential``:
    ``torch.fx`` writes those as strings.

    Parameters
    ----------
    wanted : str
        A name, or the path of a child.
    """
    # Python reads names in this form, so that others would be looked up under another name.
    name = re.sub(r"\W", "_", unicodedata.normalize("NFKC", wanted))[:_LONGEST] or "unnamed"
    return f"{name}_" if keyword.iskeyword(name) or name == "self" or name.endswith("_amplitude") else name


def is_safe_name(name: object) -> bool:
    """Say whether something is a name that can stand for a layer or a constant of a graph module."""
    return isinstance(name, str) and name == safe_name(name) and name not in _RESERVED


def safe_names(wanted: Iterable[str]) -> dict[str, str]:
    """Return a safe name for each of several, all different; those that are safe already stay."""
    wanted = list(wanted)
    taken = {name for name in wanted if is_safe_name(name)}
    found: dict[str, str] = {}
    for name in wanted:
        unique = name
        if name not in taken:
            unique, number = safe_name(name), 0
            while unique in taken or unique in _RESERVED:
                number += 1
                unique = f"{safe_name(name)}_{number}"
        taken.add(unique)
        found[name] = unique
    return found


def free_name(network: nn.Module, wanted: str) -> str:
    """Return the name wanted if the network has nothing of that name, or else the first one with a number that is free.

    Parameters
    ----------
    network : Module
        Where something is to be added.
    wanted : str
        A name, or the path of a child; it is made safe, see :func:`safe_name`.
    """
    wanted = safe_name(wanted)
    name, number = wanted, 0
    while hasattr(network, name) or name in _RESERVED:
        number += 1
        name = f"{wanted}_{number}"
    return name
