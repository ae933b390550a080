"""How often the 95 % intervals of human studies cover the truth, by number of prompts:
`python -m benchmarks.study_intervals`.

Each prompt has a share of its own, uniform from 0 to 1, whose mean over prompts is 0.5; each rating of it is 1 with
that share. A study covers where 0.5 lies in the interval of `mean_interval`, which resamples prompts. It should in 95 %
of studies. A percentile bootstrap of n prompts is too narrow by about sqrt((n - 1) / n), and by what a t distribution
is wider than a normal one (Efron & Tibshirani 1993, section 13.3); both matter where prompts are few.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from diptych.evaluation.human.preference import mean_interval

PROMPTS = (2, 3, 5, 10, 20, 50, 200)


def coverage(prompts: int, raters: int, studies: int, resamples: int, seed: int = 0) -> float:
    """The share of simulated studies whose interval covers the truth."""
    draw = np.random.Generator(np.random.PCG64([seed, prompts]))
    names = [str(number) for number in range(prompts) for _ in range(raters)]
    covered = 0
    for study in range(studies):
        shares = np.repeat(draw.random(prompts), raters)
        values = (draw.random(len(names)) < shares).astype(float)
        found = mean_interval(names, values.tolist(), resamples, seed=study)
        covered += found["low"] <= 0.5 <= found["high"]
    return covered / studies


def main() -> None:
    parser = argparse.ArgumentParser(description="coverage of study intervals")
    parser.add_argument("--studies", type=int, default=1000, help="simulated for each number of prompts")
    parser.add_argument("--raters", type=int, default=5, help="ratings of each prompt")
    parser.add_argument("--resamples", type=int, default=1000, help="of each interval")
    arguments = parser.parse_args()
    print(f"{arguments.studies} studies each, {arguments.raters} ratings a prompt, {arguments.resamples} resamples")
    print("| prompts | coverage, % | standard error |")
    print("|--------:|------------:|---------------:|")
    for prompts in PROMPTS:
        share = coverage(prompts, arguments.raters, arguments.studies, arguments.resamples)
        error = math.sqrt(share * (1 - share) / arguments.studies)
        print(f"| {prompts} | {100 * share:.1f} | {100 * error:.1f} |", flush=True)


if __name__ == "__main__":
    main()
