"""UNSIR: impair the model with noise that it takes for anything but the forgotten class, then repair it on what stays.

    x~ = argmin -CE(x~, c) + penalty |x~|^2;  minimise CE(x~, c) + CE(some of R), then CE(some of R)

Tarun, Chundawat, Mandal & Kankanhalli, "Fast yet effective machine unlearning" (IEEE TNNLS, 2023, arXiv:2111.08947);
code vikram2000b/Fast-Machine-Unlearning. For each class in the forget set a batch of noise images is optimised, from
standard normal pixels, to minimise -cross-entropy under that class + `penalty` * the mean of |image|^2, summed over
pixels, of the original as it stands. An epoch on `copies` of every noise image under that label, mixed with a few
retained images of each class, impairs; one on these retained images alone repairs. The forgotten images are never
shown, only their labels count.

It is meant for whole classes. A random forget set is taken by the classes that occur in it: these are impaired in
full, and repaired by their retained images.

Noise lives behind the model's normalisation, as in the released code: it is normal in units of that, and not confined
to [0, 1]. It is made again, bit for bit, when an interrupted run goes on.

Deviations from the released code:
- Every noise image is used. There a loop runs over the colour channels of the first image instead of the batch, so that
  as many images as there are channels enter, 60 noise images with their copies instead of 5,120: `compat: released`.
- Noise has its class's label; there all of it is labelled 0, the first of the two classes that are forgotten.
- Noise is optimised with the model in eval mode; there batch norm takes its statistics from the noise, and keeps them.
- Retained images are drawn at random, the first of each class there, and augmented as their data set asks.
"""

from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from unlearn.attacks import evaluating
from unlearn.batches import Batch, shuffled
from unlearn.data.images import Images
from unlearn.loop import Optimiser, cross_entropy, device_of, fit
from unlearn.methods.amun import mixed
from unlearn.models.normalise import Normalise
from unlearn.request import Request
from unlearn.session import current
from unlearn.settings import Count, NotNegative, Positive, Probability
from unlearn.streams import Streams

NEEDS = frozenset({"retain", "forget"})


def unsir(
    model: nn.Module,
    request: Request,
    streams: Streams,
    *,
    noise_images: Count,
    noise_steps: Count,
    noise_lr: Positive,
    penalty: NotNegative,
    copies: Count,
    retained_per_class: Count,
    epochs: Count,
    repair_epochs: Count,
    batch_size: Count,
    optimiser: Optimiser,
    lr: NotNegative,
    repair_lr_factor: NotNegative,
    momentum: Probability,
    weight_decay: NotNegative,
    compat: Literal["released"] | None,
) -> nn.Module:
    """Descend on cross-entropy, on noise and a few retained images, then on these retained images alone."""
    shape = request.forget.pixels.permute(0, 3, 1, 2).shape[1:]
    used = shape[0] if compat == "released" else noise_images
    noises, classes = [], request.forget.labels.unique().tolist()
    for label in classes:
        start = torch.randn(noise_images, *shape, generator=streams("noise", label))
        noise = hardest(model, start.to(device_of(model)), label, steps=noise_steps, lr=noise_lr, penalty=penalty)
        noises.append(noise[:used])
    images, counts = torch.cat(noises), [len(noise) for noise in noises]
    labels = torch.tensor(classes).repeat_interleave(torch.tensor(counts)).to(images.device)
    visits = torch.cat([part.repeat(copies) for part in torch.arange(len(images)).split(counts)])

    few = some_of_each_class(request.retain, retained_per_class, streams)
    impairing = mixed(few, Batch(images, labels), batch_size, streams.child("impair"), visits=visits)
    below = streams.child("repair")
    repairing = shuffled(few, batch_size, below)
    learn = partial(fit, model, loss=cross_entropy, optimiser=optimiser, momentum=momentum, weight_decay=weight_decay)
    learn(impairing, streams=streams, epochs=epochs, lr=lr)
    return learn(repairing, streams=below, epochs=repair_epochs, lr=repair_lr_factor * lr)


def hardest(model: nn.Module, start: Tensor, label: int, *, steps: int, lr: float, penalty: float) -> Tensor:
    """Noise, B x C x H x W, that is optimised by Adam to be no image of class `label` to the model, and short.

    `start` is in units of the model's normalisation; what is returned is what the model takes. The session counts one
    gradient an image and step.
    """
    noise = start.clone().requires_grad_()
    labels = torch.full((len(noise),), label, device=noise.device)
    optimiser = torch.optim.Adam([noise], lr=lr)
    with evaluating(model):
        for _ in range(steps):
            loss = -nn.functional.cross_entropy(model(as_pixels(model, noise)), labels)
            loss = loss + penalty * noise.square().sum(dim=(1, 2, 3)).mean()
            (noise.grad,) = torch.autograd.grad(loss, noise)
            optimiser.step()
            current().sample_gradients += len(noise)
    return as_pixels(model, noise.detach())


def as_pixels(model: nn.Module, normalised: Tensor) -> Tensor:
    """What the model's first layer normalises to `normalised`."""
    first = cast(Normalise, next(model.children()))
    return normalised * first.std + first.mean


def some_of_each_class(images: Images, count: int, streams: Streams) -> Images:
    """At most `count` random images of each class, in a random order."""
    images = images[torch.randperm(len(images), generator=streams("retained"))]
    labels = images.labels.cpu()
    chosen = [(labels == label).nonzero().flatten()[:count] for label in labels.unique()]
    return images[torch.cat(chosen)]
