"""VGG16 up to its second hidden layer, the features of precision and recall (Kynkäänniemi et al. 2019, section 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diptych.networks.lpips import Vgg16

VGG_SIDE = 224
"""Pixels a side of the image that its hidden layers are made for."""
WIDTH = 4096


class Vgg16Features(nn.Module):
    """forward(images (B, 3, 224, 224), ImageNet's mean taken off and by its deviation) -> fc2 after ReLU (B, 4096)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Vgg16()
        self.fc1 = nn.Linear(512 * (VGG_SIDE // 32) ** 2, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.trunk(x)[-1], 2)  # (B, 512, 7, 7)
        return F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))
