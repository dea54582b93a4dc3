"""A run that stops, asked to or because something is wrong: the last good checkpoint is left."""

import os
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from toy_training import fit, send

from multimodal_gpt.errors import UserError
from multimodal_gpt.model.gpt import GPT
from multimodal_gpt.training.checkpoint import load_weights


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(make, vocabulary, at_step, capsys, number, code):
    recipe = make(rows_per_batch=1)
    at_step(3, send(number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        fit(recipe, vocabulary)
    assert stopped.value.code == code
    assert signal.getsignal(number) == before
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"stopped at step 3; continue with: mmgpt train {recipe.run}/recipe.yaml"
    assert fit(recipe, vocabulary, resume=True).step == 8


def test_the_second_ctrl_c_kills(make, vocabulary, at_step, capsys):
    recipe = make(save_every=2)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(3, twice)
    with pytest.raises(SystemExit) as stopped:
        fit(recipe, vocabulary)
    assert stopped.value.code == 130
    assert "stopped at step 2; continue" in capsys.readouterr().out


def test_the_minutes_are_kept(make, vocabulary):
    recipe = make(minutes=1e-6)
    result = fit(recipe, vocabulary)
    assert (result.ended, result.step) == ("minutes", 1)
    assert result.valid
    assert fit(make(), vocabulary, resume=True).step == 8


def test_a_loss_that_is_not_finite_stops_the_run(make, vocabulary, at_step, monkeypatch):
    recipe = make(save_every=2)

    def broken(self, hidden, targets, emphasis):
        return hidden.sum() * float("nan"), torch.zeros(targets.shape)

    at_step(4, lambda: monkeypatch.setattr(GPT, "loss_sum", broken))
    with pytest.raises(UserError) as error:
        fit(recipe, vocabulary)
    assert str(error.value) == (
        f"{recipe.run}: the loss is not finite at step 5 "
        "(the last good checkpoint is step 4; lower train.learning_rate or train.clip)"
    )
    assert load_weights(Path(recipe.run)).info["step"] == 4


def breaking(module: torch.nn.Module) -> None:
    """Let the gradients of what comes before a module be infinite; the loss stays what it is."""
    module.register_full_backward_hook(lambda m, inputs, outputs: (inputs[0] * float("inf"),))


@pytest.mark.parametrize("rows_per_batch", [1, 4])
def test_the_weight_whose_gradient_breaks_is_named(make, vocabulary, at_step, capture_net, rows_per_batch):
    recipe = make(rows_per_batch=rows_per_batch)
    at_step(2, lambda: breaking(capture_net[0].blocks[1].mlp.up_proj))
    with pytest.raises(UserError, match=r"the gradient of blocks.1.mlp_norm.weight is not finite at step 3 "):
        fit(recipe, vocabulary)


def test_weights_that_are_not_finite_are_never_saved(make, vocabulary, at_step, capture_net):
    recipe = make(save_every=2)

    def poison():
        with torch.no_grad():
            capture_net[0].blocks[1].mlp.up_proj.weight[0, 0] = float("inf")

    at_step(4, poison)
    with pytest.raises(UserError, match=r"blocks.1.mlp.up_proj.weight is not finite at step 4 .*is step 2;"):
        fit(recipe, vocabulary)
    assert load_weights(Path(recipe.run)).info["step"] == 2


def test_a_full_disk_leaves_the_last_checkpoint(make, vocabulary, at_step, monkeypatch):
    recipe = make(save_every=2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    at_step(3, lambda: monkeypatch.setattr(L.Trainer, "save_checkpoint", full))
    with pytest.raises(
        UserError, match=r"step 4 can't be saved.*No space left.*the last checkpoint is untouched"
    ):
        fit(recipe, vocabulary)
    monkeypatch.undo()
    assert load_weights(Path(recipe.run)).info["step"] == 4, "weights are written first"
    assert fit(recipe, vocabulary, resume=True).step == 8
