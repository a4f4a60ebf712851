"""Suite `operators`: does the roofline's form hold for shapes, and for a GPU, that its fit has not seen?

Data: a folder of public operator profiles (``vidur/``, ``llmservingsim-v0/``); the tables inside `aiconfigurator-core`
join where they are installed. Held-out shapes: every third ``[k, n]`` matrix (by hash, with all its row counts) is left
out of the fit and predicted. Held-out GPU: a card is predicted with the coefficients of its nearest other (same
architecture and segment, same architecture, then any) and its own datasheet. Errors are medians of absolutes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from plimsoll.core.errors import InputError

SHAPES, GPU = 0.10, 0.20
FEWEST_SHAPES = 3
SOURCES = ("vidur/*_mlp.csv.gz", "llmservingsim-v0/*_layers.csv.gz")
"""The files of measured matrix products in a folder of operator profiles."""
FOLDER = "operator-profiles"
FIT = Path(__file__).resolve().parent.parent / "benchmarks" / "fit_roofline.py"


def run(paths: Sequence[Path]) -> dict[str, Any]:
    """Fit and judge every GPU that the data hold.

    Raises:
        InputError: a folder without operator profiles, or with files of another format.
    """
    fitting = _load(paths)
    own = {name: _own(fitting, name) for name in fitting.GPUS}
    if not any(own.values()):  # the package's tables alone would pass for the folder
        raise InputError("--data", str(paths[0]), "give profiles with measured matrix products of a known GPU")
    products = {name: found for name in fitting.GPUS if (found := _products(fitting, name, own[name]))}
    shapes = {name: _held_out_shapes(fitting, name, kinds) for name, kinds in products.items()}
    experts = {name: found for name in products if (found := _held_out_experts(fitting, name))}
    cards = _held_out_gpus(fitting, products)
    if not cards:
        raise InputError("--data", str(paths[0]), "give profiles of two GPUs of one maker, one to borrow from")
    plain = [table["16bit"]["median_abs_error"] for table in shapes.values()]
    grouped = [cell["median_abs_error"] for table in experts.values() for cell in table.values()]
    every = [cell["median_abs_error"] for table in shapes.values() for cell in table.values()]
    borrowed = [cell["median_abs_error"] for cell in cards.values()]
    figures = {
        "held_out_shapes": shapes,
        "held_out_experts": experts,
        "held_out_gpu": cards,
        "shapes_median_abs_error": round(float(np.median(every)), 4),
        "shapes_16bit_worst": max(plain),
        "shapes_worst": max(every),
        "experts_median_abs_error": round(float(np.median(grouped)), 4) if grouped else None,
        "gpu_median_abs_error": round(float(np.median(borrowed)), 4),
        "gpu_worst": max(borrowed),
    }
    passed = figures["shapes_median_abs_error"] <= SHAPES and figures["gpu_median_abs_error"] <= GPU
    return {
        "passed": bool(passed),
        "summary": (
            f"{len(products)} GPUs, matrix products: held-out shapes {figures['shapes_median_abs_error']:.1%} "
            f"(worst {figures['shapes_worst']:.1%}), held-out GPU {figures['gpu_median_abs_error']:.1%} "
            f"(worst {figures['gpu_worst']:.1%}); experts, not judged, "
            f"{'not measured' if not grouped else format(figures['experts_median_abs_error'], '.1%')}"
        ),
        "figures": figures,
    }


def _load(paths: Sequence[Path]) -> ModuleType:
    """The fitting program as a module, reading from the folder given."""
    if len(paths) > 1:
        raise InputError("--data", str(paths[1]), "give one folder, that of the operator profiles")
    base = _base_of(paths[0])
    spec = importlib.util.spec_from_file_location("plimsoll_fit_roofline", FIT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.DATA = base  # type: ignore[attr-defined]
    return module


def _base_of(folder: Path) -> Path:
    """The folder in which the fitting program finds what was given, be it the profiles or the folder around them."""
    remedy = f"give the folder {FOLDER} that holds vidur/ or llmservingsim-v0/ with their .csv.gz files"
    if not folder.is_dir():
        raise InputError("--data", str(folder), remedy)
    bases = [folder, folder.absolute().parent, folder.resolve().parent]
    for base in bases:
        profiles = base / FOLDER
        if not profiles.is_dir() or (base != folder and not profiles.samefile(folder)):
            continue
        if any(any(profiles.glob(pattern)) for pattern in SOURCES):
            return base
    if any(any(folder.glob(pattern)) for pattern in SOURCES):
        remedy = f"name this folder {FOLDER}: the fit looks for that name"
    raise InputError("--data", str(folder), remedy)


def _own(fitting: ModuleType, name: str) -> list[np.ndarray]:
    """Matrix products of one GPU in the folder given; of the sources that are there."""
    from polars.exceptions import PolarsError

    gpu = fitting.GPUS[name]
    own = []
    for key, read in (("vidur", fitting.vidur_gemms), ("v0", fitting.v0_gemms)):
        if key in gpu:
            try:
                own.append(read(gpu[key]))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError, PolarsError) as error:
                source = {"vidur": "vidur", "v0": "llmservingsim-v0"}[key]
                remedy = f"its {source}/ files of {name} are in another format"
                raise InputError("--data", str(fitting.DATA / FOLDER), remedy) from error
    return [part for part in own if len(part)]


def _products(fitting: ModuleType, name: str, own: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Matrix products of one GPU by kernel class: the folder's and the tables'."""
    gpu = fitting.GPUS[name]
    tables = fitting.aic_gemms(gpu["aic"]) if "aic" in gpu else {}
    plain = [fitting.thin(part) for part in (*own, *([tables["16bit"]] if "16bit" in tables else []))]
    found = {kernel: rows for kernel, rows in tables.items() if kernel != "16bit"}
    return {"16bit": np.concatenate(plain), **found} if plain else found


def _is_held_out(shapes: np.ndarray) -> np.ndarray:
    unique, where = np.unique(shapes, axis=0, return_inverse=True)
    picked = [int(hashlib.sha1(str(shape.tolist()).encode()).hexdigest(), 16) % 3 == 0 for shape in unique]
    if not any(picked) or all(picked):
        picked = [index % 3 == 0 for index in range(len(unique))]
    return np.array(picked)[where.reshape(-1)]


def _cell(predicted: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    error = predicted / measured - 1
    return {
        "median_abs_error": round(float(np.median(np.abs(error))), 4),
        "median_error": round(float(np.median(error)), 4),
        "p90_abs_error": round(float(np.quantile(np.abs(error), 0.9)), 4),
        "num_points": len(measured),
    }


def _held_out_shapes(fitting: ModuleType, name: str, kinds: dict[str, np.ndarray]) -> dict[str, Any]:
    rates, bandwidth = fitting.datasheet(name)
    cells = {}
    for kernel, rows in kinds.items():
        rest = _is_held_out(rows[:, 1:3])
        found = fitting.fit_gemm(rows[~rest], rates, bandwidth, kernel)
        weight, peak = fitting.BYTES[kernel], rates[fitting.TYPES[kernel]]
        cells[kernel] = _cell(fitting.gemm_seconds(found, rows[rest], peak, bandwidth, weight), rows[rest, 3])
    return cells


def _held_out_experts(fitting: ModuleType, name: str) -> dict[str, Any]:
    """The same for grouped products, where the tables are installed."""
    gpu = fitting.GPUS[name]
    cells = {}
    rates, bandwidth = fitting.datasheet(name)
    for kernel, rows in (fitting.aic_experts(gpu["aic"]) if "aic" in gpu else {}).items():
        if len(np.unique(rows[:, 1:5], axis=0)) < FEWEST_SHAPES:
            continue
        rest = _is_held_out(rows[:, 1:5])
        found = fitting.fit_experts(rows[~rest], rates, bandwidth, kernel)
        weight, peak = fitting.BYTES[kernel], rates[fitting.TYPES[kernel]]
        cells[kernel] = _cell(fitting.expert_seconds(found, rows[rest], peak, bandwidth, weight), rows[rest, 7])
    return cells


def _held_out_gpus(fitting: ModuleType, products: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """16-bit products of every GPU with the coefficients of its nearest other."""
    fits = {}
    for name, kinds in products.items():
        rates, bandwidth = fitting.datasheet(name)
        fits[name] = fitting.fit_gemm(kinds["16bit"], rates, bandwidth, "16bit")
    cells = {}
    for name, kinds in products.items():
        vendor, architecture, segment = fitting.GPUS[name]["arch"]

        def distance(other: str, mine: tuple[str, str, str] = (vendor, architecture, segment)) -> tuple[bool, ...]:
            theirs = fitting.GPUS[other]["arch"]
            return tuple(a != b for a, b in zip((theirs[0], theirs[1], theirs[2]), mine, strict=True))

        others = sorted((other for other in fits if other != name), key=lambda other: (*distance(other), other))
        if not others or distance(others[0])[0]:
            continue  # the only one of its maker: nothing near to borrow from
        rates, bandwidth = fitting.datasheet(name)
        rows = kinds["16bit"]
        predicted = fitting.gemm_seconds(fits[others[0]], rows, rates["bf16"], bandwidth, 2.0)
        cells[name] = {"borrowed_from": others[0], **_cell(predicted, rows[:, 3])}
    return cells
