"""An autoencoder alone as diffusers saves it: the folder `vae` of a Stable Diffusion, or one published by itself."""

from __future__ import annotations

from diptych.networks.autoencoder import Autoencoder
from diptych.pretrained.key_map import pieces
from diptych.pretrained.source import Family, Source
from diptych.pretrained.stable_diffusion.config_json import autoencoder_config
from diptych.pretrained.stable_diffusion.diffusers_folder import CLASSES, OLDER
from diptych.pretrained.stable_diffusion.state_dict_keys import diffusers_autoencoder
from diptych.weights.lazy import fill, on_meta


def fits(source: Source) -> bool:
    file = source.path / "config.json"
    return source.folder and file.is_file() and source.config("").get("_class_name") == CLASSES["vae"]


def read(source: Source) -> Autoencoder:
    """The autoencoder in a folder. A `UserError` names the file, field or key at fault."""
    config = autoencoder_config(source.config(""), f"{source.path / 'config.json'}")
    stored = source.part("")
    with on_meta():  # shapes alone, until the files are known to have them
        autoencoder = Autoencoder(config)
    layout = diffusers_autoencoder(config, OLDER in stored)
    fill(autoencoder, pieces(layout, stored), stored.source, source.options.dtype)
    return autoencoder.eval()


FAMILY = Family("an autoencoder alone, folder of diffusers", fits, read, read, ())
