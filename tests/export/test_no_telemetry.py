from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

CODE = """
import socket, sys, warnings

def refused(*args, **kwargs):
    print("CONNECTED", args, file=sys.stderr)
    raise OSError("no network here")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refused
import torch
import secateur as sec
from secateur.export import export
from secateur.runtimes import open_exported

done = export("line.xml", torch.nn.Linear(3, 2), torch.zeros(2, 3))
open_exported(done.path)(torch.zeros(1, 3))
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__, "openvino_telemetry" in sys.modules)
"""


def test_openvino_uses_its_stand_in_for_telemetry(exported):
    exported("openvino")
    assert import_module("openvino.tools.ovc.telemetry_utils").tm.__name__.endswith("telemetry_stub")
    assert sys.modules.get("openvino_telemetry") is None


@pytest.mark.slow
def test_openvino_is_kept_from_calling_home(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    unsure = ("CI", "TF_BUILD", "JENKINS_URL", "NNCF_CI", "NNCF_DEV")  # with these it would be silent anyway
    environment = {key: value for key, value in os.environ.items() if key not in unsure}
    environment |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path[:]))}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CONNECTED" not in found.stderr
    assert found.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]
    assert not (home / "intel").exists()
    assert (Path(tmp_path) / "line.bin").is_file()
