"""What a first image of the embedded models imports: each of these takes longer than sampling it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
import diptych

slow = ("transformers", "torch._dynamo", "torch.distributed.tensor", "sympy", "scipy", "huggingface_hub")

for model, engine, options in (
    ("latent", "pytorch", {}),
    ("cascade", "pytorch", {"stop": 1}),
    ("latent", "auto", {}),  # where OpenVINO is installed: records the networks, and compiles them
):
    diptych.load(model, "cpu", engine=engine).generate("a red apple", seeds=[0], steps=1, **options)
    print([name for name in slow if name in sys.modules])
"""


def test_the_embedded_models_import_no_slow_package(tmp_path: Path) -> None:
    environment = {**os.environ, "DIPTYCH_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "[]\n" * 3, done.stdout + done.stderr
