"""python scripts/tune.py [group=choice] [key=value] ... method=NAME[,NAME] [--trials N]: search a method's settings.

Words are those of `run.py`. Each method has the same number of trials, and each trial the same budget: a share of the
sample-gradients that retraining takes. A trial is judged on development forget sets alone, which are splits from 1000
on, and never on those that are reported. What is searched stands in scripts/ranges/NAME.yaml; a setting named on the
command line is left as it is. The same command continues where it stopped, and more trials may be asked for later.

The last lines are the files of a method's trials and of its preset: `run.py experiment=tuned/NAME` runs that.
"""

import argparse
import importlib.util
import json
import math
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from unlearn.configuration import composed
from unlearn.lab import GROUPS, Lab
from unlearn.loop import DivergedError
from unlearn.report.terminal import Progressing
from unlearn.session import current
from unlearn.settings import Count, SettingError, Share, check
from unlearn.statistics import auc_components
from unlearn.store import key_of, write_json
from unlearn.streams import Streams

ROOT = Path(__file__).resolve().parents[1]
RANGES = ROOT / "scripts" / "ranges"
REPORTED = 1000  # splits below it are for rows that are shown
WHOLE = ("requests", "layers", "precision")  # settings beside the groups that a preset keeps

Trial = dict[str, Any]
Objective = Literal["average_gap", "reference_free"]
Direction = Literal["minimize", "maximize"]
DIRECTIONS: dict[str, Direction] = {"average_gap": "minimize", "reference_free": "maximize"}


class OverBudgetError(RuntimeError):
    """A trial takes more sample-gradients than the budget allows."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("words", nargs="*", help="as for run.py; method=a,b searches for each")
    result.add_argument("--trials", type=int, default=20, help="of each method")
    result.add_argument("--budget", type=float, default=0.1, help="share of the sample-gradients of retraining")
    result.add_argument("--splits", default="1000,1001", help="development forget sets, 1000 or more")
    result.add_argument("--objective", default="average_gap", help="or reference_free, which needs no retrained model")
    result.add_argument("--sampler-seed", type=int, default=0, help="of the search")
    result.add_argument(
        "--name", help="of the preset, before the method's; the experiment's or the data set's if absent"
    )
    result.add_argument("--presets", type=Path, default=ROOT / "conf" / "experiment" / "tuned", metavar="FOLDER")
    return result


# What is asked for


def ranges(method: str) -> dict[str, Any]:
    """What is searched for a method: `[choices]`, or `{low, high, log}` of numbers. Raises a `SettingError`."""
    file = RANGES / f"{method}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(each.stem for each in RANGES.glob("*.yaml")))
        raise SettingError("method", method, f"has no ranges to search; there are some for {known}")
    found: Any = OmegaConf.to_container(OmegaConf.load(file))
    return dict(found)


def development(text: str) -> list[int]:
    """The splits of `--splits`. Raises a `SettingError` for those that are reported, and for none."""
    allowed = f"must be different whole numbers from {REPORTED} on; those below are for rows that are reported"
    if not all(word.isdecimal() for word in text.split(",")):
        raise SettingError("--splits", text, allowed)
    splits = [int(word) for word in text.split(",")]
    if min(splits) < REPORTED or len(set(splits)) < len(splits):
        raise SettingError("--splits", text, allowed)
    return splits


def methods_of(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The methods that words name, and all other words."""
    chosen = [word for word in words if word.startswith("method=")]
    others = [word for word in words if not word.startswith("method=")]
    names = chosen[-1].partition("=")[2].split(",") if chosen else [composed(others)[1]["method"]]
    return names, others


def labs(settings: Mapping[str, Any], splits: Sequence[int], changes: Mapping[str, Any]) -> list[Lab]:
    """A lab for each split, some of the method's settings changed."""
    method = settings["method"] | dict(changes)
    return [Lab({**settings, "method": method, "split": split}) for split in splits]


def check_forget_sets(developing: Sequence[Lab], scenario: str) -> None:
    """No development forget set is another's, nor that of split 0. Raises a `SettingError`."""
    hashes = [lab.hash(lab.forget) for lab in (*developing, *labs(developing[0].settings, [0], {}))]
    if len(set(hashes)) < len(hashes):
        allowed = "gives the same forget set for several splits, so that there is none to develop on"
        raise SettingError("scenario", scenario, allowed)


# The search


def proposed(
    trials: Sequence[Trial], space: Mapping[str, Any], direction: Direction, seed: int
) -> dict[str, Any] | None:
    """The settings of the next trial, or None when no number of epochs is left that may be within the budget.

    They depend on the arguments alone, so that a search that was stopped goes on as if it had not been. Trials without
    a value, which diverged or were over budget, count as worse than all others.
    """
    import optuna  # most of a second, and an extra

    within = affordable(space, trials)
    if within is None:
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=Streams("tune", seed).seed(len(trials)) % 2**32)
    study = optuna.create_study(direction=direction, sampler=sampler)
    laws = {key: distribution(its) for key, its in space.items()}
    for trial in trials:
        state = optuna.trial.TrialState.PRUNED if trial["value"] is None else optuna.trial.TrialState.COMPLETE
        its = {"params": trial["settings"], "distributions": laws if trial["settings"] else {}}
        study.add_trial(optuna.trial.create_trial(state=state, value=trial["value"], **its))
    return dict(study.ask({key: distribution(its) for key, its in within.items()}).params)


def distribution(its: Any) -> Any:
    """Optuna's word for a range."""
    import optuna

    if isinstance(its, list):
        return optuna.distributions.CategoricalDistribution(its)
    whole = isinstance(its["low"], int) and isinstance(its["high"], int)
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    return kind(its["low"], its["high"], log=its.get("log", False))


def affordable(space: Mapping[str, Any], trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The ranges without numbers of epochs that were over budget; None if no number is left."""
    over = [trial["settings"].get("epochs", math.inf) for trial in trials if trial["state"] == "over budget"]
    if not over or not isinstance(space.get("epochs"), Mapping):
        return dict(space)
    epochs = space["epochs"] | {"high": min(space["epochs"]["high"], min(over) - 1)}
    return dict(space) | {"epochs": epochs} if epochs["low"] <= epochs["high"] else None


def budget_of(lab: Lab, share: float) -> int:
    """The sample-gradients that a method may take: a share of what retraining takes."""
    epochs = int(lab.settings["train"]["epochs"])
    return int(share * epochs * (len(lab.data.train) - len(lab.forget)))


def tried(developing: Sequence[Lab], share: float, objective: Objective) -> Trial:
    """One trial: its state, its value on each forget set and their mean, and what it took."""
    outcome: Trial = {"state": "complete", "value": None, "values": [], "sample_gradients": []}
    for lab in developing:
        limit = budget_of(lab, share)
        lab.show = partial(stop_above, limit)
        try:
            taken = lab.subject("unlearned").cost["sample_gradients"]
            outcome["sample_gradients"].append(taken)
            if taken > limit:
                raise OverBudgetError(f"{taken} sample-gradients of {limit}")
            value = judged(lab, objective)
            if not math.isfinite(value):
                raise DivergedError(f"{objective} is {value}")
        except OverBudgetError as error:
            return outcome | {"state": "over budget", "reason": str(error)}
        except (DivergedError, SettingError) as error:
            return outcome | {"state": "failed", "reason": str(error)}
        outcome["values"].append(value)
    return outcome | {"value": math.fsum(outcome["values"]) / len(outcome["values"])}


def stop_above(limit: int, label: str, line: Mapping[str, Any], epochs: int) -> None:
    """End a method after the epoch in which it went over the limit."""
    if current().sample_gradients > limit:
        raise OverBudgetError(f"{current().sample_gradients} sample-gradients of {limit}, after epoch {line['epoch']}")


def judged(lab: Lab, objective: Objective) -> float:
    """Of average_gap less is better; it is that of the rows, test images included, on other forget sets than theirs.

    Of reference_free more is better: validation accuracy, less how far from 1/2 the AUC of the loss is, forget against
    validation images of the same classes. It looks at no test image.
    """
    subject = lab.subject("unlearned")
    if objective == "average_gap":
        return lab.measure("average_gap", subject)
    others = subject.validation[np.isin(subject.validation.labels, np.unique(subject.forget.labels))]
    if len(others) == 0:
        raise SettingError("--objective", objective, "needs validation images of the classes to forget")
    area, _, _ = auc_components(-subject.forget.loss, -others.loss)
    return subject.validation.accuracy - abs(area - 0.5)


def searched(method: str, words: Sequence[str], options: argparse.Namespace, command: str) -> list[Path]:
    """Search for one method, and write the preset of its best trial; the files of both."""
    words, splits = [*words, f"method={method}"], development(options.splits)
    fixed = {word.lstrip("+").partition("=")[0].removeprefix("method.") for word in words}
    space = {key: its for key, its in ranges(method).items() if key not in fixed}
    if not space:
        raise SettingError("words", shlex.join(words), f"leave no setting of {method} to search")
    settings, choices = composed(words)
    developing = labs(settings, splits, {})
    check_forget_sets(developing, choices["scenario"])
    first = developing[0]
    own = {key: value for key, value in first.settings["method"].items() if key not in space}
    recipe = {
        "models": first.recipe(),
        **{key: first.settings[key] for key in ("scenario", "requests", "layers", "auditor")},
        "method": own,
        "ranges": space,
        "splits": splits,
        **{key: getattr(options, key) for key in ("budget", "objective", "sampler_seed")},
    }
    file = first.store.root / "tune" / f"{method}-{key_of('tune', recipe)}.json"
    file.parent.mkdir(exist_ok=True)
    with FileLock(file.with_suffix(".lock")), shown_progress() as progress:
        for lab in developing:
            lab.show = progress
            lab.original()
            if options.objective == "average_gap":
                lab.retrained()
        trials: list[Trial] = json.loads(file.read_text())["trials"] if file.is_file() else []
        for number in range(len(trials), options.trials):
            chosen = proposed(trials, space, DIRECTIONS[options.objective], options.sampler_seed)
            outcome: Trial = {"state": "over budget", "value": None, "reason": "as it was with the fewest epochs"}
            if chosen is not None:
                outcome = tried(labs(settings, splits, chosen), options.budget, options.objective)
            trials.append({"number": number, "settings": chosen or {}} | outcome)
            write_json(file, {"recipe": recipe, "trials": trials})
            print(line_of(method, trials[-1], options), file=sys.stderr, flush=True)
    best = best_of(trials[: options.trials], options.objective)
    if best is None:
        raise SettingError("method", method, f"has no trial that ended within the budget; see {file}")
    return [file, preset(settings, choices, best, options, command)]


@contextmanager
def shown_progress() -> Iterator[Callable[..., None]]:
    """A bar, or lines, of the trainings inside the block."""
    progress = Progressing()
    try:
        yield progress
    finally:
        progress.close()


def best_of(trials: Sequence[Trial], objective: Objective) -> Trial | None:
    """The first of the best trials that have a value."""
    complete = [trial for trial in trials if trial["value"] is not None]
    sign = 1 if DIRECTIONS[objective] == "minimize" else -1
    return min(complete, key=lambda trial: sign * trial["value"], default=None)


def line_of(method: str, trial: Trial, options: argparse.Namespace) -> str:
    """One line that says how a trial ended."""
    values = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in trial["settings"].items()}
    ended = f"{trial['state']}: {trial.get('reason')}"
    end = ended if trial["value"] is None else f"{options.objective} {trial['value']:.4f}"
    return f"{method} {trial['number'] + 1}/{options.trials}: {' '.join(f'{k}={v}' for k, v in values.items())}: {end}"


# The preset


def preset(
    settings: Mapping[str, Any], choices: Mapping[str, str], best: Trial, options: argparse.Namespace, command: str
) -> Path:
    """Write the experiment that a best trial stands for: the choices, and each setting that is not their default."""
    name = options.name or (choices.get("experiment") or f"{choices['dataset']}_{choices['scenario']}").replace(
        "/", "_"
    )
    name = f"{name}_{choices['method']}"
    default, _ = composed([f"{group}={choices[group]}" for group in GROUPS])
    settings = {**settings, "method": settings["method"] | best["settings"]}
    for key in ("root", "path"):  # where files lie is a machine's own matter
        default["dataset"][key] = settings["dataset"].get(key)
    other = {group: differing(settings[group], default[group]) for group in sorted(GROUPS)}
    body = {group: keys for group, keys in other.items() if keys} | differing(
        {key: settings[key] for key in WHOLE}, default
    )
    gradients = max(best["sample_gradients"])
    text = [
        "# @package _global_",
        f"# python run.py experiment=tuned/{name}",
        f"# Found by `python scripts/tune.py {command}`:",
        f"# of {options.trials} trials on splits {options.splits} the best, with a mean {options.objective} of "
        f"{best['value']:.4f}.",
        f"# It takes {gradients} sample-gradients; {options.budget:g} of retraining's were allowed. Ranges, with their",
        f"# sources: scripts/ranges/{choices['method']}.yaml.",
        "defaults:",
        *(f"  - override /{group}: {choices[group]}" for group in sorted(GROUPS)),
        "",
    ]
    file = Path(options.presets) / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(text) + "\n" + (OmegaConf.to_yaml(OmegaConf.create(body)) if body else ""))
    return file


def differing(settings: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not the default."""
    return {key: value for key, value in settings.items() if key not in default or default[key] != value}


def main() -> None:
    """Search for each method, and print where its trials and its preset are."""
    options = parser().parse_intermixed_args()
    try:
        if importlib.util.find_spec("optuna") is None:
            raise SettingError("optuna", None, "must be installed: pip install -c constraints.txt -e '.[tune]'")
        check(Count, "--trials", options.trials)
        check(Share, "--budget", options.budget)
        check(Objective, "--objective", options.objective)
        development(options.splits)
        for word in options.words:
            if OverridesParser.create().parse_override(word).key_or_group in ("split", "sweep"):
                raise SettingError("words", word, "is not for tuning, which has --splits")
        methods, words = methods_of(options.words)
        for method in methods:
            ranges(method)
        files = [searched(method, words, options, shlex.join(sys.argv[1:])) for method in methods]
        print("\n".join(str(file) for pair in files for file in pair))
    except (SettingError, DivergedError, HydraException) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job ends as after Ctrl-C
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)
