"""A real vLLM server on this machine's CPU, started for the length of a ``with`` block."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from plimsoll.core.errors import InputError
from plimsoll.profiler.shapes import Limits

INSIDE = Path(__file__).parent / "inside"
SERVED_NAME = "measured"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """How a server is started.

    Attributes:
        python: interpreter of the environment that vLLM is installed in.
        model: folder with config.json and tokenizer; weights are random.
        limits: of the engine.
        kv_gib: memory of the cache, whole GiB.
        worker_cores: cores that compute; each gets one thread.
        other_cores: cores of the API server and the scheduler.
        log: file for what it prints.
    """

    python: Path
    model: Path
    limits: Limits
    kv_gib: int
    worker_cores: tuple[int, ...]
    other_cores: tuple[int, ...]
    log: Path

    @property
    def tokenizer(self) -> Path:
        """Its folder: ``tokenizer`` in the model's, whose kind may then differ from the model's, else the model's."""
        own = self.model / "tokenizer"
        return own if own.is_dir() else self.model

    def command(self, port: int) -> list[str]:
        """Its command line."""
        limits = self.limits
        # --enforce-eager: modules can be timed. No prefix cache: nobody's prompt is another's by chance of a seed.
        return [
            str(self.python.parent / "vllm"), "serve", str(self.model),
            "--tokenizer", str(self.tokenizer), "--load-format", "dummy",
            "--enforce-eager", "--no-enable-prefix-caching",
            "--max-num-seqs", str(limits.max_seqs),
            "--max-num-batched-tokens", str(limits.max_tokens),
            "--max-model-len", str(limits.max_length),
            "--host", "127.0.0.1", "--port", str(port), "--served-model-name", SERVED_NAME,
            "--worker-extension-cls", "plimsoll_probe.Probe",
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Its environment variables, beside those of this process."""
        return {
            "VLLM_CPU_KVCACHE_SPACE": str(self.kv_gib),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, self.worker_cores)),
            "OMP_NUM_THREADS": str(len(self.worker_cores)),
            "VLLM_SERVER_DEV_MODE": "1",  # /collective_rpc, by which the probe is asked
            # Freed memory stays with the process, as with the tcmalloc that vLLM's documentation advises: else a step
            # pays for page faults or not, depending on the sizes of those before it.
            "MALLOC_MMAP_THRESHOLD_": str(2**30),
            "MALLOC_TRIM_THRESHOLD_": str(2**34),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(INSIDE),
        }


def split_cores(cores: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cores that compute, and one for everything else; a single core does both."""
    found = tuple(sorted(cores))
    return (found, found) if len(found) < 2 else (found[:-1], found[-1:])


@contextlib.contextmanager
def running(plan: ServerPlan) -> Iterator[str]:
    """The server's URL, once it answers.

    Raises:
        InputError: vLLM is not there, or does not start; the last line of its log says why.
    """
    if not (plan.python.parent / "vllm").is_file():
        remedy = "no vllm command lies beside it; `make verify-vllm` installs one"
        raise InputError("--vllm-python", str(plan.python), remedy)
    port = _free_port()
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    with plan.log.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            plan.command(port),
            env={**os.environ, **plan.environment()},
            stdout=log,
            stderr=subprocess.STDOUT,
            # Its own process group, to be ended as a whole, but the client's session: where the kernel groups tasks by
            # session, vLLM's scheduler, which spins while it waits, would keep a client of another one from its core.
            process_group=0,
            preexec_fn=lambda: os.sched_setaffinity(0, plan.other_cores),  # noqa: PLW1509
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, plan.log)
            yield url
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return
        time.sleep(0.5)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "Error" in line]
    said = lines[-1].strip()[-300:] if lines else f"see {log}"
    raise InputError("vLLM server", str(log), f"it did not start: {said}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, then end its whole group."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
