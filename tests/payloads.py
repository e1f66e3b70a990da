"""Files that somebody has tampered with: each field in turn, by strings that would do something if they became code."""

import copy

from torch import Tensor

SHAPES = (
    "{code}",
    'x"+str({code})+"',
    "x'+str({code})+'",
    'x"); {code}; ("',
    "x\n    {code}\n    y",
    "x); {code} #",
    "{{{code}}}",
    "x\n",
    "x = {code}, y",
)
"""What a string could look like that breaks out of a quote, a line, an argument list or a format."""


def payloads(marker):
    """Return strings of all shapes; if one is run as code, the file ``marker`` appears."""
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    return [shape.format(code=code) for shape in SHAPES]


def fields(contents, path=()):
    """Yield the path of each value, and of each key (ending in ``"key"``), in nested dicts, lists and tuples."""
    if isinstance(contents, dict):
        for key, value in contents.items():
            yield (*path, ("key", key))
            yield from fields(value, (*path, ("value", key)))
    elif isinstance(contents, (list, tuple)):
        for index, value in enumerate(contents):
            yield from fields(value, (*path, ("value", index)))
    elif not isinstance(contents, Tensor):
        yield path
    if path and isinstance(contents, (dict, list, tuple, Tensor)):
        yield path


def replaced(contents, path, new):
    """Return a copy with the value or key at a path replaced."""
    (kind, place), *rest = path
    if isinstance(contents, dict):
        if kind == "key":
            return {new if key == place else key: value for key, value in contents.items()}
        return {key: _inside(value, rest, new) if key == place else value for key, value in contents.items()}
    changed = [_inside(value, rest, new) if index == place else value for index, value in enumerate(contents)]
    return type(contents)(changed)


def _inside(value, path, new):
    return replaced(value, path, new) if path else new


def renamed(contents, names):
    """Return a copy with names replaced wherever they stand, also before a dot, as in the name of a weight."""
    if isinstance(contents, dict):
        return {_rename(key, names): renamed(value, names) for key, value in contents.items()}
    if isinstance(contents, (list, tuple)):
        return type(contents)(renamed(value, names) for value in contents)
    return _rename(contents, names) if isinstance(contents, str) else copy.copy(contents)


def _rename(text, names):
    name, dot, rest = text.rpartition(".")
    return f"{names[name]}{dot}{rest}" if name in names else names.get(text, text)
