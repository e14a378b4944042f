"""What a table's means hide: ROC curves, classes, single images, and AMUN's neighbours, a panel for each model.

Figures of matplotlib, drawn without a display, from what a store holds beside its rows (`unlearn.report.kept`).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import confusion_matrix, roc_curve

from unlearn.report.kept import Answers, Neighbours
from unlearn.report.plot import BLUE, GREY, drawing
from unlearn.report.rows import HEADS, Run
from unlearn.signals import Signals
from unlearn.statistics import auc_components

Floats = NDArray[np.float64]

ORIGINAL, REFERENCE = HEADS["original"], HEADS["retrained"]
SIDE = 1.9  # inches of a panel
ACROSS = 4  # panels
NUMBERED = 20  # classes up to which every cell of a picture of classes has its number


def roc_curves(answers: Mapping[str, Mapping[Run, Answers]]) -> Figure | None:
    """Forgotten images told from held-out ones by their loss, as `loss_attack` does: a panel a model, both axes log.

    Curves are means over runs at each false-positive rate; the band is what the retrained models span. None without an
    original or a reference to compare with.
    """
    if not {ORIGINAL, REFERENCE} <= answers.keys():
        return None
    losses = {line: [its.losses for its in runs.values()] for line, runs in answers.items()}
    counts = [(len(forget), len(held_out)) for runs in losses.values() for forget, held_out in runs]
    if min(map(min, counts)) == 0:
        return None
    low, left = (1 / max(sizes) for sizes in zip(*counts, strict=True))
    grid = np.geomspace(left, 1, 200)
    curves = {line: np.stack([_true_positives(*its, grid) for its in runs]) for line, runs in losses.items()}
    shown = [line for line in answers if line != REFERENCE]
    reference = curves[REFERENCE].clip(low)
    with drawing():
        figure, panels = _panels(len(shown))
        for axes, line in zip(panels, shown, strict=True):
            axes.plot([left, 1], [left, 1], color=GREY, lw=0.6, ls=":")
            axes.fill_between(grid, reference.min(0), reference.max(0), color=GREY, alpha=0.35, lw=0)
            axes.plot(grid, reference.mean(0), color="black", lw=0.9)
            axes.plot(grid, curves[line].mean(0).clip(low), color=BLUE, lw=1.3)
            axes.set(xscale="log", yscale="log", xlim=(left, 1), ylim=(low, 1))
            areas = [auc_components(-forget, -held_out)[0] for forget, held_out in losses[line]]
            runs = f", {len(areas)} runs" if len(areas) > 1 else ""
            axes.set_title(f"{line}\nAUC {np.mean(areas):.3f}{runs}", fontsize=8)
        _name_axes(figure, panels, "false-positive rate", "true-positive rate")
    return figure


def _true_positives(forget: Floats, held_out: Floats, grid: Floats) -> Floats:
    """The share of forget images that are found at each share of held-out images that are taken for such."""
    member = np.repeat([1, 0], [len(forget), len(held_out)])
    false, true, _ = roc_curve(member, -np.concatenate([forget, held_out]), drop_intermediate=False)
    # At a rate that no threshold has exactly, the best that can be had without more false positives
    found: Floats = true[np.searchsorted(false, grid * (1 + 1e-12), side="right") - 1]
    return found


def per_class(answers: Mapping[str, Mapping[Run, Answers]], part: str) -> Figure | None:
    """Accuracy by class on `forget` or `test` images, as the difference to the retrained models' mean over runs.

    None without a reference.
    """
    if REFERENCE not in answers:
        return None
    classes = np.unique(np.concatenate([getattr(its, part).labels for its in answers[REFERENCE].values()]))
    means = {line: _accuracies(runs, part, classes) for line, runs in answers.items()}
    lines = [REFERENCE, *(line for line in answers if line != REFERENCE)]
    difference = np.stack([means[line] - means[REFERENCE] for line in lines])
    largest = max(0.05, float(np.nanmax(np.abs(difference))))
    with drawing():
        width = min(10.0, 2.6 + 0.45 * len(classes))
        figure = Figure(figsize=(width, 1.1 + 0.24 * len(lines)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(difference, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
        axes.set_yticks(range(len(lines)), ["retrained", *lines[1:]], fontsize=8)
        if len(classes) <= NUMBERED:
            axes.set_xticks(range(len(classes)), [str(its) for its in classes], fontsize=8)
            for row, line in enumerate(lines):
                for column, value in enumerate(difference[row]):
                    if np.isnan(value):
                        continue
                    text = f"{means[line][column]:.2f}" if line == REFERENCE else f"{value:+.2f}"
                    dark = abs(value) > 0.6 * largest
                    colour = "white" if dark else "black"
                    axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_xlabel("class")
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="minus retrained", pad=0.01)
    return figure


def _accuracies(runs: Mapping[Run, Answers], part: str, classes: NDArray[np.int64]) -> Floats:
    """The mean over runs of each class's accuracy; nan for a class that no run has."""
    found = np.full((len(runs), len(classes)), np.nan)
    for number, its in enumerate(runs.values()):
        signals: Signals = getattr(its, part)
        correct = signals.correct
        for column, label in enumerate(classes):
            hits = correct[signals.labels == label]
            found[number, column] = hits.mean() if len(hits) else np.nan
    known = ~np.isnan(found)
    means: Floats = np.where(known, found, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
    return means


def shared_run(answers: Mapping[str, Mapping[Run, Answers]]) -> Run | None:
    """The run that most lines have, of these the first, among those of the reference; None if it has none."""
    runs = sorted(answers.get(REFERENCE, {}))
    return max(runs, key=lambda run: sum(run in its for its in answers.values())) if runs else None


def per_image(answers: Mapping[str, Mapping[Run, Answers]], run: Run) -> Figure | None:
    """Every forgotten image of one run: its margin under a model against that under the retrained one.

    The margin is log p_y - log(1 - p_y). Titles say how alike the two order the images (Spearman) and on how many they
    predict the same class. None if the reference of this run is not known.
    """
    reference = answers.get(REFERENCE, {}).get(run)
    shown = {line: runs[run] for line, runs in answers.items() if line != REFERENCE and run in runs}
    if reference is None or not shown or len(reference.forget) < 2:
        return None
    across = reference.forget.margin
    margins = {line: its.forget.margin for line, its in shown.items()}
    ends = np.quantile(np.concatenate([across, *margins.values()]), [0.001, 0.999])
    with drawing():
        figure, panels = _panels(len(shown))
        for axes, (line, its) in zip(panels, shown.items(), strict=True):
            axes.plot(ends, ends, color="black", lw=0.6, ls=":")
            axes.axhline(0, color=GREY, lw=0.5)
            axes.axvline(0, color=GREY, lw=0.5)
            look = {"s": 3, "alpha": min(0.8, 30 / len(across) ** 0.5), "color": BLUE, "lw": 0}
            axes.scatter(across.clip(*ends), margins[line].clip(*ends), rasterized=True, **look)
            rank = spearmanr(across, margins[line]).statistic
            same = (its.forget.logits.argmax(1) == reference.forget.logits.argmax(1)).mean()
            alike = "rank corr. none" if math.isnan(rank) else f"rank corr. {rank:.2f}"
            axes.set_title(f"{line}\n{alike}, same class {same:.2f}", fontsize=8)
        _name_axes(figure, panels, "margin, retrained", "margin")
    return figure


def neighbourhoods(found: Mapping[Run, Neighbours]) -> Figure | None:
    """How far AMUN's adversarial neighbours lie, a line a run, and which classes those of each class are taken for.

    None if none was found.
    """
    labels, neighbours, norms, ones = (np.concatenate(part) for part in zip(*found.values(), strict=True))
    if not ones.any():
        return None
    classes = np.unique(np.concatenate([labels, neighbours]))
    shares = confusion_matrix(labels[ones], neighbours[ones], labels=classes, normalize="true")
    with drawing():
        figure = Figure(figsize=(7.4, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        edges = np.linspace(0, float(norms[ones].max()) or 1.0, 41)
        for its in found.values():
            left.hist(its.norms[its.found], edges, histtype="step", color=BLUE, lw=0.9)
        left.set(xlabel="distance to the neighbour", ylabel="images")
        left.set_title(f"found for {ones.mean():.3f} of {len(ones)} images", fontsize=8)
        image = right.imshow(shares, cmap="Blues", vmin=0, aspect="auto")
        if len(classes) <= NUMBERED:
            for set_ticks in (right.set_xticks, right.set_yticks):
                set_ticks(range(len(classes)), [str(its) for its in classes], fontsize=8)
        right.set(xlabel="class that the neighbour is taken for", ylabel="class of the image")
        figure.colorbar(image, ax=right, label="share", pad=0.01)
    return figure


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure with as many square panels, four to a line."""
    columns = min(ACROSS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(0.5 + SIDE * columns, 0.4 + (SIDE + 0.3) * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels:
        axes.tick_params(labelsize=7)
    for axes in panels[max(0, count - columns) : count]:  # also above a place that stays empty
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def _name_axes(figure: Figure, panels: Sequence[Axes], across: str, up: str) -> None:
    figure.supxlabel(across, fontsize=9)
    figure.supylabel(up, fontsize=9)
    for axes in panels:
        axes.set_box_aspect(1)
