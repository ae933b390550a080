"""What a first image of the embedded models imports: each of these takes longer than sampling it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import diptych

for model, options in (("latent", {}), ("cascade", {"stop": 1})):
    diptych.load(model, "cpu").generate("a red apple", seeds=[0], steps=1, **options)
slow = ("transformers", "torch._dynamo", "torch.distributed.tensor", "sympy", "scipy", "huggingface_hub")
print([name for name in slow if name in sys.modules])
"""


def test_the_embedded_models_import_no_slow_package() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "[]\n", done.stdout + done.stderr
