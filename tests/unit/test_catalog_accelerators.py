"""The accelerator catalogue: every file's figures, their sources, the lookup, and users' own files."""

from __future__ import annotations

import dataclasses
import datetime
import pickle
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.catalog import accelerators
from plimsoll.catalog.accelerators import Accelerator, list_accelerators, load_accelerator, parse_accelerator
from plimsoll.core.errors import InputError, UnknownNameError

ALL = list_accelerators()
NUMBERS = (
    "year",
    "memory_bytes",
    "memory_bandwidth_bytes_per_s",
    "intra_node_bytes_per_s",
    "scale_up_size",
    "inter_node_bytes_per_s",
    "pcie_bytes_per_s",
    "tdp_w",
    "gpus_per_node",
)
REQUIRED = (
    "V100", "T4", "A10", "A10G", "A30", "A40", "A100-PCIe-40GB", "A100-SXM-40GB", "A100-PCIe-80GB", "A100-SXM-80GB",
    "RTX-A6000", "L4", "L40", "L40S", "RTX-3090", "RTX-4090", "RTX-5090", "RTX-PRO-6000", "H100-PCIe", "H100-SXM",
    "H100-NVL", "H200", "H20", "H800", "GH200", "B200", "B300", "GB200", "GB300", "MI250X", "MI300X", "MI325X",
    "MI355X", "Gaudi-2", "Gaudi-3", "TPU-v5e", "TPU-v5p", "TPU-v6e", "Trainium2",
)  # fmt: skip

MINIMAL = """
id = "Mine"
name = "My card"
aliases = []

vendor = "nvidia"
architecture = "hopper"
segment = "datacenter"
year = 2026
source = "me"
memory_gib = 10
bandwidth_gb_per_s = 1000
tdp_w = 100
gpus_per_node = 2
scale_up_size = 1
intra_node_link = "pcie5"
intra_node_gb_per_s = 64
inter_node_link = "ethernet"
inter_node_gb_per_s = 1
pcie_gb_per_s = 64
no_offer_reason = "it stands under my desk"

[dense_tflops]
bf16 = 200

[sources.me]
url = "https://example.org/mine"
date = "2026-05"
"""


def own(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_catalogue_holds_what_was_asked_for() -> None:
    assert len(ALL) >= 40
    for name in REQUIRED:
        load_accelerator(name)


@pytest.mark.parametrize("accelerator_id", ALL)
def test_every_number_has_a_source_with_a_date(accelerator_id: str) -> None:
    accelerator = load_accelerator(accelerator_id)
    wanted = {*NUMBERS, *(f"dense_flop_per_s.{precision}" for precision in accelerator.dense_flop_per_s)}
    if accelerator.idle_w is not None:
        wanted.add("idle_w")
    assert set(accelerator.facts) == wanted
    for fact in (*accelerator.facts.values(), *(offer.fact for offer in accelerator.offers)):
        assert fact.source.startswith("https://")
        year, month, day = (*map(int, fact.date.split("-")), 1, 1)[:3]
        assert datetime.date(2017, 1, 1) <= datetime.date(year, month, day) <= datetime.date(2026, 12, 31)


@pytest.mark.parametrize("accelerator_id", ALL)
def test_no_numeric_field_was_forgotten(accelerator_id: str) -> None:
    """The list of numbers above follows the dataclass itself."""
    accelerator = load_accelerator(accelerator_id)
    values = {field.name: getattr(accelerator, field.name) for field in dataclasses.fields(Accelerator)}
    numeric = {name for name, value in values.items() if isinstance(value, (int, float))}
    assert numeric - {"idle_w"} == set(NUMBERS)


@pytest.mark.parametrize("accelerator_id", ALL)
def test_figures_are_plausible_in_si_units(accelerator_id: str) -> None:
    a = load_accelerator(accelerator_id)
    assert a.id == accelerator_id
    assert 10e9 <= a.memory_bytes <= 400e9
    assert 0.25e12 <= a.memory_bandwidth_bytes_per_s <= 20e12
    assert 0.05e9 <= a.inter_node_bytes_per_s <= 125e9
    assert 10e9 <= a.intra_node_bytes_per_s <= 1e12
    assert 10e9 <= a.pcie_bytes_per_s <= 500e9
    assert 50 <= a.tdp_w <= 1500
    assert a.idle_w is None or 5 <= a.idle_w < a.tdp_w
    assert 2017 <= a.year <= 2026
    assert a.gpus_per_node in (1, 2, 4, 8, 16)
    assert a.scale_up_size >= 1
    assert a.vendor in ("nvidia", "amd", "intel", "google", "aws")
    assert a.segment in ("datacenter", "workstation", "consumer")
    assert (a.compute_capability is not None) == (a.vendor == "nvidia")
    assert a.offers or a.no_offer_reason
    assert not (a.offers and a.no_offer_reason)


@pytest.mark.parametrize("accelerator_id", ALL)
def test_compute_is_dense_and_ordered_by_precision(accelerator_id: str) -> None:
    a = load_accelerator(accelerator_id)
    flop = a.dense_flop_per_s
    sixteen = flop.get("bf16") or flop["fp16"]
    assert sixteen == flop.get("fp16", sixteen)
    # A sparse figure taken for a dense one would double this: FLOP per byte at the ridge of the roofline.
    assert 30 <= sixteen / a.memory_bandwidth_bytes_per_s <= 600
    for eight in ("fp8", "int8"):
        if eight in flop and not (eight == "int8" and a.architecture == "blackwell" and a.compute_capability == "10.3"):
            assert sixteen <= flop[eight] <= 4.01 * sixteen
    if "fp4" in flop:
        assert flop["fp8"] < flop["fp4"] <= 4.01 * flop["fp8"]
    if "fp32" in flop:
        assert flop["fp32"] < sixteen


def test_only_architectures_with_the_hardware_list_a_precision() -> None:
    for accelerator_id in ALL:
        a = load_accelerator(accelerator_id)
        if a.compute_capability is not None:
            capability = float(a.compute_capability)
            assert ("fp8" in a.dense_flop_per_s) == (capability >= 8.9), accelerator_id
            assert ("fp4" in a.dense_flop_per_s) == (capability >= 10), accelerator_id
            assert ("bf16" in a.dense_flop_per_s) == (capability >= 8), accelerator_id


@pytest.mark.parametrize(
    ("accelerator_id", "tflops", "gb_per_s", "gib"),
    [
        ("A100-SXM-80GB", 312, 2039, 80.0),
        ("A100-PCIe-40GB", 312, 1555, 40.0),
        ("H100-SXM", 989.4, 3350, 79.65),
        ("RTX-4090", 165.2, 1008, 23.99),
        ("RTX-3090", 71, 936, 24.0),
        ("L40S", 362.05, 864, 44.99),
        ("B200", 2250, 7700, 179.06),
        ("MI300X", 1307.4, 5300, 192.0),
        ("TPU-v5e", 197, 819, 16.0),
    ],
)
def test_figures_of_well_known_cards(accelerator_id: str, tflops: float, gb_per_s: float, gib: float) -> None:
    a = load_accelerator(accelerator_id)
    assert a.dense_flop_per_s["bf16"] == pytest.approx(tflops * 1e12)
    assert a.memory_bandwidth_bytes_per_s == gb_per_s * 1e9
    assert a.memory_bytes / 2**30 == pytest.approx(gib, abs=0.01)


@pytest.mark.parametrize("accelerator_id", ALL)
def test_prices_are_plausible(accelerator_id: str) -> None:
    for offer in load_accelerator(accelerator_id).offers:
        assert 0.05 <= offer.usd_per_hour / offer.num_gpus <= 20
        assert offer.num_gpus in (1, 2, 4, 8, 16)
        assert offer.provider
        assert offer.instance
        assert "{" not in offer.instance
        assert offer.region


def test_a_card_without_a_price_says_where_one_was_sought() -> None:
    nobody = {name for name in ALL if not load_accelerator(name).offers}
    assert nobody == {"A800-SXM-80GB", "Gaudi-2", "Gaudi-3", "H800", "V100-PCIe-16GB"}
    for name in nobody:
        assert "Searched in November 2026: " in load_accelerator(name).no_offer_reason


def test_idle_power_where_anybody_published_it() -> None:
    unknown = {name for name in ALL if load_accelerator(name).idle_w is None}
    assert unknown == {"MI250X", "TPU-v5e", "TPU-v5p", "TPU-v6e", "Trainium2"}
    for name in set(ALL) - unknown:
        a = load_accelerator(name)
        assert a.idle_w is not None
        assert 0.02 * a.tdp_w <= a.idle_w <= 0.27 * a.tdp_w, name
        assert a.facts["idle_w"].source != a.facts["memory_bandwidth_bytes_per_s"].source


def test_figures_read_again_say_when_and_where() -> None:
    checked = 0
    for name in ALL:
        facts = load_accelerator(name).facts.values()
        checked += any(fact.checked for fact in facts)
        for fact in facts:
            assert bool(fact.checked) == fact.checked_against.startswith("https://")
            assert not fact.checked or fact.checked >= fact.date
    assert checked >= 25


# Where this catalogue follows another source: AIConfigurator's system is the Server Edition at 1597 GB/s.
OTHERWISE = {("RTX-PRO-6000", "mem_bw")}


def test_figures_agree_with_nvidias_own_system_descriptions() -> None:
    """AIConfigurator ships one file for each system: an independent transcription of the data sheets by their maker."""
    core = pytest.importorskip("aiconfigurator_core")
    yaml = pytest.importorskip("yaml")
    compared = 0
    for file in sorted(Path(core.__path__[0]).rglob("systems/*.yaml")):
        gpu = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("gpu", {})
        try:
            a = load_accelerator(file.stem)
        except UnknownNameError:
            continue
        ours = {
            "mem_bw": a.memory_bandwidth_bytes_per_s,
            "power": a.tdp_w,
            "bfloat16_tc_flops": a.dense_flop_per_s.get("bf16"),
            "fp8_tc_flops": a.dense_flop_per_s.get("fp8"),
            "fp4_tc_flops": a.dense_flop_per_s.get("fp4"),
        }
        for key, value in ours.items():
            theirs = gpu.get(key)
            if value and theirs and (a.id, key) not in OTHERWISE:
                compared += 1
                assert value == pytest.approx(float(theirs), rel=0.03), (a.id, key)
    assert compared >= 30


def test_names_are_unique_across_files() -> None:
    owner: dict[str, str] = {}
    for accelerator_id in ALL:
        a = load_accelerator(accelerator_id)
        for name in (a.id, a.name, *a.aliases):
            plain = "".join(ch for ch in name.lower() if ch.isalnum())
            assert owner.setdefault(plain, a.id) == a.id, f"{name} names both {owner[plain]} and {a.id}"


def test_the_opening_paragraph_is_what_the_index_reads() -> None:
    for file in accelerators.DATA.glob("*.toml"):
        head = tomllib.loads(file.read_text(encoding="utf-8").partition("\n\n")[0])
        assert set(head) == {"id", "name", "aliases"}
        assert head["id"] == file.stem


@pytest.mark.parametrize(
    ("name", "accelerator_id"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("rtx4090", "RTX-4090"),
        ("RTXPRO6000", "RTX-PRO-6000"),
        ("rtx_pro_6000_server", "RTX-PRO-6000"),
        ("H100", "H100-SXM"),
        ("h100_sxm", "H100-SXM"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("A100", "A100-SXM-80GB"),
        ("A100-80GB", "A100-SXM-80GB"),
        ("a100_sxm", "A100-SXM-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("h200_sxm", "H200"),
        ("b200_sxm", "B200"),
        ("b300_sxm", "B300"),
        ("gb200", "GB200"),
        ("gb300", "GB300"),
        ("l40s", "L40S"),
        ("a30", "A30"),
        ("A6000", "RTX-A6000"),
        ("RTX 6000 Ada", "RTX-6000-Ada"),
        ("RTX3090", "RTX-3090"),
        ("TPU-v6e-1", "TPU-v6e"),
        ("mi300x", "MI300X"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        ("gaudi2", "Gaudi-2"),
    ],
)
def test_aliases(name: str, accelerator_id: str) -> None:
    assert load_accelerator(name).id == accelerator_id


def test_an_unknown_name_gets_the_closest_ones() -> None:
    with pytest.raises(UnknownNameError) as caught:
        load_accelerator("H101-SXM")
    assert "H100-SXM" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError):
        load_accelerator("")


def test_an_accelerator_survives_pickling() -> None:
    a = load_accelerator("H100-SXM")
    assert pickle.loads(pickle.dumps(a)) == a


def test_a_cold_look_up_is_fast() -> None:
    caches = (accelerators._files, accelerators._heads, accelerators._aliases, accelerators._load)
    best = 1.0
    for _ in range(5):
        for cache in caches:
            cache.cache_clear()
        start_s = time.perf_counter()
        list_accelerators()
        load_accelerator("NVIDIA GeForce RTX 4090")
        best = min(best, time.perf_counter() - start_s)
    assert best < 0.05  # about 0.004 s when nothing else runs


def test_an_own_file(tmp_path: Path) -> None:
    a = load_accelerator(own(tmp_path, MINIMAL))
    assert a.id == "Mine"
    assert a.memory_bytes == 10 * 2**30
    assert a.memory_bandwidth_bytes_per_s == 1e12
    assert a.dense_flop_per_s == {"bf16": 200e12}
    assert a.idle_w is None
    assert a.compute_capability is None
    assert a.facts["tdp_w"].date == "2026-05"


def test_own_prices_over_a_catalogue_entry(tmp_path: Path) -> None:
    text = """
base = "h100"
[sources.quote]
url = "https://example.org/quote"
date = "2026-11-20"
[[offers]]
provider = "Us"
instance = "shelf-{n}"
region = "cellar"
sizes = [2, 8]
usd_per_gpu_hour = 1.25
source = "quote"
"""
    a = load_accelerator(own(tmp_path, text))
    assert a.id == "H100-SXM"
    assert [(o.instance, o.num_gpus, o.usd_per_hour) for o in a.offers] == [("shelf-2", 2, 2.5), ("shelf-8", 8, 10.0)]
    assert a.dense_flop_per_s == load_accelerator("H100-SXM").dense_flop_per_s


def test_own_prices_for_a_card_that_nobody_rents(tmp_path: Path) -> None:
    offer = '[[offers]]\nprovider="Us"\ninstance="a"\nregion="b"\nnum_gpus=1\nusd_per_hour=2\nsource="maker"\n'
    a = load_accelerator(own(tmp_path, f'base = "H800"\n{offer}'))
    assert a.no_offer_reason == ""
    assert a.offers[0].usd_per_hour == 2


@pytest.mark.parametrize(
    ("old", "new", "mention"),
    [
        ("tdp_w = 100", "", "tdp_w"),
        ("tdp_w = 100", "tdp_w = 0", "tdp_w"),
        ("tdp_w = 100", "tdp_w = -3", "tdp_w"),
        ("tdp_w = 100", "tdp_w = nan", "tdp_w"),
        ("tdp_w = 100", "tdp_w = inf", "tdp_w"),
        ("tdp_w = 100", "tdp_w = true", "tdp_w"),
        ("tdp_w = 100", 'tdp_w = "100 W"', "tdp_w"),
        ("tdp_w = 100", "tpd_w = 100", "tpd_w"),
        ("gpus_per_node = 2", "gpus_per_node = 2.5", "gpus_per_node"),
        ("memory_gib = 10", "", "memory_gib"),
        ("memory_gib = 10", "memory_gib = 10\nmemory_mib = 10240", "memory_gib"),
        ("bf16 = 200", "", "dense_tflops"),
        ("bf16 = 200", "bf16 = 0", "bf16"),
        ("bf16 = 200", "bfloat16 = 200", "bfloat16"),
        ("aliases = []", "aliases = [1]", "aliases"),
        ('vendor = "nvidia"', "vendor = 7", "vendor"),
        ('id = "Mine"', 'id = " "', "id"),
        ('source = "me"', 'source = "you"', "you"),
        ('date = "2026-05"', 'date = "May 2026"', "date"),
        ('url = "https://example.org/mine"', 'url = "my memory"', "url"),
        ('date = "2026-05"', 'date = "2026-05"\nchecked = "today"\nchecked_against = "https://a.b"', "checked"),
        ('date = "2026-05"', 'date = "2026-05"\nchecked = "2026-11-20"', "checked_against"),
        ('date = "2026-05"', 'date = "2026-05"\nchecked = 3', "checked"),
        ('date = "2026-05"', 'date = "2026-05"\nchecked = "2026"\nchecked_against = "a book"', "checked_against"),
        ("[dense_tflops]", '[figure_notes]\nspeed = "fast"\n[dense_tflops]', "speed"),
        ("[dense_tflops]", "figure_sources = 3\n[dense_tflops]", "figure_sources"),
        ('no_offer_reason = "it stands under my desk"', "", "no_offer_reason"),
        ('no_offer_reason = "it stands under my desk"', "offers = 3", "offers"),
        ("[sources.me]", '[[offers]]\nprovider="a"\n[sources.me]', "source"),
        ("[sources.me]", "]", "TOML"),
    ],
)
def test_a_broken_own_file_is_one_line_with_file_and_field(tmp_path: Path, old: str, new: str, mention: str) -> None:
    assert old in MINIMAL
    path = own(tmp_path, MINIMAL.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_accelerator(path)
    assert "mine.toml" in str(caught.value)
    assert mention in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sizes", ["[]", "[0]", "[1.5]", "[true]", "3"])
def test_broken_machine_sizes(tmp_path: Path, sizes: str) -> None:
    offer = f'[[offers]]\nprovider="a"\ninstance="b"\nregion="c"\nsource="me"\nsizes={sizes}\nusd_per_gpu_hour=1\n'
    text = MINIMAL.replace('no_offer_reason = "it stands under my desk"', "") + offer
    with pytest.raises(InputError, match="offer 1, sizes"):
        load_accelerator(own(tmp_path, text))


def test_an_own_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml"):
        load_accelerator(str(tmp_path / "nowhere.toml"))
    with pytest.raises(InputError):
        load_accelerator(str(own(tmp_path, 'base = "other.toml"')))
    with pytest.raises(UnknownNameError):
        load_accelerator(str(own(tmp_path, 'base = "H101"')))


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "\0", "tdp_w = 1e999", "id"])
def test_files_that_are_no_catalogue_entry(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        load_accelerator(own(tmp_path, text))


GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from([*sorted(tomllib.loads(MINIMAL)), "offers", "figure_notes", "extra"]), value=GARBAGE)
def test_garbage_is_refused_in_one_line_or_understood(key: str, value: object) -> None:
    message = "mine.toml"
    try:
        parse_accelerator({**tomllib.loads(MINIMAL), key: value}, "mine.toml")
    except InputError as error:
        message = str(error)
    assert "mine.toml" in message
    assert "\n" not in message


def test_parsing_is_independent_of_files() -> None:
    assert parse_accelerator(tomllib.loads(MINIMAL), "here").name == "My card"
