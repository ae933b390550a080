"""Models of the Hugging Face hub: partial downloads into the hub's own cache, verified before use."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from diptych.core.caches import cache_folder, short_hash
from diptych.core.config import read_json
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.weights.lazy import VARIANTS
from diptych.weights.tensors import PICKLE_ENDINGS

ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w-][\w.-]*)(?:/(.+))?", re.ASCII)
TEXT_SUFFIXES = (".json", ".txt", ".model")
"""Endings of configs and of tokenizers."""
UNUSED_FOLDERS = {"safety_checker", "feature_extractor", "watermarker", "image_encoder"}
"""Folders of pipelines that diptych has no use for."""

OUTPUT_FOLDERS = ("runs", "cache", "data", "out")
"""Folders in which diptych writes by default."""


def hub_id(source: str) -> tuple[str, str | None] | None:
    """`"owner/name"`, and the file in it if one is named; none where `source` is not a hub id.

    A path below an existing folder, or below one of `OUTPUT_FOLDERS`, is no id.
    """
    match, first = ID.fullmatch(source), source.split("/")[0]
    if not match or first in OUTPUT_FOLDERS or Path(first).exists():
        return None
    repository, file = match.groups()
    if file is not None and not file.endswith((".safetensors", *PICKLE_ENDINGS)):
        return None
    return repository, file


def fetch_model(
    repository: str, file: str | None = None, revision: str | None = None, offline: bool = False, pickles: bool = False
) -> Path:
    """The local folder of a model on the hub, or its one file of weights; downloaded where it is not in the cache.

    Args:
        repository: "owner/name".
        file: one file of weights in it; without, all of a folder that a pipeline reads, or the only file of weights.
        revision: a branch, tag or commit; "main" if none.
        offline: take what is in the cache, as the environment's HF_HUB_OFFLINE does.
        pickles: use .bin, .ckpt and .pt files where there is no safetensors file.

    Raises:
        UserError: there is no network, no such model, revision or file, no right to it, or the cache is incomplete.
    """
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        folder = cached_snapshot(repository, revision)
        if folder is None:
            at = f" at revision {revision!r}" if revision else ""
            raise UserError(f"{repository}{at} is not in the cache {constants.HF_HUB_CACHE}, and diptych is offline")
        names = snapshot_files(folder)
    else:
        folder, names = download(repository, file, revision, pickles)
    chosen = select_files(names, repository, file, pickles)
    verify_files(folder, chosen)
    return folder / chosen[0] if is_single_file(chosen) else folder


def cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """The snapshot of a revision in the hub's cache, if it is cached."""
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    reference = home / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    if not commit or not re.fullmatch(r"[\w-]+", commit):  # as snapshots are named: no path, no ".."
        return None
    folder = home / "snapshots" / commit
    return folder if folder.is_dir() else None


def snapshot_files(folder: Path) -> list[str]:
    """All files of a snapshot, broken links included."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def download(repository: str, file: str | None, revision: str | None, pickles: bool) -> tuple[Path, list[str]]:
    """Download the missing files: the snapshot's folder, and the names of all files of the repository."""
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    http_error: Any = errors.HfHubHTTPError.__bases__[0]  # of whichever HTTP library huggingface_hub uses

    what = f"{repository} at revision {revision!r}" if revision else repository
    try:
        info = HfApi().model_info(repository, revision=revision)
        names = sorted(sibling.rfilename for sibling in info.siblings or ())
        chosen = select_files(names, repository, file, pickles)
        return Path(snapshot_download(repository, revision=info.sha or revision, allow_patterns=chosen)), names
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{repository}"
        raise UserError(f"{repository} is gated: agree to its terms at {page}, then `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"the model {repository} on the hub has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"no model at {repository}, neither here nor on the hub (a private one needs `hf auth login`)"
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"{repository} is not an id of the hub: {error}") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, ConnectionError, http_error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if folder := cached_snapshot(repository, revision):
            hint = f"it is in the cache {folder}: --offline (offline=True) uses that"
        else:
            hint = "there is no copy in the cache either; try again with a network, or give a folder or file"
        raise UserError(f"cannot reach the hub for {what} at {constants.ENDPOINT} ({reason}); {hint}") from None


def select_files(names: Iterable[str], repository: str, file: str | None = None, pickles: bool = False) -> list[str]:
    """The files of a repository that diptych reads: a single file of weights, or those of a folder.

    A pipeline's folder has model_index.json; ours and those of single networks have config.json. Other
    repositories must have a single file of weights, or `file` names one.
    """
    names = sorted(names)
    if file is not None:
        if file not in names:
            raise UserError(f"{repository} has no file {file!r}; its weights: {list_weights(names)}")
        return [file]
    if "model_index.json" in names or "config.json" in names:
        texts = [name for name in names if name.endswith(TEXT_SUFFIXES) and depth(name) <= 1]
        folders = {str(PurePosixPath(name).parent) for name in texts} - UNUSED_FOLDERS
        if "model_index.json" in names:  # beside a pipeline, single files hold the same once more
            folders_of_weights = folders - {"."}
        else:
            folders_of_weights = folders
        weights = [weight for folder in folders_of_weights for weight in weights_in(folder, names, pickles)]
        return sorted(weights + [name for name in texts if str(PurePosixPath(name).parent) in folders])
    files = [name for name in names if name.endswith(".safetensors")]
    files = files or [name for name in names if pickles and name.endswith(PICKLE_ENDINGS)]
    if len(files) != 1:
        which = f"name one, as in {repository}/{files[0]}" if files else "and no folder of a model that diptych reads"
        raise UserError(f"{repository} has {len(files)} files of weights ({list_weights(names)}): {which}")
    return files


def weights_in(folder: str, names: list[str], pickles: bool) -> list[str]:
    """The weights of one folder: safetensors before .bin files, plain before variants."""
    local = [name for name in names if str(PurePosixPath(name).parent) == folder]
    for ending in (".safetensors", ".bin") if pickles else (".safetensors",):
        for variant in VARIANTS:
            if files := [name for name in local if name.endswith(ending) and variant_of(name) == variant]:
                return files
    return []


def variant_of(name: str) -> str:
    """`model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors` -> "fp16"; "" for a plain one."""
    _, *between, _ = PurePosixPath(name).name.split(".")
    return re.sub(r"-\d+-of-\d+$", "", between[-1]) if between else ""


def depth(name: str) -> int:
    return name.count("/")


def is_single_file(chosen: list[str]) -> bool:
    """One file of weights, not a folder."""
    return len(chosen) == 1 and chosen[0].endswith((".safetensors", *PICKLE_ENDINGS))


def list_weights(names: Iterable[str]) -> str:
    weights = [name for name in names if name.endswith((".safetensors", *PICKLE_ENDINGS))]
    return ", ".join(weights[:8]) + (", ..." if len(weights) > 8 else "") if weights else "none"


def verify_files(folder: Path, names: Iterable[str]) -> None:
    """Raise a `UserError` unless each of these files of a snapshot exists and has the hash of the hub.

    The cache names a file's content by its hash: SHA-256 of large files, git's own of the others. A
    verified file is recorded with size and time.
    """
    names = list(names)
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.exists():
            blob = path.parent / os.readlink(path)
            partly = any(blob.parent.glob(f"{blob.name}*.incomplete"))
            raise cache_error(path, "was not fetched to its end" if partly else "is a link to nothing")
        if not path.is_file():
            raise cache_error(path, "is not there")
        if path.is_symlink():
            verify_blob(path)
    for name in names:
        if name.endswith(".json") and ".index." in name:
            weight_map = read_json(folder / name)
            shards = set(weight_map.get("weight_map", {}).values()) if isinstance(weight_map, dict) else set()
            for shard in sorted(map(str, shards)):
                if shard.endswith(".safetensors") and not (folder / name).with_name(shard).is_file():
                    raise cache_error(
                        (folder / name).with_name(shard), "is not there, and the index beside it needs it"
                    )


def cache_error(path: Path, what: str) -> UserError:
    return UserError(f"{path} in the hub's cache {what}: remove it and fetch the model again with a network")


def verify_blob(path: Path) -> None:
    """Raise a `UserError` unless a blob's content has the hash that is its name."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return
    stat = blob.stat()
    marker, stamp = verified_marker(blob), f"{stat.st_size} {stat.st_mtime_ns}\n"
    if marker.is_file() and marker.read_text() == stamp:
        return
    digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(f"blob {stat.st_size}\0".encode())
    with blob.open("rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    if digest.hexdigest() != blob.name:
        raise cache_error(path, f"is damaged ({stat.st_size:,} bytes that do not have the hash of its blob)")
    with contextlib.suppress(OSError, UserError):  # without it, the blob is only hashed again
        write_text(marker, stamp)


def verified_marker(blob: Path) -> Path:
    """The file that records that a blob was verified: $DIPTYCH_CACHE/hub, else ~/.cache/diptych/hub."""
    return cache_folder("hub", short_hash(str(blob), 32))
