import subprocess
import sys

import pytest

import snn_lowlat
import snn_lowlat.training


@pytest.mark.parametrize(
    "library", ["hydra", "jinja2", "lightning", "matplotlib", "nir", "numba", "sklearn", "snntorch", "spikingjelly"]
)
def test_importing_the_package_does_not_import(library, imported):
    assert library not in imported


@pytest.fixture(scope="module")
def imported():
    code = "import sys, snn_lowlat; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    return done.stdout.split()


def test_measuring_does_not_import_what_draws(imported):
    assert "snn_lowlat.evaluation.measuring.sweep" in imported
    assert "snn_lowlat.evaluation.reporting" not in imported


@pytest.mark.parametrize("package", [snn_lowlat, snn_lowlat.evaluation, snn_lowlat.training])
def test_the_public_names_exist(package):
    assert all(hasattr(package, name) for name in package.__all__)


def test_the_package_works_without_nir_and_says_how_to_get_it():
    code = """
import sys
sys.modules["nir"] = None
import snn_lowlat
for name in ("to_nir", "from_nir"):
    try:
        getattr(snn_lowlat, name)
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert done.stdout.count("pip install 'snn_lowlat[nir]'") == 2
