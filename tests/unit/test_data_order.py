"""The order of training batches is a function of (seed, position)."""

import pytest
import torch

from flexgen.data.sampler import Order, Purpose, generator, stratified, subset


def batches(order: Order, position: int, n: int) -> list[list[int]]:
    """The next `n` batches of an order, by asking for the rest of each epoch in turn."""
    taken: list[list[int]] = []
    while len(taken) < n:
        taken += order.rest_of_epoch(position + len(taken)).tolist()
    return taken[:n]


def test_an_epoch_sees_no_example_twice_and_drops_the_incomplete_batch() -> None:
    for epoch in (batches(Order(23, 5, 0), start, 4) for start in (0, 4, 8)):
        seen = [i for batch in epoch for i in batch]
        assert len(seen) == len(set(seen)) == 20
        assert set(seen) <= set(range(23))


def test_epochs_and_seeds_differ() -> None:
    first = batches(Order(40, 5, 0), 0, 8)
    assert first != batches(Order(40, 5, 0), 8, 8)
    assert first != batches(Order(40, 5, 1), 0, 8)
    assert batches(Order(40, 5, 0), 8, 8) != batches(Order(40, 5, 1), 0, 8)


@pytest.mark.parametrize("position", [0, 1, 3, 4, 5, 11, 4000])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2), (2, 3), (6, 7)])
def test_position_alone_restores_the_order(position: int, rank: int, world: int) -> None:
    start = max(position - 6, 0)
    before = batches(Order(23, 5, 3, rank, world), start, 12)
    assert batches(Order(23, 5, 3, rank, world), position, 6) == before[position - start :][:6]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_together_see_what_one_process_sees(world: int) -> None:
    alone = batches(Order(23, 5, 0), 0, 6 * world)
    ranks = [batches(Order(23, 5, 0, rank, world), 0, 6) for rank in range(world)]
    assert [ranks[i % world][i // world] for i in range(6 * world)] == alone


def test_fewer_examples_than_a_batch_names_the_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"at most the 4 training examples, got 5; set `data.batch"
    ):
        Order(4, 5, 0)


def test_rank_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`rank` must be in \[0, 2\), got 2"):
        Order(10, 5, 0, rank=2, world_size=2)


def test_keys_are_mixed_not_added() -> None:
    keys = [(0, 1), (1, 0), (0, 0), (1, 1)]
    draws = {
        torch.rand((), generator=generator(purpose, *key)).item()
        for purpose in Purpose
        for key in keys
    }
    assert len(draws) == len(keys) * len(Purpose)


def test_subset_is_without_replacement() -> None:
    chosen = subset(Purpose.SUBSET, 50, 30, 0)
    assert len(chosen.unique()) == 30
    assert torch.equal(chosen, subset(Purpose.SUBSET, 50, 30, 0))


def test_each_stretch_of_a_stratified_order_has_classes_in_proportion() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[subset(Purpose.SUBSET, 100, 100, 0)]
    order = stratified(Purpose.SPLIT, labels, 0)
    assert order.sort().values.tolist() == list(range(100))
    for stretch in order.split(20):
        counts = labels[stretch].bincount(minlength=3)
        assert (counts - torch.tensor([12, 6, 2])).abs().max() <= 1
