"""Records images with metadata: `python -m tests.saved.record_pngs` writes pngs/, after `record_folders`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diptych.cli.main import main as diptych
from tests.saved.replay import HERE, commit, machine, mask, picture

PNGS = HERE / "pngs"
COMMANDS = {
    "latent": '"a red apple" --model latent --seed 7 --steps 3 --guidance 3 --sampler ddim --negative green --size 64',
    "latent-size": '"a (blue:1.2) cup" --steps 2 --size 96x64 --tile 64 --weights --schedule-type karras',
    "latent-mask": '"a heart" --steps 3 --image {pngs}/waves.png --mask {pngs}/box.png --paste --strength 0.8',
    "latent-folder": '"a red picture" --model latent-joint --seed 3 --preview-decoder tiny-decoder --clip judge-tiny:2',
    "cascade": '"a red apple" --model cascade --steps 4,2 --stop 2 --keep-stages --threshold dynamic:0.95:1.5,-',
    "cascade-image": '"a cat" --model cascade --steps 3 --stop 2 --image {pngs}/waves.png --keep-stages',
    "cascade-low": "waves --model cascade --steps 2 --start 1 --stop 2 --low {pngs}/low.png --augmentation 0.3",
    "autoregressive": '"a red picture" --model autoregressive --seed 5 --temperature 0.9 --top-k 12',
}


def main() -> None:
    shutil.rmtree(PNGS, ignore_errors=True)
    PNGS.mkdir()
    picture(64, 64).save(PNGS / "waves.png")
    picture(32, 32).save(PNGS / "low.png")
    mask(64, 64).save(PNGS / "box.png")
    os.chdir(HERE / "folders")
    for name, command in COMMANDS.items():
        made = Path("made")
        assert (
            diptych(["generate", *shlex.split(command.format(pngs="../pngs")), "--out", str(made), "--device", "cpu"])
            == 0
        ), name
        for path in sorted(made.iterdir()):
            stage = path.stem.partition("-stage-")[2]
            path.rename(PNGS / f"{name}{stage and f'-stage-{stage}'}.png")
        made.rmdir()
    with Image.open(PNGS / "latent.png") as image:  # the form of the first versions
        row = {**json.loads(image.text["diptych"]), "model": "default"}  # type: ignore[attr-defined]
        text = PngInfo()
        text.add_text("parameters", json.dumps({key: value for key, value in row.items() if key != "diptych"}))
        image.save(PNGS / "first-form.png", pnginfo=text)
    (HERE / "pngs.json").write_text(json.dumps({"commit": commit(), "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
