"""`diptych precompute` under torchrun: killed in the middle, gone on with by other numbers of processes, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.training import test_precompute_texts, test_text_online
from tests.training.processes import wait_for
from tests.training.test_precompute import files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COUNT = 40
COMMAND = """
import os, sys, time
from diptych.training import precompute as module, precompute_texts
module.BATCH, module.PART = 2, 4
log, pause = os.environ["RECORD"], float(os.environ["PAUSE"])
open(f"{log}.pid-{os.environ.get('RANK', 0)}", "w").write(str(os.getpid()))

def recorded(save, path_of):
    def write(*given):
        time.sleep(pause)
        save(*given)
        with open(log, "a") as file:
            file.write(path_of(given).name + "\\n")
    return write

module.save_examples = recorded(module.save_examples, lambda given: given[-1])
module.save_part = recorded(module.save_part, lambda given: given[0])
precompute_texts.save_safetensors = recorded(precompute_texts.save_safetensors, lambda given: given[1])
from diptych.cli.main import main
sys.exit(main())
"""
"""Parts of four images, written slowly; the name of each is recorded once it is there."""


class Runs:
    """Calls of `diptych precompute` of a recipe's data in a folder."""

    def __init__(self, folder: Path, name: str, words: list[str]) -> None:
        self.folder, self.out, self.record = folder, folder / name, folder / f"{name}.record"
        (folder / "command.py").write_text(COMMAND)
        self.words = ["precompute", *words, "--out", str(self.out)]

    def start(self, processes: int, pause: float = 0.0) -> subprocess.Popen[str]:
        torchrun = [] if processes == 0 else ["-m", "torch.distributed.run", "--standalone"]
        torchrun += ["--nproc-per-node", str(processes)] if processes else []
        path = f"{ROOT / 'src'}:{ROOT}"
        values = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RECORD": str(self.record), "PAUSE": str(pause)}
        command = [sys.executable, *torchrun, str(self.folder / "command.py"), *self.words]
        return subprocess.Popen(
            command, env=os.environ | values, cwd=self.folder, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def finish(self, processes: int) -> str:
        run = self.start(processes)
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said[-3000:]
        return said

    def written(self) -> list[str]:
        return self.record.read_text().split() if self.record.exists() else []

    def killed(self, processes: int, more_parts: int, one: bool) -> str:
        """Ended by SIGKILL, of the last process or of all, once so many more parts are there; what was said."""
        before = len(self.written())
        run = self.start(processes, pause=0.3)
        wait_for(lambda: len(self.written()) >= before + more_parts or run.poll() is not None, 300)
        assert run.poll() is None, run.communicate()[1][-3000:]
        if one:
            pid = int(self.record.with_name(f"{self.record.name}.pid-{processes - 1}").read_text())
            os.kill(pid, signal.SIGKILL)
        else:
            os.killpg(run.pid, signal.SIGKILL)
            for rank in range(processes):  # in sessions of their own
                with_pid = self.record.with_name(f"{self.record.name}.pid-{rank}")
                os.kill(int(with_pid.read_text()), signal.SIGKILL)
        _, said = run.communicate(timeout=120)
        assert run.returncode != 0 and not self.out.exists()
        return said


@pytest.mark.parametrize("kind", ["latents", "texts"])
def test_killed_in_the_middle_and_gone_on_with_by_others_the_files_are_those_of_one_process(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "caches"))
    place = test_text_online.made(tmp_path / "made", COUNT)
    for number in range(COUNT):
        test_precompute_texts.caption(place / "images", f"{number:02d}", f"a red dog and {number} apples")
    (place / "images" / "07.png").write_bytes(b"no image")  # another one is read in its place
    if kind == "latents":
        words = ["sd1", *test_text_online.changes(place), "training.workers=2"]
    else:
        words = ["imagen-base", *test_precompute_texts.changes(place / "t5", place / "images")]
    whole, parts = (Runs(tmp_path, name, words) for name in ("whole", "parts"))
    whole.finish(0)
    said = parts.killed(2, 3, one=True)
    assert "SIGKILL" in said, "as torchrun says it, which ends the others"
    parts.killed(3, 2, one=False)
    left = set(parts.written())
    assert 5 <= len(left) < len(whole.written())
    parts.finish(2)
    assert files(parts.out) == files(whole.out)
    times = Counter(parts.written())
    assert set(times.values()) == {1}, "nothing that was finished was made again"
    assert len(times) > 15 and set(times) <= set(whole.written())
    assert len(set(whole.written()) - set(times)) <= 4  # one that is killed may have written a part, and no line of it
    assert "nothing to do" in parts.finish(2) and Counter(parts.written()) == times
    assert sorted(path.name for path in tmp_path.glob("*parts*") if path.is_dir()) == ["parts"]
