"""python scripts/audit.py --logits FILE [--retrained FILE] [auditor=[...]] ...: audit a model trained elsewhere.

A file is a NumPy .npz of a model's answers: arrays `forget_logits` (N x C) and `forget_labels` (N), likewise `retain`,
`test` and, if there is one, `validation`; a reference model's has also `forget_members` and so on, which of the images
it was trained on. Words choose the auditors and change their settings, as for run.py: `auditor=[accuracy,rmia]`,
`auditor.rmia.references=8`. Nothing is trained, no GPU is needed, and an audit that asks for models which were not
given says so in one line. Prints the table; `--out` writes the numbers as JSON.
"""

import argparse
import json
import sys
from pathlib import Path

from unlearn.checks import check_auditors
from unlearn.configuration import composed
from unlearn.foreign import OPTIONS, Foreign
from unlearn.lab import ROLES
from unlearn.report.terminal import show_metrics
from unlearn.settings import SettingError, build
from unlearn.store import write_json

DEFAULT = "auditor=[accuracy,loss_attack,mia_svc,gap]"
SEVERAL = {"references", "shadows", "oracles", "repeats"}
HELP = {
    "unlearned": "the model to audit",
    "retrained": "retrained without the forget set",
    "original": "before unlearning",
    "independent": "retrained once more",
    "references": "trained on random halves",
    "shadows": "references that have unlearned",
    "oracles": "retrained, many times",
    "repeats": "unlearned, many times",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("words", nargs="*", help=f"of run.py, about auditors; {DEFAULT} by default")
    for kind, option in OPTIONS.items():
        count = "+" if kind in SEVERAL else 1
        result.add_argument(
            option, dest=kind, nargs=count, type=Path, default=[], metavar="FILE", help=HELP[kind],
            required=kind == "unlearned",
        )  # fmt: skip
    result.add_argument("--seed", type=int, default=0, help="of the audits' random choices")
    result.add_argument("--out", type=Path, metavar="FILE", help="where to write the numbers, as JSON")
    return result


def main() -> None:
    """Read, audit, print."""
    options = parser().parse_intermixed_args()
    try:
        for word in options.words:
            if not word.startswith("auditor"):
                raise SettingError("words", word, "must be about auditors: auditor=[...] or auditor.NAME.KEY=VALUE")
        if options.out and not options.out.parent.is_dir():
            raise SettingError("--out", options.out, "must be a file in a folder that exists")
        settings, _ = composed([DEFAULT, *options.words])
        auditors = {name: build(its, f"auditor.{name}") for name, its in settings.get("auditor", {}).items()}
        lab = Foreign({kind: getattr(options, kind) for kind in OPTIONS}, auditors, options.seed)
        check_auditors(lab)
        roles = [role for role in ("original", "independent", *ROLES[1:]) if getattr(options, role)]
        metrics: dict[str, dict[str, float]] = {role: {} for role in roles}
        for role in roles:
            for name in auditors:
                try:
                    metrics[role] |= lab.audit(name, lab.subject(role))
                except SettingError as error:
                    if role == "unlearned":
                        raise
                    print(f"{name} says nothing of the {role} model: {error}", file=sys.stderr)
    except SettingError as error:
        sys.exit(f"error: {error}")
    if options.out:
        write_json(options.out, json.loads(json.dumps({"metrics": metrics, "refused": lab.refusals})))
    show_metrics(str(options.unlearned[0]), metrics, lab.metrics, {"": lab.refusals})


if __name__ == "__main__":
    main()
