"""Rows of `silicon_sample.csv`: measured mean TTFT and TPOT of public serving benchmarks, and what their columns mean.

The layout columns are not all to be taken literally (the ids of the same rows say so): where tensor and expert ways
were multiplied (``tp 64, moe 8×8`` is TP 8 with EP 8), they are divided again, and ``agg`` rows of 12 to 72 GPUs are
totals of wider deployments: those of public recipes with prompts and answers apart get their layout
(`with_total_read`), others are approximated by data-parallel attention over the next smaller power of two.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from plimsoll.core.deployment import Parallelism
from plimsoll.core.errors import InputError
from validation._inferencex_seats import with_total_read

GPUS = {
    "h100_sxm": "H100-SXM",
    "h200_sxm": "H200",
    "b200_sxm": "B200",
    "b300_sxm": "B300",
    "gb200": "GB200",
    "gb300": "GB300",
}
PRECISIONS = {"nvfp4": "fp4", "fp8": "fp8", "fp8_block": "fp8", "int4_wo": "int4", "": "bf16"}
MODELS = {
    "Qwen/Qwen3-235B-A22B-FP8": "Qwen/Qwen3-235B-A22B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Llama-3.1-8B",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-ai/DeepSeek-V3.1",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    "zhipuai/GLM-5": "zai-org/GLM-5",
}
NEEDED = ("prefill_batch_size", "prefill_num_workers", "decode_batch_size", "decode_num_workers")
SIZES = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
LAYOUT = (
    "model_path", "system", "backend", "mode", "gemm_quant_mode", "moe_quant_mode",
    *(stage + size for stage in ("", "prefill_", "decode_") for size in SIZES),
    "prefill_num_workers", "decode_num_workers",
)  # fmt: skip
WIDE = 16
IMAGE_NAME, MONTH = len("nightly-dev"), len("2026-01")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measured configuration.

    Attributes:
        id: of the row.
        fields: the CSV's columns as text.
        half: ``tune`` or ``judge``, by deployment.
        complete: whether a disaggregated row says how many workers it had.
        deployment: everything but lengths and concurrency.
        model, gpu: catalogue names (or the path of a config that the package ships).
        backend, precision: engine and type of the weights.
        concurrency: requests in flight.
        prompt_tokens, output_tokens: nominal lengths.
        ttft_s, tpot_s: measured means.
    """

    id: str
    fields: Mapping[str, str]
    half: str
    complete: bool
    deployment: str
    model: str
    gpu: str
    backend: str
    precision: str
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float

    @property
    def is_disaggregated(self) -> bool:
        """Whether prompts and answers have GPUs of their own."""
        return self.fields["mode"] != "agg"

    @property
    def architecture(self) -> str:
        """``hopper`` or ``blackwell``."""
        return "hopper" if self.gpu.startswith("H") else "blackwell"

    @property
    def family(self) -> str:
        """``latent``, ``sparse``, ``hybrid``, ``moe`` or ``dense``: what the model's layers are."""
        name = self.fields["model_path"]
        if "GLM" in name:
            return "sparse"
        if any(part in name for part in ("DeepSeek", "Kimi")):
            return "latent"
        if "Qwen3.5" in name:
            return "hybrid"
        return "moe" if any(part in name for part in ("MiniMax", "A22B", "gpt-oss")) else "dense"

    @property
    def client(self) -> str:
        """``inferencex`` (vLLM's benchmark client), or ``other`` for rows measured by the package's own makers."""
        source = self.fields["silicon_data_source"]
        return "other" if "/Users" in source else "inferencex"

    @property
    def measured(self) -> str:
        """The day of the measurement, ISO; empty where the row does not say."""
        found = re.search(r"measured=(\d{4}-\d\d-\d\d)", self.fields["silicon_data_source"])
        return found.group(1) if found else ""

    @property
    def release(self) -> str:
        """The engine's version without what follows its three numbers; the month of the measurement where none is told.

        Development images go by the beginning of their names.
        """
        version = self.fields["backend_version"]
        found = re.match(r"\d+(\.\d+)+", version)
        return found.group(0) if found else version[:IMAGE_NAME] or self.measured[:MONTH]

    def num_ways(self, name: str, stage: str = "") -> int:
        """A size of the layout, as its column has it; 1 where it is empty."""
        return number(self.fields[stage + name]) or 1

    def cut(self, stage: str = "", *, is_mixture: bool) -> Parallelism:
        """The cut of one replica (of one worker of `stage`)."""
        tp, _, dp, moe_tp, moe_ep = (number(self.fields[stage + name]) or 1 for name in SIZES)
        return layout(tp, dp, moe_tp, moe_ep) if is_mixture else Parallelism(tp=tp)


def layout(tp: int, dp: int, moe_tp: int, moe_ep: int) -> Parallelism:
    """The cut that a mixture's four columns mean; see the module's text."""
    if moe_tp == moe_ep and max(tp, dp) == moe_tp * moe_ep and moe_ep > 1:
        tp, dp = min(tp, moe_ep), min(dp, moe_ep)
    elif tp == dp > 1 and moe_ep == tp * dp:
        tp, moe_ep = 1, dp
    elif dp == 1 and tp * dp < moe_tp * moe_ep:
        dp = moe_tp * moe_ep // tp
    if max(tp, dp) > WIDE or max(tp, dp) in (12, 20):
        ways = 1 << (max(tp, dp).bit_length() - 1)
        return Parallelism(tp=1, dp=ways, ep=ways)
    return Parallelism(tp=tp, dp=dp, ep=1 if moe_ep == 1 else moe_ep if tp * dp % moe_ep == 0 else tp * dp)


def number(value: str | None) -> int:
    """A whole number, 0 where the cell is empty."""
    value = (value or "").strip()
    return int(float(value)) if value and value.lower() != "nan" else 0


def _plain(value: str | None) -> str:
    value = (value or "").strip()
    return value[:-2] if value.endswith(".0") else "" if value.lower() == "nan" else value


def package_file(*parts: str) -> Path:
    """A file inside the installed aiconfigurator-core.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise InputError("--data", "none given", "install the `silicon` extra, or name a silicon_sample.csv")
    return Path(spec.origin).parent.joinpath(*parts)


def read_rows(path: Path) -> list[Row]:
    """All rows of one file.

    Raises:
        InputError: no such file, or a row that lacks what every row has.
    """
    if not path.is_file():
        raise InputError("--data", str(path), "give a CSV in the format of silicon_sample.csv")
    with path.open(newline="", encoding="utf-8") as file:
        found = []
        for line, fields in enumerate(csv.DictReader(file), 2):
            try:
                found.append(with_total_read(_row(fields)))
            except (KeyError, ValueError) as error:
                raise InputError(f"{path.name} line {line}", str(error)[:60], "see silicon_sample.csv") from error
    return found


def _seated(fields: dict[str, str]) -> int:
    """Requests in flight where the row does not say: a batch of every rank that answers."""
    if fields["mode"] == "agg":
        return number(fields["batch_size"])
    ranks = max(1, number(fields["decode_attention_dp_size"]))
    return number(fields["decode_batch_size"]) * number(fields["decode_num_workers"]) * ranks


def _row(fields: dict[str, str]) -> Row:
    key = "|".join(_plain(fields.get(name)) for name in LAYOUT)
    asked = re.search(r"silicon_concurrency=(\d+)", fields["silicon_data_source"])
    name = fields["model_path"]
    if name == "Qwen/Qwen3.5-397B-A17B":
        model = str(package_file("model_configs", "Qwen--Qwen3.5-397B-A17B_config.json"))
    else:
        model = MODELS.get(name, name)
    return Row(
        id=fields["id"],
        fields=fields,
        half="tune" if int(hashlib.sha1(key.encode()).hexdigest(), 16) % 2 == 0 else "judge",
        complete=fields["mode"] == "agg" or all(_plain(fields[name]) for name in NEEDED),
        deployment=key,
        model=model,
        gpu=GPUS[fields["system"]],
        backend=fields["backend"],
        precision=PRECISIONS[fields["gemm_quant_mode"]],
        concurrency=max(1, int(asked.group(1)) if asked else _seated(fields)),
        prompt_tokens=number(fields["isl"]),
        output_tokens=number(fields["osl"]),
        ttft_s=float(fields["silicon_ttft_ms"]) / 1e3,
        tpot_s=float(fields["silicon_tpot_ms"]) / 1e3,
    )
