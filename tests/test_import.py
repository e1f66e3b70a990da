import subprocess
import sys

import snn_lowlat


def test_importing_the_package_does_not_import_lightning():
    code = "import sys, snn_lowlat; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert done.stdout.strip() == "False"


def test_the_public_names_exist():
    assert all(hasattr(snn_lowlat, name) for name in snn_lowlat.__all__)
