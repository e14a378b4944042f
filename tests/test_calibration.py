"""The audit is calibrated on the default configuration: the original fails it and an independent retrain passes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlearn.lab import Lab

Metrics = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def measured(composing: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Metrics]:
    """Accuracy and loss attack of all three models, after trainings as long as the defaults'."""
    store: Path = tmp_path_factory.mktemp("store")

    def of(method: str) -> Metrics:
        words = [f"method={method}", "auditor=[accuracy,loss_attack]", "objective=forget_accuracy"]
        lab = Lab(composing(store, [*words, "train.epochs=182", "train.batch_size=256"]).settings)
        audits = ("accuracy", "loss_attack")
        roles = ("original", "retrained", "unlearned")
        return {
            role: {name: value for audit in audits for name, value in lab.audit(audit, lab.subject(role)).items()}
            for role in roles
        }

    return of


def test_the_original_has_memorised_what_it_should_forget(measured: Callable[[str], Metrics]) -> None:
    original = measured("none")["original"]
    assert original["forget_accuracy"] >= 0.99
    assert original["loss_attack_auc_low"] > 0.52


def test_the_retrained_model_knows_nothing_of_the_forget_set(measured: Callable[[str], Metrics]) -> None:
    retrained = measured("none")["retrained"]
    assert retrained["loss_attack_auc_low"] <= 0.5 <= retrained["loss_attack_auc_high"]
    assert retrained["forget_accuracy_low"] <= retrained["test_accuracy"] <= retrained["forget_accuracy_high"]


def test_doing_nothing_fails_and_retraining_passes(measured: Callable[[str], Metrics]) -> None:
    nothing, again = measured("none"), measured("retrain")
    assert nothing["unlearned"]["loss_attack_passed"] == 0
    assert again["unlearned"]["loss_attack_passed"] == 1
    assert again["unlearned"]["loss_attack_auc"] != again["retrained"]["loss_attack_auc"], "not an independent retrain"
