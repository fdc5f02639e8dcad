"""Vectors in place of a token: against a slow way that follows the definition word for word."""
import pytest
import torch

from ldm.modules.placeholders import insert_vectors


def one_by_one(ids, embeddings, token, vectors):
    """From the last occurrence to the first: the vectors take one place's place, the rest moves right, the end falls off."""
    length, k = ids.shape[1], len(vectors)
    new_ids, new_embeddings = [], []
    for row, values in zip(ids.tolist(), embeddings, strict=True):
        values = list(values)
        for column in reversed([i for i, found in enumerate(row) if found == token]):
            row = (row[:column] + [token] * k + row[column + 1 :])[:length]
            values = (values[:column] + list(vectors) + values[column + 1 :])[:length]
        new_ids.append(row)
        new_embeddings.append(torch.stack(values))
    return torch.tensor(new_ids), torch.stack(new_embeddings)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 12])
def test_insertion_follows_its_definition(k):
    ids = torch.randint(0, 4, (40, 10))  # a token of 4 is frequent: neighbours, first and last places, texts without one
    ids[0], ids[1] = 0, 3
    embeddings, vectors = torch.randn(40, 10, 5), torch.randn(k, 5)
    expected_ids, expected = one_by_one(ids, embeddings, 3, vectors)
    found_ids, found = insert_vectors(ids, embeddings, 3, vectors)
    assert torch.equal(found_ids, expected_ids)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("k", [1, 3])
def test_arguments_are_left_as_they_were(k):
    ids, embeddings = torch.tensor([[0, 3, 1, 3]]), torch.randn(1, 4, 2)
    before = ids.clone(), embeddings.clone()
    insert_vectors(ids, embeddings, 3, torch.randn(k, 2))
    assert torch.equal(ids, before[0]) and torch.equal(embeddings, before[1])


@pytest.mark.parametrize("k", [1, 3])
def test_gradient_counts_the_places_that_each_input_fills(k):
    ids = torch.tensor([[0, 3, 1, 2, 1], [1, 1, 1, 1, 1]])
    embeddings = torch.zeros(2, 5, 2, requires_grad=True)
    vectors = torch.zeros(k, 2, requires_grad=True)
    insert_vectors(ids, embeddings, 3, vectors)[1].sum().backward()
    assert torch.equal(vectors.grad, torch.ones(k, 2))
    kept = torch.ones(2, 5)
    kept[0, 1] = 0  # replaced
    kept[0, 5 - (k - 1) :] = 0  # pushed out
    assert torch.equal(embeddings.grad, kept[..., None].expand(2, 5, 2))


def test_vectors_take_the_dtype_of_the_embeddings():
    ids = torch.tensor([[3, 0]])
    assert insert_vectors(ids, torch.zeros(1, 2, 2, dtype=torch.bfloat16), 3, torch.ones(2, 2))[1].dtype == torch.bfloat16
