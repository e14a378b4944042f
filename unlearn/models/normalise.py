"""The first layer of every model: pixels in [0, 1] become zero-mean, unit-spread inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlearn.settings import SettingError


class Normalise(nn.Module):
    """Subtract the mean and divide by the standard deviation of each channel: B x C x H x W to the same shape.

    A single number stands for all `channels`; any other length that is not `channels` is a `SettingError`. Both are
    buffers, so that they travel with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, numbers in (("mean", mean), ("std", std)):
            if len(numbers) not in (1, channels):
                allowed = f"must be one number, or one for each of the {channels} channels"
                raise SettingError(f"dataset.{name}", list(numbers), allowed)
            values = torch.tensor(numbers, dtype=torch.float32).expand(channels).contiguous()
            self.register_buffer(name, values.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise B x C x H x W pixels in [0, 1]."""
        return (x - self.mean) / self.std
