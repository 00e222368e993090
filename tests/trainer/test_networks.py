"""The networks compute what torch's own layers and formulas do, and their dropout acts where it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lm_trainer.config import ModelConfig
from lm_trainer.networks.base import negative_log_likelihood
from lm_trainer.networks.dropout import Dropout
from lm_trainer.networks.family import make_model
from lm_trainer.networks.loss import linear_cross_entropy
from lm_trainer.networks.recurrent import CELLS, RecurrentLM, read_layer
from lm_trainer.networks.scan import scan_layer
from small_runs import IDS, NETWORKS, small_model


@pytest.mark.parametrize("family", CELLS)
def test_a_recurrent_model_is_torch_s_own_stack_of_layers(family: str) -> None:
    model = small_model(family, layers=2)
    assert isinstance(model, RecurrentLM)
    stack = CELLS[family].module(8, 16, 2)
    for number, layer in enumerate(model.layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            stack.get_parameter(f"{name}_l{number}").data = layer.get_parameter(f"{name}_l0").data
    token = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    state = tuple(torch.randn(2, 3, 16) for _ in model.states)
    logits, after = model(token, state)
    y, expected = stack(model.embedding(token.t()), state if family == "lstm" else state[0])
    assert torch.allclose(logits, model.head(y).transpose(0, 1), atol=1e-6)
    for found, wanted in zip(after, expected if family == "lstm" else [expected], strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("family", CELLS)
def test_a_scanned_layer_and_its_gradients_are_torch_s(family: str) -> None:
    """In double precision, so that nothing but the formulas can differ."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.double, generator=generator).requires_grad_()

    layer, x = CELLS[family].module(5, 7).double(), draw(6, 3, 5)
    state = tuple(draw(1, 3, 7) for _ in CELLS[family].states)
    found = []
    w_hidden = layer.get_parameter("weight_hh_l0")
    for y, after in (read_layer(layer, x, state), scan_layer(layer, x, state, w_hidden)):
        loss = (y * torch.linspace(0, 1, y.numel(), dtype=torch.double).view_as(y)).sum()
        loss = loss + sum((tensor**2).sum() for tensor in after)
        found.append([y, *after, *torch.autograd.grad(loss, [x, *state, *layer.parameters()])])
    for ours, torchs in zip(*found, strict=True):
        assert torch.allclose(ours, torchs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("vocab", [11, 70_000])
def test_the_training_loss_and_its_gradients_are_cross_entropy(vocab: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).mul(3).requires_grad_()
        for shape in ((9, 5), (vocab, 5), (vocab,))
    )
    target = torch.randint(0, vocab, (9,), generator=generator)
    ours = linear_cross_entropy(x, weight, bias, target) * 2
    torchs = nn.functional.cross_entropy(nn.functional.linear(x, weight, bias), target) * 2
    assert torch.allclose(ours, torchs, rtol=1e-6)
    for a, b in zip(*(torch.autograd.grad(loss, (x, weight, bias)) for loss in (ours, torchs)), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_training_loss_in_mixed_precision_takes_any_type_and_gives_back_its_own() -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((64, 32), (50, 32), (50,)))
    target = torch.randint(0, 50, (64,), generator=generator)
    expected = nn.functional.cross_entropy(nn.functional.linear(x, weight, bias), target)
    for dtype in (torch.float32, torch.bfloat16):
        given = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = linear_cross_entropy(given, weight.requires_grad_(), bias, target)
        assert abs(loss.item() / expected.item() - 1) < 0.01
        found = torch.autograd.grad(loss, (given, weight))
        assert [tensor.dtype for tensor in found] == [dtype, torch.float32]


def test_a_token_without_any_probability_has_a_finite_loss_and_its_whole_gradient() -> None:
    x, weight = torch.eye(2), torch.tensor([[300.0, 0], [0, 0]]).requires_grad_()
    loss = linear_cross_entropy(x, weight, torch.zeros(2), torch.tensor([1, 1]))
    assert loss.item() == pytest.approx((300 + np.log(2)) / 2)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert torch.allclose(gradient[:, 0], torch.tensor([0.5, -0.5]))


def test_a_window_model_is_two_layers_over_the_last_tokens_side_by_side() -> None:
    """Written out for each token; where nothing was read yet stands row 0 of the embedding."""
    model = small_model("window")
    table, hidden, head = (model.get_submodule(name) for name in ("embedding", "hidden", "head"))
    ids = IDS[:20].astype(np.int64).tolist()
    logits, (context,) = model(torch.tensor([ids]), model.zero_state(1))
    read = [0, 0, *(id_ + 1 for id_ in ids)]
    for position in range(20):
        side_by_side = torch.cat([table(torch.tensor(row)) for row in read[position : position + 3]])
        expected = head(torch.tanh(hidden(side_by_side)))
        assert torch.allclose(logits[0, position], expected, atol=1e-6)
    assert context.tolist() == [read[-2:]]


@pytest.mark.parametrize("family", NETWORKS)
def test_reading_in_one_call_is_reading_step_by_step(family: str) -> None:
    model = small_model(family, layers=2)
    token = torch.from_numpy(IDS[:60].astype(np.int64)).view(2, 30)
    whole, end = model(token, model.zero_state(2))
    state = model.zero_state(2)
    for step in range(30):
        logits, state = model(token[:, step : step + 1], state)
        assert torch.allclose(logits[:, 0], whole[:, step], atol=1e-5)
    for found, expected in zip(state, end, strict=True):
        assert found.dtype == expected.dtype
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 if found.is_floating_point() else 0)


@pytest.mark.parametrize("family", NETWORKS)
def test_dropout_masks_act_and_are_scaled(family: str) -> None:
    model = small_model(family)
    token, state = torch.zeros((1, 5), dtype=torch.int64), model.zero_state(1)
    plain = model.read(token, state)[0]
    dropped = [
        model.read(token, state, Dropout(torch.Generator().manual_seed(s), output=0.5))[0] for s in (0, 0, 1)
    ]
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])
    gone = dropped[0] == 0
    assert 0.2 < gone.float().mean() < 0.8
    assert torch.allclose(dropped[0], torch.where(gone, 0, 2 * plain))


@pytest.mark.parametrize("part", ["input", "hidden", "output", "words", "weights"])
@pytest.mark.parametrize("family", CELLS)
def test_every_part_of_a_recurrent_model_can_be_dropped(family: str, part: str) -> None:
    model = small_model(family, layers=2)
    token, state = torch.arange(12).view(2, 6), model.zero_state(2)
    plain = model.read(token, state)[0]
    first, again, other = (
        model.read(token, state, Dropout(torch.Generator().manual_seed(seed), **{part: 0.5}))[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.75])
def test_a_mask_drops_as_often_as_asked_and_scales_what_stays(probability: float) -> None:
    """Of a size that four does not divide."""
    ones = torch.ones(101, 33, 7)
    dropout = Dropout(torch.Generator().manual_seed(0), words=probability, weights=probability)
    words = dropout.on_words(torch.ones(9999, 1), torch.arange(9999), 9999)
    for x in (dropout.on(ones, probability), dropout.on_weights(ones), words):
        assert x.unique().tolist() == pytest.approx([0, 1 / (1 - probability)], rel=1e-4)
        assert (x == 0).float().mean().item() == pytest.approx(probability, abs=0.02)


def test_a_locked_mask_is_one_for_all_steps_of_each_row() -> None:
    model = small_model("lstm")
    token, state = torch.arange(12).view(2, 6), model.zero_state(2)
    dropout = Dropout(torch.Generator().manual_seed(0), output=0.5, locked=True)
    dropped = model.read(token, state, dropout)[0] == 0  # (batch, time, hidden)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert not torch.equal(dropped[0], dropped[1])
    assert 0.2 < dropped.float().mean() < 0.8


def test_a_dropped_word_is_dropped_wherever_it_stands() -> None:
    token = torch.tensor([[3, 1, 4], [1, 5, 9], [2, 6, 5], [3, 5, 8]])
    x = Dropout(torch.Generator().manual_seed(0), words=0.5).on_words(torch.ones(4, 3, 7), token, 10)
    assert set(x.unique().tolist()) == {0.0, 2.0}
    for word in token.unique():
        assert len(x[token == word].unique()) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", CELLS)
def test_dropped_weights_act_and_gradients_reach_the_raw_ones(family: str, precision: str) -> None:
    """A third of the elements of the state's matrix has no gradient at a step, others at the next."""
    model = small_model(family)
    token = torch.from_numpy(IDS[:60].astype(np.int64)).view(2, 30)
    dropout = Dropout(torch.Generator().manual_seed(0), weights=1 / 3)
    weight = model.get_parameter("layers.0.weight_hh_l0")
    before, dropped = weight.detach().clone(), []
    for _ in range(2):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            x, _ = model.read(token, model.zero_state(2), dropout)
        torch.autograd.backward(x.float().sum())
        assert weight.grad is not None
        dropped.append(weight.grad == 0)
        assert 0.25 < dropped[-1].float().mean() < 0.42
    assert not torch.equal(*dropped)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("family", NETWORKS)
def test_validation_carries_the_state_whatever_the_window(family: str) -> None:
    model = small_model(family, layers=2)
    losses = [negative_log_likelihood(model, IDS, 0, window) for window in (900, 64, 1)]
    assert max(losses) / min(losses) - 1 < 1e-6  # of float32 losses, summed in double
    state, total, previous = model.zero_state(1), 0.0, 0
    for target in IDS.tolist()[:40]:
        with torch.no_grad():
            logits, state = model(torch.tensor([[previous]]), state)
        total -= float(torch.log_softmax(logits[0, 0], -1)[target])
        previous = target
    assert abs(total - negative_log_likelihood(model, IDS[:40], 0)) < 1e-3


@pytest.mark.parametrize("family", NETWORKS)
def test_scaled_weights_begin_with_the_frequencies_of_the_tokens(family: str) -> None:
    """Whatever a new network has read, it predicts about what the text's own frequencies do."""
    model = small_model(family)
    log_frequencies = torch.from_numpy(np.log((np.arange(50) + 1) / 1275))
    model.scale_weights(log_frequencies, torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(IDS[None].astype(np.int64)), model.zero_state(1))
    predicted = torch.log_softmax(logits[0].double(), -1)
    divergence = (log_frequencies.exp() * (log_frequencies - predicted)).sum(-1)
    assert divergence.max() < 0.1
    uniform = (log_frequencies.exp() * (log_frequencies - np.log(1 / 50))).sum()
    assert uniform > 0.15


@pytest.mark.parametrize("tied", [False, True])
def test_scaled_weights_change_a_tied_embedding_and_the_bias(tied: bool) -> None:
    config = ModelConfig(2000, 64, 256, 2, tied, "lstm", projection=64)
    model = make_model(config, torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.scale_weights(torch.zeros(2000), torch.Generator().manual_seed(1))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.bias", *(["embedding.weight", "head.weight"] if tied else [])}
    if tied:
        weight = model.get_parameter("embedding.weight")
        assert weight.abs().max().item() == pytest.approx(0.1, rel=0.01)
        assert weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
