"""A model's outputs on a set of images, computed once, and all that membership attacks read from them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from torch import nn

from unlearn.data.images import Images, as_model_input
from unlearn.loop import device_of

Floats = NDArray[np.float64]


@torch.no_grad()
def logits(model: nn.Module, images: Images, batch_size: int = 500) -> NDArray[np.float32]:
    """N x C fp32 logits, in eval mode, without augmentation, in the order of `images`."""
    device = device_of(model)
    model.eval()
    outputs = [model(as_model_input(pixels, device)).float().cpu() for pixels in images.pixels.split(batch_size)]
    return torch.cat(outputs).numpy()


@dataclass(frozen=True)
class Signals:
    """Logits (N x C, fp32) and labels (N). Everything derived is float64."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "Signals":
        return Signals(self.logits[index], self.labels[index])

    @cached_property
    def log_probabilities(self) -> Floats:
        """N x C."""
        result: Floats = log_softmax(self.logits.astype(np.float64), axis=1)
        return result

    @property
    def probabilities(self) -> Floats:
        """N x C, rows sum to 1."""
        return np.exp(self.log_probabilities)

    @cached_property
    def loss(self) -> Floats:
        """Cross-entropy of each image, in nats."""
        return -self.log_probabilities[np.arange(len(self)), self.labels]

    @property
    def confidence(self) -> Floats:
        """Probability of the true class."""
        return np.exp(-self.loss)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the most probable class is the true one."""
        hits: NDArray[np.bool_] = self.logits.argmax(axis=1) == self.labels
        return hits

    @property
    def accuracy(self) -> float:
        """Share of correct images; nan for none."""
        return float(self.correct.mean()) if len(self) else float("nan")

    @property
    def entropy(self) -> Floats:
        """Entropy of the predicted distribution, in nats; 0 log 0 = 0."""
        return -(self.probabilities * self.log_probabilities).sum(axis=1)

    @property
    def modified_entropy(self) -> Floats:
        """-(1 - p_y) log p_y - sum over c != y of p_c log(1 - p_c).

        Song & Mittal, USENIX Security 2021, arXiv:2003.10595.
        """
        rest = _log_of_the_rest(self.log_probabilities)
        terms = -self.probabilities * rest
        rows = np.arange(len(self))
        terms[rows, self.labels] = -np.exp(rest[rows, self.labels]) * self.log_probabilities[rows, self.labels]
        return terms.sum(axis=1)

    @property
    def margin(self) -> Floats:
        """Logit-scaled confidence, log p_y - log(1 - p_y) (Carlini et al., S&P 2022, arXiv:2112.03570)."""
        others = self.logits.astype(np.float64)
        rows = np.arange(len(self))
        true = others[rows, self.labels].copy()
        others[rows, self.labels] = -np.inf
        return true - np.asarray(logsumexp(others, axis=1))


def _log_of_the_rest(log_probabilities: Floats) -> Floats:
    """log(1 - p) for every class; for the likeliest, whose p may be near 1, from the others, which keeps its digits."""
    others = log_probabilities.copy()
    likeliest = (np.arange(len(others)), others.argmax(axis=1))
    others[likeliest] = -np.inf
    rest = np.log1p(-np.exp(others))
    rest[likeliest] = np.minimum(logsumexp(others, axis=1), 0.0)
    return rest


def accuracy(model: nn.Module, images: Images) -> float:
    """Share of images classified correctly, in eval mode, without augmentation."""
    return Signals(logits(model, images), images.labels.cpu().numpy()).accuracy
