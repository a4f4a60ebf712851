"""What a deployment costs to rent, against sums done by hand."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from plimsoll.catalog.accelerators import Accelerator, Fact, Offer, load_accelerator
from plimsoll.catalog.rental import alternatives, rental
from plimsoll.core.errors import InputError, UnknownNameError

FACT = Fact(source="https://example.org/prices", date="2026-11-20")


def machine(num_gpus: int, usd_per_hour: float, provider: str = "P", instance: str = "") -> Offer:
    return Offer(
        provider=provider,
        instance=instance or f"{provider}-{num_gpus}",
        region="here",
        num_gpus=num_gpus,
        usd_per_hour=usd_per_hour,
        fact=FACT,
    )


def with_offers(*offers: Offer, gpus_per_node: int = 8) -> Accelerator:
    return dataclasses.replace(load_accelerator("H100-SXM"), offers=offers, gpus_per_node=gpus_per_node)


def bill(accelerator: Accelerator, gpus_per_replica: int, replicas: int) -> tuple[float, int]:
    found = rental(accelerator, gpus_per_replica, replicas)
    assert found is not None
    assert found.usd_per_hour == pytest.approx(sum(offer.usd_per_hour * count for offer, count in found.machines))
    assert found.num_gpus_rented == sum(offer.num_gpus * count for offer, count in found.machines)
    return found.usd_per_hour, found.num_gpus_rented


def test_two_gpus_on_a_machine_of_eight_cost_eight() -> None:
    found = rental(with_offers(machine(8, 55.04, instance="p5.48xlarge")), 2, 1)
    assert found is not None
    assert (found.usd_per_hour, found.num_gpus_rented, found.provider) == (55.04, 8, "P")
    assert found.arithmetic == "1 × p5.48xlarge (8 GPUs) at $55.04/h"
    assert [(offer.instance, count) for offer, count in found.machines] == [("p5.48xlarge", 1)]


def test_replicas_share_a_machine() -> None:
    only_eights = with_offers(machine(8, 40))
    assert bill(only_eights, 2, 4) == (40, 8)
    assert bill(only_eights, 2, 5) == (80, 16)
    assert bill(only_eights, 3, 2) == (40, 8)
    assert bill(only_eights, 3, 3) == (80, 16)  # two threes to a machine, not eight thirds of three


def test_a_large_replica_takes_several_machines() -> None:
    only_eights = with_offers(machine(8, 40))
    assert bill(only_eights, 16, 1) == (80, 16)
    assert bill(only_eights, 16, 3) == (240, 48)
    assert bill(only_eights, 12, 1) == (80, 16)
    assert bill(only_eights, 12, 2) == (120, 24)  # the two halves of four share the third machine
    assert bill(with_offers(machine(8, 40), machine(4, 18)), 12, 1) == (58, 12)


def test_mixes_of_sizes() -> None:
    mixed = with_offers(machine(8, 40), machine(4, 21), machine(1, 6))
    assert bill(mixed, 1, 3) == (18, 3)
    assert bill(mixed, 1, 4) == (21, 4)
    assert bill(mixed, 1, 6) == (33, 6)  # 21 + 2 x 6
    assert bill(mixed, 1, 9) == (46, 9)  # 40 + 6
    assert bill(mixed, 2, 1) == (21, 4)  # a pair is not torn over two machines of one
    assert bill(mixed, 4, 3) == (61, 12)  # 40 + 21
    found = rental(mixed, 1, 9)
    assert found is not None
    assert found.arithmetic == "1 × P-8 (8 GPUs) at $40.00/h + 1 × P-1 (1 GPU) at $6.00/h = $46.00/h"


def test_a_greedy_choice_would_be_wrong() -> None:
    odd = with_offers(machine(8, 40), machine(6, 27), machine(1, 10))
    assert bill(odd, 1, 12) == (54, 12)  # two sixes, not eight and four ones


def test_equal_prices_take_fewer_machines() -> None:
    found = rental(with_offers(machine(8, 80), machine(1, 10)), 1, 8)
    assert found is not None
    assert [(offer.num_gpus, count) for offer, count in found.machines] == [(8, 1)]


def test_the_cheaper_of_two_machines_of_a_size() -> None:
    assert bill(with_offers(machine(8, 50), machine(8, 40, instance="other region")), 8, 2) == (80, 16)
    assert bill(with_offers(machine(8, 50), machine(8, 40, instance="other region")), 16, 2) == (160, 32)


def test_one_provider_per_rental() -> None:
    two = with_offers(machine(8, 40, "A"), machine(1, 9, "B"), machine(4, 30, "B"), machine(8, 64, "B"))
    found = rental(two, 1, 9)
    assert found is not None
    assert (found.provider, found.usd_per_hour) == ("B", 69)  # 2 x 30 + 9; A needs two machines, 80; 49 would mix them
    assert [(r.provider, r.usd_per_hour) for r in alternatives(two, 1, 9)] == [("B", 69), ("A", 80)]
    by_name = rental(two, 1, 9, provider="a")
    assert by_name is not None
    assert by_name.usd_per_hour == 80


def test_a_replica_is_not_torn_over_single_cards() -> None:
    two = with_offers(machine(1, 2, "Singles"), machine(8, 40, "Eights"))
    assert [found.provider for found in alternatives(two, 8, 1)] == ["Eights"]
    assert [found.provider for found in alternatives(two, 16, 1)] == ["Eights"]
    assert [found.provider for found in alternatives(two, 1, 8)] == ["Singles", "Eights"]
    assert bill(with_offers(machine(1, 2)), 8, 1) == (16, 8)  # where nothing else exists it is all there is
    assert bill(with_offers(machine(1, 2), machine(4, 10, "Fours"), gpus_per_node=1), 4, 1) == (8, 4)
    asked_for = rental(two, 8, 1, provider="Singles")
    assert asked_for is not None
    assert asked_for.usd_per_hour == 16


def test_no_offers() -> None:
    nobody = load_accelerator("H800")
    assert rental(nobody, 1, 1) is None
    assert rental(nobody, 1, 1, provider="AWS") is None
    assert alternatives(nobody, 1, 1) == ()


def test_bad_arguments() -> None:
    accelerator = load_accelerator("H100-SXM")
    for gpus_per_replica, replicas in ((0, 1), (1, 0), (-1, 2)):
        with pytest.raises(InputError):
            rental(accelerator, gpus_per_replica, replicas)
    with pytest.raises(UnknownNameError, match="Crusoe"):
        rental(accelerator, 1, 1, provider="Cruso")


def test_chips_are_called_chips() -> None:
    found = rental(load_accelerator("TPU-v6e"), 4, 1)
    assert found is not None
    assert found.arithmetic == "1 × v6e-4 (4 chips) at $10.80/h"


def test_real_prices_of_an_h100_pair() -> None:
    found = rental(load_accelerator("H100-SXM"), 2, 1, provider="AWS")
    assert found is not None
    assert found.arithmetic == "1 × p5.48xlarge (8 GPUs) at $55.04/h"


@pytest.mark.parametrize("replicas", range(1, 7))
@pytest.mark.parametrize("gpus_per_replica", [1, 2, 3, 4])
def test_against_every_combination(gpus_per_replica: int, replicas: int) -> None:
    """Exhaustive search over how many machines of each size, for replicas that fit into the largest."""
    sizes = {8: 40.0, 4: 19.0, 2: 11.0, 1: 5.5}
    accelerator = with_offers(*(machine(size, usd) for size, usd in sizes.items()))
    cheapest = min(
        sum(count * usd for count, usd in zip(counts, sizes.values(), strict=True))
        for counts in itertools.product(range(replicas + 1), repeat=len(sizes))
        if sum(c * (s // gpus_per_replica) for c, s in zip(counts, sizes, strict=True)) >= replicas
    )
    assert bill(accelerator, gpus_per_replica, replicas)[0] == pytest.approx(cheapest)
