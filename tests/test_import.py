import subprocess
import sys

import snn_lowlat


def test_importing_the_package_does_not_import_lightning():
    code = "import sys, snn_lowlat; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert done.stdout.strip() == "False"


def test_the_public_names_exist():
    assert all(hasattr(snn_lowlat, name) for name in snn_lowlat.__all__)


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
