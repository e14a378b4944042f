"""python scripts/memorisation.py [group=choice] [key=value] ... --out FILE.npy: how much each image is memorised.

Words are those of `run.py`. `--references N` trains N models on random halves of all training and test images, or
finds them in the store, and writes Feldman's scores; `--proxy NAME` writes what the original alone says. The file has a
number for each image of the official training set, nan for those of the validation part. Larger is more memorised.
`run.py scenario=memorised scenario.scores=FILE.npy` forgets such images, and `method=rum method.scores=FILE.npy` parts
a forget set by them.
"""

import argparse
import signal
import sys
from pathlib import Path

import numpy as np

from unlearn.configuration import composed
from unlearn.lab import Lab
from unlearn.loop import DivergedError
from unlearn.memorisation import PROXIES, contrasts, correctness
from unlearn.reference_signals import References
from unlearn.report.terminal import Progressing
from unlearn.settings import SettingError, check
from unlearn.signals import Floats


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("words", nargs="*", help="as for run.py")
    result.add_argument("--out", type=Path, required=True, help="the file, .npy")
    source = result.add_mutually_exclusive_group(required=True)
    source.add_argument("--references", type=int, help="Feldman's scores, from so many models, an even number")
    source.add_argument("--proxy", choices=sorted(PROXIES), help="what the original says in the place of a score")
    return result


def by_references(lab: Lab, count: int) -> Floats:
    """Feldman's score of each training image."""
    scores = np.empty(len(lab.data.train))
    found = contrasts(lab.references(count), correctness, ("forget", "retain"))
    positions = {"forget": lab.forget.numpy()}
    positions["retain"] = np.setdiff1d(np.arange(len(scores)), positions["forget"])
    for part, of_pairs in found.items():
        scores[positions[part]] = of_pairs.mean(axis=0)
    return scores


def official(lab: Lab, scores: Floats) -> Floats:
    """Scores of training images in the official order, nan for those that are not trained on."""
    result = np.full(lab.data.official_count, np.nan)
    result[lab.data.train_index.numpy()] = scores
    return result


def main() -> None:
    """Write the file and print its name."""
    options = parser().parse_intermixed_args()
    progress = Progressing()
    try:
        if options.out.suffix != ".npy" or not options.out.parent.is_dir():
            raise SettingError("--out", options.out, "must be an .npy file in a folder that exists")
        if options.references is not None:
            check(References, "--references", options.references)
        lab = Lab(composed(options.words)[0], progress)
        if options.references is not None:
            scores = by_references(lab, options.references)
        else:
            scores = PROXIES[options.proxy](lab.signals(lab.original())["train"])
        np.save(options.out, official(lab, scores))
    except (SettingError, DivergedError) as error:
        progress.close()
        sys.exit(f"error: {error}")
    progress.close()
    print(options.out)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job ends as after Ctrl-C
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)
