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


class Network(nn.Module):
    """(x_t (B, 2), time (B,)) -> prediction (B, 2). For images, a `UNet` takes its place."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        hidden = [nn.Linear(2 + 32, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*hidden, nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.layers(torch.cat([x, timestep_embedding(time, 32)], 1))


def train(denoiser: Denoiser, network: nn.Module, steps: int, batch: int = 512) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, total_iters=steps)
    for step in range(steps):
        x0 = spiral(batch)
        loss = denoiser.loss(x0, noise=torch.randn_like(x0), t=torch.rand(batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if step % 500 == 0:
            print(f"step {step:5}   loss {loss.item():.3f}")


def main(steps: int = 3000, out: str = "spiral.png") -> Tensor:
    torch.manual_seed(0)
    schedule, network = FlowSchedule(), Network()  # x_t = (1 - t) x_0 + t eps
    denoiser = Denoiser(network, schedule, prediction="flow")  # (x_t, t) -> x_0
    train(denoiser, network, steps)
    with torch.no_grad():
        samples = SAMPLERS["heun"](denoiser, torch.randn(2000, 2), timesteps(schedule, steps=30), schedule)
    Image.fromarray(torch.cat([plot(spiral(2000)), plot(samples)], 1).numpy()).save(out)
    return samples


def plot(points: Tensor, side: int = 256) -> Tensor:
    """A white image (H, W) with a black pixel at each point."""
    x, y = (side * (points / 5 + 0.5)).long().clamp(0, side - 1).unbind(1)
    return torch.full((side, side), 255, dtype=torch.uint8).index_put((y, x), torch.zeros((), dtype=torch.uint8))


if __name__ == "__main__":
    main()
