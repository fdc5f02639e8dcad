"""Temporary states end when their block ends, however it ends."""
import pytest
import torch
from torch import nn

from ldm.regularization.scopes import in_eval_mode, method_replaced, replaced, undisturbed


class WritingManager(nn.Module):
    """Puts its vector in place of id 7, into the very tensors that it was given, as the published one does; and counts."""

    def __init__(self):
        super().__init__()
        self.vector = nn.Parameter(torch.ones(2))
        self.progressive_counter = 3

    def forward(self, tokenized_text, embedded_text):
        self.progressive_counter += 1
        where = tokenized_text == 7
        tokenized_text[where] = 0
        embedded_text[where] = self.vector
        return embedded_text


def test_a_manager_that_writes_into_its_arguments_gets_copies():
    manager, ids, table = WritingManager(), torch.tensor([[1, 7]]), nn.Parameter(torch.zeros(1, 2, 2))
    embedded = table * 1.0
    with undisturbed(manager, None):
        out = manager(ids, embedded)
    assert ids.tolist() == [[1, 7]] and not embedded.detach().any() and out[0, 1].tolist() == [1, 1]
    assert manager.progressive_counter == 3 and manager.vector.requires_grad
    with_tokens, with_vector = torch.autograd.grad(out.sum(), [table, manager.vector], allow_unused=True)
    assert with_tokens[0].tolist() == [[1, 1], [0, 0]] and with_vector is None
    manager(ids, table * 1.0).sum().backward()
    assert manager.progressive_counter == 4 and manager.vector.grad is not None


def test_vectors_that_were_fixed_stay_fixed():
    manager = WritingManager()
    manager.vector.requires_grad_(False)
    with undisturbed(manager, None):
        pass
    assert not manager.vector.requires_grad


def test_without_a_manager_nothing_can_be_edited():
    with undisturbed(None, None):
        pass
    with pytest.raises(AssertionError, match="embedding manager"), undisturbed(None, lambda e: e):
        pass


@pytest.mark.parametrize("before", [None, lambda x: 2 * x])
def test_a_method_is_replaced_and_what_stood_there_before_stands_there_again(before):
    layer = nn.Linear(1, 1)
    if before is not None:
        layer.forward = before
    with pytest.raises(ZeroDivisionError), method_replaced(layer, "forward", lambda x: 3 * x):
        assert layer(torch.ones(1, 1)).item() == 3
        raise ZeroDivisionError
    assert vars(layer).get("forward") is before and (before is None or layer(torch.ones(1, 1)).item() == 2)


def test_an_encoder_hook_that_was_there_before_is_there_after_a_prompt_was_encoded():
    manager = WritingManager()
    manager.forward = before = lambda ids, embedded: embedded
    with undisturbed(manager, None):
        pass
    assert manager.forward is before


def test_parts_are_replaced_and_put_back_in_their_order():
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    own, other = model.a, nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), replaced(model, {"a": other}):
        assert model.a is other and "a.weight" in model.state_dict()
        raise ZeroDivisionError
    assert model.a is own and list(model.state_dict()) == ["a.weight", "a.bias", "b.weight", "b.bias"]


def test_eval_mode_ends_with_each_parts_own_mode():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with in_eval_mode(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model] == [True, False]
