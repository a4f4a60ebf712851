"""Runs vLLM's own benchmark client (``vllm bench serve``) for a list of batches, in one process of vLLM's Python.

    python plimsoll_bench.py REQUEST.json

REQUEST.json: ``{"url", "model", "tokenizer", "served_name", "out", "runs": [{"name", "batch", "prompt_tokens",
"output_tokens", "seed"}]}``. Every run is one call of the client as its command line would make it: the random dataset,
all requests at once, no ready check. Its result file ``OUT/NAME.json`` is vLLM's own, with the times of every request;
runs whose file is there are not run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse


def main() -> None:
    """Run what the file asks for."""
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(asked["out"])
    out.mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(asked["runs"], 1):
        target = out / f"{run['name']}.json"
        if target.is_file():
            continue
        parser = FlexibleArgumentParser()
        add_cli_args(parser)
        arguments = parser.parse_args(_flags(asked, run, out))
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            result = asyncio.run(main_async(arguments))
        if result["completed"] != run["batch"]:
            errors = "; ".join(sorted({str(error).strip()[-200:] for error in result.get("errors", []) if error}))
            sys.stderr.write(said.getvalue())
            sys.exit(f"FAILED {run['name']}: {result['completed']} of {run['batch']} requests came back: {errors}")
        os.replace(out / f".{run['name']}.part", target)
        line = f"{number}/{len(asked['runs'])} {run['name']} {result['duration']:.2f} s"
        sys.stderr.write(line + "\n")


def _flags(asked: dict[str, Any], run: dict[str, Any], out: Path) -> list[str]:
    """The command line of ``vllm bench serve``."""
    url = urlparse(asked["url"])
    return [
        "--backend", "vllm", "--model", asked["model"], "--tokenizer", asked["tokenizer"],
        "--served-model-name", asked["served_name"],
        "--host", str(url.hostname), "--port", str(url.port),
        "--dataset-name", "random", "--random-input-len", str(run["prompt_tokens"]),
        "--random-output-len", str(run["output_tokens"]), "--num-prompts", str(run["batch"]),
        "--seed", str(run["seed"]), "--temperature", "0", "--ready-check-timeout-sec", "0", "--disable-tqdm",
        "--save-result", "--save-detailed", "--result-dir", str(out), "--result-filename", f".{run['name']}.part",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
