"""One number for everything: the composite scores of other tools, kept for comparison with them.

They add up what should be read apart; none of them is what we recommend. With A the accuracy on test (t) or forgotten
(f) images, of the model, of the original (o) or of the retrained model (*):

    AUS, class removal    (1 - (A_t(o) - A_t)) / (1 + A_f)
    AUS, random removal   (1 - (A_t(o) - A_t)) / (1 + |A_f - A_t|)
    NoMUS                 w A_t + (1 - w) (1 - 2 |MIA - 1/2|)
    MU-Bench              harmonic mean of 1 - |A_t - A_t(o)| and 1 - |A_f - 1 / classes|
    retention             A / A(*)
    SAPE                  |A - A(*)| / (A + A(*)), there in percent
    indiscernibility      1 - |MIA - 1/2| / (1/2)

AUS is DUCK's (Cotogni et al., 2023, arXiv:2312.02052); in class removal, as in its released code, both accuracies are
of test images, A_t of the other classes and A_f of those forgotten. NoMUS is MUFAC's (Choi & Na, 2023,
arXiv:2311.02240), the harmonic mean MU-Bench's (Cheng & Amiri, 2024, arXiv:2406.14796), the last three are Deep
Unlearn's (Cadet et al., 2024, arXiv:2410.01276). MIA is the accuracy of an attack on the loss.

Deviations: as attack we take `metrics`, by default `loss_attack_accuracy`; theirs are attacks of this kind with test
shares and data of their own. The form of AUS is that of the forget set: class removal if it is made of wholly forgotten
classes. WCPS, a fourth tool's score, is left out: its grids and cases differ between releases.

Exact retraining: retention 1 and SAPE 0 for the reference. The others have no fixed value: AUS is below 1 by what
accuracy the removal costs, NoMUS near (1 + A_t) / 2 on a random forget set, and MU-Bench's score is low, because a
retrained model is right on most of a random forget set.

Known failure modes: MU-Bench's score is best for a model that guesses on the forget set, which is over-forgetting. A
model that does nothing has an AUS near 1 on a random forget set. No intervals: none of these tools gives them, and the
parts have theirs under `accuracy` and `loss_attack`.
"""

from typing import Annotated

import numpy as np
from annotated_types import Len

from unlearn.metrics import Answer, Metric
from unlearn.settings import Probability, SettingError
from unlearn.subject import Laboratory, Subject

DUCK = "Cotogni et al., 2023, arXiv:2312.02052"
MU_BENCH = "Cheng & Amiri, 2024, arXiv:2406.14796"
DEEP_UNLEARN = "Cadet et al., 2024, arXiv:2410.01276"
ACCURACIES = ("retain", "test", "forget")
METRICS = (
    Metric("composite_nomus", "NoMUS (other tools)", "fraction", "higher", "Choi & Na, 2023, arXiv:2311.02240"),
    Metric("composite_mu_bench", "MU-Bench (other tools)", "fraction", "higher", MU_BENCH),
    Metric("composite_aus_class", "AUS, class removal (other tools)", "number", "higher", DUCK),
    Metric("composite_aus_random", "AUS, random removal (other tools)", "number", "higher", DUCK),
    *(Metric(f"composite_retention_{its}", f"Retention, {its} (other tools)", "number", "reference", DEEP_UNLEARN)
      for its in ACCURACIES),
    *(Metric(f"composite_sape_{its}", f"SAPE, {its} (other tools)", "fraction", "lower", DEEP_UNLEARN)
      for its in ACCURACIES),
    Metric("composite_indiscernibility", "Indiscernibility (other tools)", "fraction", "higher", DEEP_UNLEARN),
)  # fmt: skip


def composite(
    subject: Subject, lab: Laboratory, *, metrics: Annotated[list[str], Len(1, 1)], weight: Probability
) -> Answer:
    """Every score; one whose parts are not known is refused in words."""
    answer: dict[str, float | str] = {}
    for part in ACCURACIES:
        own, reference = (getattr(its, part).accuracy for its in (subject, lab.reference()))
        ratio = own / reference if reference > 0 else "the retrained model is right on none of the images"
        answer[f"composite_retention_{part}"] = ratio
        answer[f"composite_sape_{part}"] = abs(own - reference) / max(own + reference, np.finfo(float).tiny)
    return answer | _of_the_attack(subject, lab, metrics[0], weight) | _of_the_original(subject, lab)


def _of_the_attack(subject: Subject, lab: Laboratory, metric: str, weight: float) -> dict[str, float | str]:
    try:
        attack = lab.measure(metric, subject)
    except SettingError as error:
        return dict.fromkeys(("composite_nomus", "composite_indiscernibility"), str(error))
    hidden = 1 - 2 * abs(attack - 0.5)
    nomus = weight * subject.test.accuracy + (1 - weight) * hidden
    return {"composite_nomus": nomus, "composite_indiscernibility": hidden}


def _of_the_original(subject: Subject, lab: Laboratory) -> dict[str, float | str]:
    by_class = bool(np.isin(subject.forget.labels, subject.forgotten_classes).all())
    name = f"composite_aus_{'class' if by_class else 'random'}"
    try:
        before = lab.subject("original").test
    except SettingError as error:
        return dict.fromkeys((name, "composite_mu_bench"), str(error))
    kept = 1 - abs(subject.test.accuracy - before.accuracy)
    guessed = 1 - abs(subject.forget.accuracy - 1 / subject.forget.logits.shape[1])
    answer: dict[str, float | str] = {"composite_mu_bench": 2 * kept * guessed / max(kept + guessed, 1e-300)}
    gone = np.isin(subject.test.labels, subject.forgotten_classes)
    forgotten = subject.test[gone].accuracy if by_class else abs(subject.forget.accuracy - subject.test.accuracy)
    rest = subject.test[~gone] if by_class else subject.test
    lost = (before[~gone] if by_class else before).accuracy - rest.accuracy
    if not np.isfinite(forgotten + lost):
        return answer | {name: "needs test images of the forgotten classes and of others"}
    return answer | {name: (1 - lost) / (1 + forgotten)}
