"""Train a diffusion model and sample from it: points on a spiral, under a minute on a CPU.

Run it with `python examples/train_and_sample.py`. It writes spiral.png, the data on the left and samples on the right.
"""

import math

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.diffusion.denoiser import Denoiser
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import FlowSchedule
from diptych.diffusion.times import timesteps
from diptych.networks.layers import timestep_embedding


def spiral(count: int) -> Tensor:
    """The data: points (B, 2) along a spiral, with a little noise."""
    angle = 4 * math.pi * torch.rand(count, 1).sqrt()
    return 0.15 * angle * torch.cat([angle.cos(), angle.sin()], 1) + 0.03 * torch.randn(count, 2)


class Network(nn.Sequential):
    """(x_t (B, 2), time (B,)) -> prediction (B, 2). For images, a `UNet` takes its place."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(torch.cat([x, timestep_embedding(time, 32)], 1))


def plot(points: Tensor, side: int = 256) -> Tensor:
    """A white image (H, W) with a black pixel at each point."""
    x, y = (side * (points / 5 + 0.5)).long().clamp(0, side - 1).unbind(1)
    return torch.full((side, side), 255, dtype=torch.uint8).index_put((y, x), torch.zeros((), dtype=torch.uint8))


def main(steps: int = 3000, out: str = "spiral.png") -> Tensor:
    torch.manual_seed(0)
    hidden = [nn.Linear(2 + 32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
    network, schedule = Network(*hidden, nn.Linear(128, 2)), FlowSchedule()  # x_t = (1 - t) x_0 + t eps
    denoiser = Denoiser(network, schedule, prediction="flow")  # (x_t, t) -> x_0
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(steps):
        x0 = spiral(512)
        loss = denoiser.loss(x0, noise=torch.randn_like(x0), t=torch.rand(512)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 0:
            print(f"step {step:5}   loss {loss.item():.3f}")
    with torch.no_grad():
        samples = SAMPLERS["heun"](denoiser, torch.randn(2000, 2), timesteps(schedule, steps=30), schedule)
    Image.fromarray(torch.cat([plot(spiral(2000)), plot(samples)], 1).numpy()).save(out)
    print(f"{out}: data on the left, samples on the right")
    return samples


if __name__ == "__main__":
    main()
