"""Is the model as good as a retrained one? Equivalence within a stated margin, which "no difference found" is not.

Two one-sided tests (Schuirmann, J. Pharmacokinet. Biopharm. 1987) of each difference to the retrained model: of the
accuracies on the forget set, the retained images and the test set, image by image, and of the AUC of the loss attack.
An accuracy's difference is that of Agresti & Min (Statistics in Medicine 2005), half an image added on either side, so
that agreement on a few images proves nothing. The p-values are adjusted for their number (Holm, Scand. J. Statist.
1979), and the verdict asks all of them to be at most 0.05. Where so few images could not show it even of two equal
models, the answer is refused, because the verdict would be about their number.

Exact retraining: passes when `margin` is wider than what two trainings differ by. Nothing makes it so: where the
independent retrain of `self_check` fails, the margin is too narrow for this data set and model.

Known failure modes: the images are the sample, and the two models are given: what another seed would have brought is
not in it. A population measure, as the loss attack: equal averages may hide differences image by image.
"""

from scipy.stats import norm

from unlearn.metrics import Answer, Metric
from unlearn.settings import Share
from unlearn.statistics import LEVEL, auc_difference, equivalence_pvalue, holm, paired_shares
from unlearn.subject import Laboratory, Subject

SOURCE = "Schuirmann, J. Pharmacokinet. Biopharm. 1987"
PARTS = ("forget", "retain", "test")
METRICS = (
    *(
        Metric(
            f"equivalence_{part}_accuracy_pvalue", f"Not equivalent in {part} accuracy: p", "fraction", "lower", SOURCE
        )
        for part in PARTS
    ),
    Metric("equivalence_loss_auc_pvalue", "Not equivalent in the loss attack's AUC: p", "fraction", "lower", SOURCE),
    Metric(
        "equivalence_passed",
        "Equivalent to retrained within the margin",
        "verdict",
        "higher",
        SOURCE,
        of_forgetting=False,  # of few images it cannot be shown of a retrain either
    ),
)
LARGEST = 1 - LEVEL


def equivalence(subject: Subject, lab: Laboratory, *, margin: Share) -> Answer:
    """Holm-adjusted p-values of the four differences, and the verdict."""
    reference = lab.reference()
    found = {
        f"equivalence_{part}_accuracy_pvalue": paired_shares(
            getattr(subject, part).correct, getattr(reference, part).correct
        )
        for part in PARTS
    }
    if len(subject.held_out):
        scores = [(-its.forget.loss, -its.held_out.loss) for its in (subject, reference)]
        area = auc_difference(scores[0], scores[1], "area")
        error = (area["area_high"] - area["area_low"]) / 2 / float(norm.ppf((1 + LEVEL) / 2))
        found["equivalence_loss_auc_pvalue"] = area["area"], error
    strictest = LARGEST / len(found)  # Holm's first step
    weak = {
        name: f"so few images cannot show a difference under {margin:g}: its standard error is {error:.3f}"
        for name, (_, error) in found.items()
        if equivalence_pvalue(0.0, error, margin) > strictest
    }
    if weak:
        return {**weak, "equivalence_passed": next(iter(weak.values()))}
    adjusted = holm({name: equivalence_pvalue(*its, margin) for name, its in found.items()})
    return {**adjusted, "equivalence_passed": float(max(adjusted.values()) <= LARGEST)}
