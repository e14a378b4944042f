"""What making the model took: seconds, sample-gradients, peak memory, and the seconds as a share of retraining's.

Seconds are wall-clock of the training or the method alone, after a warm-up step, without the making of batches and
without audits; sample-gradients (images through forward and backward) do not depend on the machine.

Exact retraining: a time ratio of one, for the reference by definition and for another retrain but for the machine's
moods. A method is worth its while only well below.

Known failure modes: seconds of two machines, or of one that does other work besides, cannot be compared;
sample-gradients can, but do not see work without gradients, such as passes that only collect statistics. Choosing a
method's settings costs more than running it once, and is not counted.
"""

from unlearn.metrics import Answer, Metric
from unlearn.subject import Laboratory, Subject

SOURCE = "Xu et al., run-time efficiency, as in Jia et al., arXiv:2304.04934"
METRICS = (
    Metric("seconds", "Seconds", "seconds", "lower", SOURCE),
    Metric("sample_gradients", "Images through forward and backward", "count", "lower", SOURCE),
    Metric("peak_memory_bytes", "Peak memory", "bytes", "lower", SOURCE),
    Metric("time_ratio", "Seconds as a share of retraining's", "fraction", "lower", SOURCE),
)


def cost(subject: Subject, lab: Laboratory) -> Answer:
    """The cost written down when the subject was made."""
    if not subject.cost:
        return {metric.name: "is not known of a model that was made elsewhere" for metric in METRICS}
    measured: dict[str, float] = {name: value for name, value in subject.cost.items() if value is not None}
    measured["time_ratio"] = subject.cost["seconds"] / lab.reference().cost["seconds"]
    return measured
