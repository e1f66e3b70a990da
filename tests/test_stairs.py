"""Imports go down the list of rooms, never up, and never in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import snn_lowlat

ROOMS = """
    errors progress modes devices
    files tensor_files answers checks images registry plan processes provenance
    neurons encoding activations
    graph calibration strategies
    int8 simulation refinement
    hosts model_file model convert persistence
    spikingjelly snntorch nir adapters
    models training data
    evaluation.measuring evaluation.reporting evaluation
    snn_lowlat
    cli.limits cli.building benchmark cli config run
""".split()
"""The rooms of the house, each standing on those before it; ``snn_lowlat`` is the front door, ``__init__``."""

EXCEPTIONS = {
    ("snn_lowlat.graph.operations", "snn_lowlat.graph.normal_form"): "the type of what the rules build with",
    ("snn_lowlat.evaluation.leaderboard", "snn_lowlat.cli.leaderboard"): "a part of the command line",
    (
        "snn_lowlat.evaluation.measuring.report",
        "snn_lowlat.evaluation.reporting.plots",
    ): "Report.plot() draws on demand",
}
"""Imports that go up, or in a circle, all the same, each ``(importer, imported)``, and why."""

ROOT = Path(snn_lowlat.__file__).parent


def _modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(source: str) -> Iterator[str]:
    """Name what a module imports from this package, whether at its top, in a function or for its types only."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            # What is no module is a name in the package.
            given = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in given]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        yield from (name for name in names if name in MODULES)


IMPORTS = {name: sorted(set(_imports(path.read_text("utf-8")))) for name, path in MODULES.items()}


def _room(module: str) -> str:
    inside = module.removeprefix("snn_lowlat.")
    rooms = [room for room in ROOMS if inside == room or inside.startswith(f"{room}.")]
    assert rooms, f"{module} is in no room: put it on the list"
    return max(rooms, key=len)


def test_every_room_is_there():
    assert {_room(module) for module in MODULES} == set(ROOMS)


def test_no_import_goes_up():
    up = {
        (importer, imported)
        for importer, found in IMPORTS.items()
        for imported in found
        if ROOMS.index(_room(imported)) > ROOMS.index(_room(importer))
    }
    assert not up - EXCEPTIONS.keys()


def test_exceptions_are_still_needed():
    assert not [(importer, imported) for importer, imported in EXCEPTIONS if imported not in IMPORTS[importer]]


def test_no_imports_form_a_circle():
    left = {
        importer: {imported for imported in found if imported != importer and (importer, imported) not in EXCEPTIONS}
        for importer, found in IMPORTS.items()
    }
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left


@pytest.mark.parametrize(
    "source",
    [
        "import snn_lowlat.plan",
        "from snn_lowlat import plan",
        "from snn_lowlat.plan import Plan",
        "def late():\n    from snn_lowlat.plan import Plan",
        "if TYPE_CHECKING:\n    from snn_lowlat.plan import Plan",
        "plan = importlib.import_module('snn_lowlat.plan')",
    ],
)
def test_imports_are_found_wherever_they_are(source):
    assert list(_imports(source)) == ["snn_lowlat.plan"]
