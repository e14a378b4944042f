"""Adversarial images within a ball of fixed size, as torchattacks makes them, with random numbers that have names.

torchattacks (Kim 2020, arXiv:2010.01950) moves global generators, accumulates gradients in parameters and puts modules
back into one mode, so each batch has a stream of its own and `model` should be `teachers.frozen`, which nothing harms.
Three things differ from calling it plainly:
- FGSM and PGD follow cross-entropy's direction also where it vanishes. Its gradient loses the true class's part where p
  rounds to 1, on the very images that a model knows by heart, and they would pass for robust.
- AutoAttack takes 100 iterations, and at most 9 target classes, as in Croce & Hein (ICML 2020, arXiv:2003.01690);
  torchattacks' own takes 10 (issue #196 there) and all classes.
- It has a seed; torchattacks' own takes the time of day.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unlearn.batches import Batch
from unlearn.data.images import Images, as_model_input
from unlearn.loop import device_of
from unlearn.settings import SettingError
from unlearn.streams import Streams

Attack = Literal["fgsm_linf", "pgd_10_linf", "pgd_20_linf", "pgd_20_l2", "autoattack_linf"]

ITERATIONS, TARGETS, QUERIES = 100, 9, 5000  # of AutoAttack's four, in the version called standard
LEAD = 20.0  # 1 - p = 2e-9: small enough to be rare, large enough to lose no digit in float64


def check_installed(key: str, attacks: list[Attack]) -> None:
    """Refuse attacks without torchattacks, which is no plain dependency: it pins an old requests."""
    if attacks and find_spec("torchattacks") is None:
        raise SettingError(key, attacks, "needs torchattacks: pip install 'unlearn[robustness]'")


def attacked(
    model: nn.Module, images: Images, attack: Attack, eps: float, class_count: int, streams: Streams, batch_size: int
) -> Iterator[Batch]:
    """The images at most `eps` away, in the attack's norm and in [0, 1], by which it would have `model` err.

    Random starts depend on `streams` and the shape of the images alone, so that two models are attacked from the same.
    """
    device = device_of(model)
    parts = zip(images.pixels.split(batch_size), images.labels.split(batch_size), strict=True)
    for number, (pixels, labels) in enumerate(parts):
        with streams.seeded("attack", number), torch.enable_grad():
            made = _torchattack(model, attack, eps, class_count, streams.seed("attack", number) % 2**31)
            yet = Batch(as_model_input(pixels, device).contiguous(), labels.to(device))
            adversarial = made(*yet).detach()
        yield Batch(adversarial, yet.labels)


def _torchattack(model: nn.Module, attack: Attack, eps: float, class_count: int, seed: int) -> Any:
    import torchattacks  # only here: see `check_installed`

    match attack:
        case "fgsm_linf":
            return torchattacks.FGSM(_Unsaturated(model), eps)
        case "pgd_10_linf":
            return torchattacks.PGD(_Unsaturated(model), eps, eps / 4, 10)
        case "pgd_20_linf":
            return torchattacks.PGD(_Unsaturated(model), eps, eps / 4, 20)
        case "pgd_20_l2":
            return torchattacks.PGDL2(_Unsaturated(model), eps, eps / 4, 20)
        case "autoattack_linf":
            every = {"norm": "Linf", "eps": eps, "seed": seed, "n_restarts": 1}
            targeted = {"steps": ITERATIONS, "n_classes": min(TARGETS + 1, class_count)}
            members = [
                torchattacks.APGD(model, **every, steps=ITERATIONS, loss="ce"),
                torchattacks.APGDT(model, **every, **targeted),
                torchattacks.FAB(model, **every, **targeted, multi_targeted=True),
                torchattacks.Square(model, **every, n_queries=QUERIES),
            ]
            return torchattacks.MultiAttack(members)


class _Unsaturated(nn.Module):
    """The same model in float64, the first class's lead over the log sum exp of the others cut to `LEAD`.

    For an image that the model has right this scales the gradient of cross-entropy, by whose direction alone the
    attacks go, and changes nothing else.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()  # a new module is in training mode, and torchattacks would leave `model` in it

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images).double()
        first = nn.functional.one_hot(scores.argmax(1), scores.shape[1]).bool()
        lead = scores.masked_fill(~first, 0).sum(1) - scores.masked_fill(first, -torch.inf).logsumexp(1)
        return scores - first * (lead - LEAD).clamp(min=0).detach()[:, None]
