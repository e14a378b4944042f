"""Is an image that was trained on and then unlearned told from one never trained on, by an attacker of its own?

    log N(m; mu_unlearned, sigma_unlearned) - log N(m; mu_never, sigma_never)

U-LiRA, the per-image attack on unlearning (Hayes et al., SaTML 2025, arXiv:2403.01218), on m, the logit-scaled
confidence. Shadows are models on random halves of all training and test images, in complementary pairs, that have met
the request to forget what they know of the forget set. For a forgotten image x one model of each pair has trained on x
and unlearned it (the first Gaussian), the other has never met it (the second). Each pair in turn is the target, and the
Gaussians are those of the other pairs: with the target in its own fit an exact retrain gives an AUC of .62 for 16
models a side. A spread is shrunk towards the root mean square of all images' on its side, as if `nu` more degrees of
freedom said so. The paper's game is `unlearning`; `efficacy` is the first game of RULI (Naderloui et al., USENIX
Security 2025, arXiv:2506.13009), whose second side are retrained shadows that hold the same image: unlearned or
retrained?

AUC, accuracy (called a member above 0) and true-positive rates are of all scores together, images and models. Their
intervals are for other pairs of models and other images: variances of the means of pairs and of images, added, since
the scores of one model go together, and so do those of one image; resampling pairs alone covers 0.5 in 43-78 % of
exact retrains. `ulira_vulnerable_share` is the share of images whose own accuracy's Clopper-Pearson interval lies
above 0.5; that of an exact retrain is .02-.035, since an image's decisions hang together through the fits.
`ulira_retain_auc` asks the same of retained images, members against non-members, in the first game whatever `game`
says: what unlearning has done to their exposure is seen beside the original's. The arrays kept hold every score (pairs
x images), and each image's accuracy and AUC; the latter counts only scores of one target pair against each other,
because with those of different pairs, whose fits hold each other, an exact retrain has a mean of .42-.46.

Exact retraining: who is a member of which half is a fair coin that the models' answers do not depend on. The p-value
is the share of random exchanges of the two sides, image by image (in `efficacy` shadow by shadow), whose AUC is at
least the observed one; the verdict, passed above 0.05, is therefore that of nineteen exact retrains in twenty,
whatever the number of shadows and however their answers hang together. The AUC is at 0.5 within noise. The original
fails wherever it memorised. In the `efficacy` game retrained models are compared with other retrained ones.

Known failure modes: the fits are noise with few shadows; with 6 two models stand behind each Gaussian, and fewer are
refused. Of 64 and more, and 200 forgotten images and more, one may expect something. A Gaussian is wrong for
confidences with two modes. A method whose outputs hardly vary is hard to catch. Shadows know half of the data, so they
are other models than the row's, and forget another request: the audit is one of the method, and not of one model. Of a
wholly forgotten class they have trained on the test images. The exchange test sees any dependence of the answers on
who was a member, so a method that forgets too much fails too.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from unlearn.attack_metrics import FPRS
from unlearn.metrics import Answer, Metric
from unlearn.reference_signals import References, ReferenceSignals, clipped_margin, stacked
from unlearn.settings import Count, NotNegative, SettingError
from unlearn.statistics import LEVEL, auc, auc_components, proportion, tpr_at_fpr
from unlearn.subject import Laboratory, Subject
from unlearn.thinning import evenly

Floats = NDArray[np.float64]
Sides = tuple[Floats, Floats]
"""Of the models that unlearned an image, and of those it is told from: both pairs of shadows x images."""

SOURCE = "Hayes et al., SaTML 2025, arXiv:2403.01218"
FEWEST_IMAGES = 20  # in 10 000 pairs of halves fewer than one has a half without any
METRICS = (
    Metric("ulira_auc", "U-LiRA: AUC, unlearned against never seen", "fraction", "reference", SOURCE, True),
    Metric("ulira_accuracy", "U-LiRA: accuracy", "fraction", "reference", SOURCE, True),
    *(
        Metric(f"ulira_tpr_at_fpr_{fpr}", f"U-LiRA: TPR at {100 * fpr:g} % FPR", "fraction", "reference", SOURCE, True)
        for fpr in FPRS
    ),
    Metric("ulira_vulnerable_share", "U-LiRA: images told apart", "fraction", "reference", SOURCE, True),
    Metric("ulira_retain_auc", "U-LiRA: AUC of retained images", "fraction", "reference", SOURCE, True),
    Metric("ulira_pvalue", "U-LiRA: p-value of the exchanged sides", "fraction", "reference", "this project"),
    Metric("ulira_passed", "U-LiRA: not told from never seen", "verdict", "higher", "this project"),
)


def check(lab: Any, *, references: References, **others: Any) -> None:
    """There are enough shadows for a fit, and every half holds some of the forget set."""
    if references < 4:
        allowed = "must be at least 4, because the pair that is attacked is no part of the fit"
        raise SettingError("auditor.ulira.references", references, allowed)
    if len(lab.forget) < FEWEST_IMAGES:
        allowed = f"must forget at least {FEWEST_IMAGES} images, because each shadow forgets those in its half"
        raise SettingError("auditor", "ulira", f"{allowed}, and the forget set has {len(lab.forget)}")


def ulira(
    subject: Subject,
    lab: Laboratory,
    *,
    references: References,
    game: Literal["unlearning", "efficacy"],
    nu: NotNegative,
    limit: Count,
    exchanges: Count,
) -> Answer:
    """All metrics, every score, and each image's accuracy and AUC; of the retained images at most `limit`."""
    if references < 6:
        allowed = f"needs at least 6 references, two pairs for the fit and the one attacked, and there are {references}"
        return {metric.name: allowed for metric in METRICS}
    ours = stacked(lab.shadows(subject.role, references), clipped_margin, ("forget", "retain"))
    forget = ours["forget"]
    sides = forget.inside.T, forget.outside.T
    if game == "efficacy":
        other = "independent" if subject.role == "retrained" else "retrained"
        sides = sides[0], stacked(lab.shadows(other, references), clipped_margin, ("forget",))["forget"].inside.T
    scores = left_out_scores(sides, nu)
    generator = np.random.default_rng(lab.streams.seed("ulira", "exchange"))
    swaps = (_exchange(forget, game, generator) for _ in range(exchanges))
    drawn = [_area(left_out_scores(_exchanged(sides, swap), nu)) for swap in swaps]
    pvalue = (1 + np.sum(np.array(drawn) >= _area(scores))) / (1 + exchanges)
    right = _right(scores)
    answer: dict[str, Any] = {**pooled_auc(scores, "ulira_auc"), **two_way_share(right / 2, "ulira_accuracy")}
    for fpr in FPRS:
        answer |= _true_positives(scores, fpr, f"ulira_tpr_at_fpr_{fpr}")
    answer |= proportion(vulnerable(right), "ulira_vulnerable_share")
    answer |= {"ulira_pvalue": float(pvalue), "ulira_passed": float(pvalue > 1 - LEVEL)}
    answer |= _kept("forget", scores, right)
    retain = ours["retain"][evenly(ours["retain"].values.shape[1], limit)]
    others = left_out_scores((retain.inside.T, retain.outside.T), nu)
    return answer | pooled_auc(others, "ulira_retain_auc") | _kept("retain", others, _right(others))


def left_out_scores(sides: Sides, nu: float) -> Sides:
    """Log-likelihood ratios of both sides' values, each under Gaussians fitted to the other pairs."""
    (a, spread_a), (b, spread_b) = (_gaussians_without(side, nu) for side in sides)
    scale = np.log(spread_b / spread_a)
    ratio = [scale + (((side - b) / spread_b) ** 2 - ((side - a) / spread_a) ** 2) / 2 for side in sides]
    return ratio[0], ratio[1]


def _gaussians_without(side: Floats, nu: float) -> Sides:
    """Mean and shrunken spread of each image's values in all pairs but one, for each that is left out."""
    rest = len(side) - 1
    middle = side.mean(axis=0)
    centred = side - middle
    mean = (centred.sum(axis=0) - centred) / rest
    squares = (centred**2).sum(axis=0) - centred**2
    variance = np.maximum(squares - rest * mean**2, 0) / (rest - 1)
    pooled = variance.mean(axis=1, keepdims=True)
    shrunken = ((rest - 1) * variance + nu * pooled) / (rest - 1 + nu)
    return mean + middle, np.sqrt(np.maximum(shrunken, 1e-12))  # equal answers of all models have no spread


def pooled_auc(scores: Sides, name: str) -> dict[str, float]:
    """AUC of all scores together, with the interval for other pairs and other images on the logit scale."""
    area, found, cleared = auc_components(scores[0].ravel(), scores[1].ravel())
    placements = (found + cleared).reshape(scores[0].shape)
    return _interval(area, placements, auc(scores[0][:, 0], scores[1][:, 0], "x"), name)


def two_way_share(cells: Floats, name: str) -> dict[str, float]:
    """The mean of shares, pairs x images, with the interval for other pairs and other images on the logit scale."""
    value, pairs = float(cells.mean()), len(cells)
    bounds = binomtest(round(value * pairs), pairs).proportion_ci(LEVEL, method="exact")
    return _interval(value, cells, {"x_low": float(bounds.low), "x_high": float(bounds.high)}, name)


def _interval(value: float, cells: Floats, otherwise: dict[str, float], name: str) -> dict[str, float]:
    """`otherwise` is the interval where nothing varies: that of one image, whose pairs are independent."""
    low, high = otherwise["x_low"], otherwise["x_high"]
    spread = two_way_spread(cells)
    if spread > 1e-9 and 0 < value < 1:
        centre, half = np.log(value / (1 - value)), norm.ppf((1 + LEVEL) / 2) * spread / (value * (1 - value))
        low, high = 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))
    return {name: value, f"{name}_low": float(min(low, value)), f"{name}_high": float(max(high, value))}


def two_way_spread(cells: Floats) -> float:
    """Standard error of the mean of a table: the variances of the means of its rows and of its columns, added."""
    parts = [cells.mean(axis=axis) for axis in (1, 0)]
    return float(np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts if len(part) > 1)))


def vulnerable(right: Floats) -> NDArray[np.bool_]:
    """Images whose accuracy's interval lies above 0.5, given how many of each pair's two decisions are right."""
    decisions = 2 * len(right)
    bounds = [binomtest(k, decisions).proportion_ci(LEVEL, method="exact").low for k in range(decisions + 1)]
    return np.array(bounds)[right.sum(axis=0).astype(np.int64)] > 0.5


def _true_positives(scores: Sides, fpr: float, name: str) -> dict[str, float | str]:
    found, cleared = scores[0].ravel(), scores[1].ravel()
    answer = tpr_at_fpr(found, cleared, fpr, name)
    if isinstance(answer[name], str):
        return answer
    above = np.sort(found)[::-1][: round(float(answer[name]) * len(found))]
    hits = scores[0] >= above[-1] if len(above) else np.zeros_like(scores[0])
    return dict(two_way_share(hits.astype(np.float64), name))


def _exchange(forget: ReferenceSignals, game: str, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Pairs x images: whose two sides are exchanged. In `efficacy` a shadow's images go together."""
    members = forget.members
    if game == "unlearning":
        return generator.random((len(members) // 2, members.shape[1])) < 0.5
    holder = 2 * np.arange(len(members) // 2)[:, None] + members[1::2]
    return (generator.random(len(members)) < 0.5)[holder]


def _exchanged(sides: Sides, swap: NDArray[np.bool_]) -> Sides:
    return np.where(swap, sides[1], sides[0]), np.where(swap, sides[0], sides[1])


def _area(scores: Sides) -> float:
    return auc_components(scores[0].ravel(), scores[1].ravel())[0]


def _right(scores: Sides) -> Floats:
    return np.add(scores[0] > 0, scores[1] <= 0, dtype=np.float64)


def _kept(part: str, scores: Sides, right: Floats) -> dict[str, NDArray[np.float32]]:
    found, cleared = scores
    arrays = {
        f"ulira_scores_{part}_members": found.clip(-1e30, 1e30),
        f"ulira_scores_{part}_others": cleared.clip(-1e30, 1e30),
        f"ulira_accuracy_{part}": right.mean(axis=0) / 2,
        f"ulira_auc_{part}": ((found > cleared) + (found == cleared) / 2).mean(axis=0),
    }
    return {name: its.astype(np.float32) for name, its in arrays.items()}
