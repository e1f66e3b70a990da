"""The errors of this package: each names the layer, file or option at fault and says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

__all__ = ["CalibrationError", "ConversionError", "FileFormatError", "SnnLowlatError", "unknown_name"]


class SnnLowlatError(Exception):
    """Base class of every error this package raises on purpose."""


class ConversionError(SnnLowlatError, ValueError):
    """A network can't be converted; the message lists every obstacle with its node and what to do about it.

    Attributes
    ----------
    obstacles : tuple
        The obstacles found, as returned by :func:`snn_lowlat.check_convertible`; empty where no node is the cause.
    """

    def __init__(self, message: str, obstacles: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.obstacles = tuple(obstacles)


class CalibrationError(SnnLowlatError, ValueError):
    """Calibration data are missing or can't be used: none at all, not finite, or a layer that never responds."""


class FileFormatError(SnnLowlatError, ValueError):
    """A file is not a network saved by this package, is damaged, or belongs to another network or version."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """Build the error for a name that does not exist, with the nearest ones that do.

    Parameters
    ----------
    kind : str
        What the name stands for, such as ``"strategy"``.
    name : object
        The name that was asked for.
    known : iterable of str
        The names that exist.
    """
    names = sorted(known)
    # Capitals, hyphens and spaces are what names of other tools differ in.
    plain = {n.lower(): n for n in names}
    near = [plain[n] for n in get_close_matches(re.sub(r"[-\s]", "_", str(name)).lower(), plain, n=3)]
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}.{hint} There are: {', '.join(names) or 'none'}.")
