"""A foreign checkpoint in the place of the unlearned model: what fits, what is refused, what identifies it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from laws import changed, state_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearn.lab import Lab
from unlearn.row import identity
from unlearn.settings import SettingError
from unlearn.streams import Streams

CHOICES = dict.fromkeys(("dataset", "model", "train", "scenario", "method"), "")
WORDS = ("method=imported", "train.epochs=1", "auditor=[accuracy]", "objective=test_accuracy")


@pytest.fixture
def state(lab: Callable[..., Lab]) -> dict[str, Tensor]:
    """Weights as we store them, drawn and not trained, under a normalisation that is not the data set's."""
    found = lab().training.initialised(Streams("foreign")).state_dict()
    return found | {"0.mean": found["0.mean"] + 0.1}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str, dict[str, Tensor]], str]:
    def write(name: str, tensors: dict[str, Tensor]) -> str:
        save_file(tensors, tmp_path / name)
        return str(tmp_path / name)

    return write


def alone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of the network without the normalisation before it."""
    return {name.removeprefix("1."): value for name, value in state.items() if name.startswith("1.")}


def refusal(lab: Callable[..., Lab], tmp_path: Path, *words: str) -> SettingError:
    with pytest.raises(SettingError) as raised:
        lab(*WORDS, *words)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "store" / "originals").exists()
    return raised.value


def test_a_file_as_we_store_ours_is_the_model(
    lab: Callable[..., Lab], state: dict[str, Tensor], saved: Callable[..., str]
) -> None:
    here = lab(*WORDS, f"method.weights={saved('whole.safetensors', state)}")
    stored = load_file(here.unlearned().folder / "model.safetensors")
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], value) for name, value in state.items())
    assert here.unlearned().json("cost.json")["sample_gradients"] == 0
    answers = here.subject("unlearned").test.logits
    model = here.subject("unlearned").model()
    assert not model.training
    with torch.no_grad():
        again = model(here.data.test.pixels.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(again, torch.from_numpy(answers), rtol=1e-4, atol=1e-5)


def test_a_file_of_the_network_alone_gets_the_normalisation_of_the_data(
    lab: Callable[..., Lab], state: dict[str, Tensor], saved: Callable[..., str]
) -> None:
    here = lab(*WORDS, f"method.weights={saved('alone.safetensors', alone(state))}")
    stored = load_file(here.unlearned().folder / "model.safetensors")
    assert stored["0.mean"].item() == pytest.approx(here.data.mean[0])
    assert stored["0.mean"].item() != state["0.mean"].item()
    assert all(torch.equal(stored[f"1.{name}"], value) for name, value in alone(state).items())


def test_our_own_stored_model_can_be_imported(lab: Callable[..., Lab]) -> None:
    made = lab("train.epochs=1", "method.epochs=1")
    here = lab(*WORDS, f"method.weights={made.unlearned().folder / 'model.safetensors'}")
    assert changed(state_of(made.load(made.unlearned())), state_of(here.load(here.unlearned()))) == set()


def test_weights_of_half_precision_are_taken(
    lab: Callable[..., Lab], state: dict[str, Tensor], saved: Callable[..., str]
) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    here = lab(*WORDS, f"method.weights={saved('half.safetensors', half)}")
    model = here.load(here.unlearned())
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert torch.equal(model.state_dict()["1.8.bias"], half["1.8.bias"].float())


def test_a_file_is_identified_by_its_content(
    lab: Callable[..., Lab], state: dict[str, Tensor], saved: Callable[..., str]
) -> None:
    other = state | {"1.8.bias": state["1.8.bias"] + 1}
    files = [saved("a.safetensors", state), saved("b.safetensors", state), saved("c.safetensors", other)]
    labs = [lab(*WORDS, f"method.weights={file}") for file in files]
    keys, rows = [here.unlearned().key for here in labs], [identity(here, CHOICES) for here in labs]
    assert keys[0] == keys[1] != keys[2]
    assert rows[0] == rows[1] != rows[2]


def test_what_is_no_file_of_weights_is_refused(lab: Callable[..., Lab], tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    for file in (tmp_path / "absent.safetensors", tmp_path / "text.safetensors", tmp_path):
        error = refusal(lab, tmp_path, f"method.weights={file}")
        assert (error.key, error.value) == ("method.weights", str(file))
        assert error.allowed.startswith("must be a safetensors file of the model's weights: ")


@pytest.mark.parametrize("whole", [True, False])
def test_names_and_shapes_that_do_not_fit_are_named(
    whole: bool, lab: Callable[..., Lab], state: dict[str, Tensor], saved: Callable[..., str], tmp_path: Path
) -> None:
    given, first = (state, "1.") if whole else (alone(state), "")
    spoilt = {
        "lacks 1.8.bias": {name: value for name, value in given.items() if name != f"{first}8.bias"},
        "lacks 1.8.bias and 1 more": {name: value for name, value in given.items() if f"{first}8." not in name},
        "has 1.extra besides": given | {f"{first}extra": torch.zeros(2)},
        "lacks 1.8.bias, has 1.8.b besides": {
            name.replace("8.bias", "8.b"): value for name, value in given.items()
        },
        "has 1.8.weight of 7 x 512 in the place of 10 x 512": given | {f"{first}8.weight": torch.zeros(7, 512)},
        "lacks 1.0.weight and 13 more": {},
    }  # fmt: skip
    for number, (message, tensors) in enumerate(spoilt.items()):
        if whole and not tensors:
            continue
        error = refusal(lab, tmp_path, f"method.weights={saved(f'{number}.safetensors', tensors)}")
        assert error.allowed == f"must be a safetensors file of the model's weights; this one {message}"


def test_half_a_normalisation_is_named_too(
    lab: Callable[..., Lab], state: dict[str, Tensor], saved: Callable[..., str], tmp_path: Path
) -> None:
    file = saved("half.safetensors", {name: value for name, value in state.items() if name != "0.std"})
    assert refusal(lab, tmp_path, f"method.weights={file}").allowed.endswith("this one lacks 0.std")


def test_several_requests_and_layers_are_refused(
    lab: Callable[..., Lab], state: dict[str, Tensor], saved: Callable[..., str], tmp_path: Path
) -> None:
    words = f"method.weights={saved('x.safetensors', state)}"
    assert str(refusal(lab, tmp_path, words, "requests=2")).startswith("requests=2: must be 1")
    assert str(refusal(lab, tmp_path, words, "layers=last")).startswith("layers=last: must be all: method imported")


def test_it_is_no_stage_of_rum(lab: Callable[..., Lab]) -> None:
    with pytest.raises(SettingError, match=r"^method\.stages\.0\.method=imported: must be one of amnesiac, "):
        lab("method=rum", "method.stages=[{method: imported,weights: x}]")


def test_it_cannot_be_made_again_but_its_original_and_reference_can(
    lab: Callable[..., Lab], state: dict[str, Tensor], saved: Callable[..., str]
) -> None:
    here = lab(*WORDS, f"method.weights={saved('x.safetensors', state)}")
    message = "^method=imported: is one model, and an audit that was chosen needs others made as it was$"
    with pytest.raises(SettingError, match=message):
        next(here.shadows("unlearned", 2))
    for same_original in (True, False):
        with pytest.raises(SettingError, match=message):
            next(here.repeats("unlearned", 2, same_original=same_original))
    assert not here.store.root.joinpath("originals").exists()
    assert next(here.shadows("original", 2)).members["forget"].any()
    assert next(here.repeats("retrained", 1, same_original=False)).role == "retrained"
