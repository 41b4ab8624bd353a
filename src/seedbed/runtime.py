"""Decide on which machine and how work runs: device, number type, threads, memory, telemetry off.

The only module that sets environment variables, and only to reach other libraries. `prepare_environment` is called by the
command line and by `seedbed` on import, before any library that phones home is loaded.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from seedbed.config import Config
from seedbed.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = [
    "RuntimeConfig",
    "autocast",
    "available_memory_bytes",
    "cpu_multiplies_bfloat16",
    "describe_machine",
    "prepare_environment",
    "prepare_process",
    "tune_allocator",
]

_OFFLINE = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DAFT_ANALYTICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "WANDB_MODE": "offline",
}


def prepare_environment() -> None:
    """Set, unless the user has: telemetry and implicit downloads off, and OpenMP threads that soon sleep while they wait.

    By default a waiting OpenMP thread spins for milliseconds. Where anything else runs on the machine, it then holds the very
    core that the thread it waits for needs: a training step on two busy cores ran 2 to 8 times as fast with sleeping threads.
    Those that sleep at once cost 7 % of a step on a quiet machine, by the hundreds of short operations in it; so they spin for
    some microseconds first (docs/performance.md). The results are the same. It must be set before torch is loaded.
    """
    for name, value in _OFFLINE.items():
        os.environ.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if (
        _local_workers() > 1
    ):  # DDP warns of parameters that are always used; which they are depends on the rows
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # The Rust tokenizer warns about forks after it has used threads; it is told once here that its threads are wanted.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


class RuntimeConfig(Config):
    """On which machine a run happens. Changing only this section does not change results beyond rounding."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where to compute. auto: cuda, else mps, else cpu."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number type of the matrix products; weights, optimizer and loss stay float32. auto: bfloat16 where"
        " the processor multiplies it in hardware, else float16 with a loss scale on a GPU and float32 on a CPU.",
    )
    compile: Literal["auto", "graphs", True, False] = Field(
        "auto",
        description="Compile the model's forward and backward pass; the first step then takes a minute or so. auto: on a GPU that"
        " Triton is installed for. graphs: also record CUDA graphs, which needs steps of one micro-batch.",
    )
    attention: Literal["auto", "sdpa", "flex"] = Field(
        "auto",
        description="Kernel of attention that stays inside documents or windows, on a GPU. flex: skips the blocks nobody attends;"
        " sdpa: PyTorch's fused kernel with a mask; auto: flex where it can.",
    )
    loss_logits_mib: int | None = Field(
        None,
        ge=0,
        description="Logits over the vocabulary that exist at a time in a loss, MiB in float32: more are computed, turned into"
        " gradients and dropped in portions. null: 512 on a GPU, no limit elsewhere. 0: no limit.",
    )
    threads: int = Field(
        0, ge=0, description="CPU threads. 0: all cores this process may use. Bits depend on it."
    )
    activation_checkpointing: bool = Field(
        False,
        description="Keep the input of each layer only and compute the rest again in the backward pass: memory of about one layer"
        " instead of all, for about a third more time. For long rows and deep models.",
    )
    sharding: Literal["none", "full_shard", "shard_grad_op"] = Field(
        "none",
        description="What several workers share instead of each holding it whole. full_shard: weights, gradients and optimizer, a"
        " layer's weights being gathered while it runs (ZeRO-3). shard_grad_op: the same, but gathered weights are kept until the"
        " backward pass is over, and micro-batches sum up whole gradients first: faster, more memory (ZeRO-2).",
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        description="Workers that share each layer of a gpt2 or llama model, by heads, and read the same rows (Megatron-LM). For"
        " workers with fast connections; 1: none.",
    )
    memory_gib: float = Field(
        0.0,
        ge=0.0,
        description="Memory a step may take, GiB; the micro-batch is chosen to fit. 0: half of what is free, of a GPU's nine"
        " tenths.",
    )

    def torch_device(self) -> torch.device:
        """Return the device, checked to exist.

        Raises:
            ConfigError: the device asked for is not there.
        """
        import torch

        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        name = next(d for d, there in found.items() if there) if self.device == "auto" else self.device
        if not found[name]:
            raise ConfigError(
                f"runtime.device is {name!r}, but torch sees none here.", hint="runtime.device=auto"
            )
        return torch.device(name)

    def compute_dtype(self) -> torch.dtype:
        """Return the number type of the matrix products."""
        import torch

        if self.precision != "auto":
            kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
            return kinds[self.precision]
        device = self.torch_device()
        if device.type == "cuda":
            # Without hardware for it torch emulates bfloat16, and says that it supports it unless asked like this.
            has_it = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if has_it else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_multiplies_bfloat16() else torch.float32

    def compiles(self) -> bool:
        """Say whether the model is compiled."""
        if self.compile == "auto":
            return self.torch_device().type == "cuda" and importlib.util.find_spec("triton") is not None
        return self.compile is not False

    def attention_kernel(self) -> Literal["sdpa", "flex"]:
        """Return the kernel for attention inside documents or windows; it matters on a GPU only."""
        if self.attention == "auto":
            can = self.torch_device().type == "cuda" and importlib.util.find_spec("triton") is not None
            return "flex" if can else "sdpa"
        return self.attention

    def loss_logits_bytes(self) -> int:
        """Return the bytes of float32 logits that may exist at a time in a loss; 0: no limit."""
        if self.loss_logits_mib is None:
            return 512 << 20 if self.torch_device().type == "cuda" else 0
        return self.loss_logits_mib << 20

    def num_threads(self) -> int:
        """Return the number of CPU threads to use; workers on one machine share its cores."""
        return self.threads or max(1, _usable_cores() // _local_workers())

    def memory_bytes(self) -> int:
        """Return the memory a step of this process may take."""
        if self.memory_gib:
            return int(self.memory_gib * 2**30)
        if self.torch_device().type == "cuda":  # a worker has a device of its own
            import torch

            return int(0.9 * torch.cuda.mem_get_info()[0])
        return available_memory_bytes() // 2 // _local_workers()


def autocast(device_type: str, compute_dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context in which matrix products run in `compute_dtype`; float32: one that changes nothing."""
    import torch

    if compute_dtype not in (torch.bfloat16, torch.float16):
        return nullcontext()
    return torch.autocast(device_type, compute_dtype)


def _local_workers() -> int:
    """Return how many workers torchrun started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Say whether this processor has bfloat16 products (AMX or AVX512-BF16); emulated ones are slower than float32."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(
        capabilities.get("amx_bf16")
        or capabilities.get("amx_tile")
        or capabilities.get("avx512_bf16")
        or capabilities.get("bf16")
    )


def prepare_process(config: RuntimeConfig) -> None:
    """Apply threads, deterministic algorithms and allocator settings to this process."""
    import torch

    torch.set_num_threads(config.num_threads())
    # What use_deterministic_algorithms(True) does, but without importing torch's compiler for one of its settings, which takes
    # 1.5 to 3 s of every start and is not used here.
    torch.set_deterministic_debug_mode("error")
    # The deterministic mode would also fill every new tensor, which protects only code that reads before it writes.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if config.compiles():
        import torch._dynamo

        # One function serves all stacks of a run, with and without padding, forward passes of every entry of a mixture: more
        # than the eight variants after which torch goes on uncompiled.
        torch._dynamo.config.recompile_limit = 64
    tune_allocator()


def tune_allocator() -> bool:
    """Keep freed blocks in the process instead of returning them to the kernel after every step (glibc only).

    Raises malloc's mmap and trim thresholds, which removes most page faults of a training step on a CPU; the figure is
    in docs/performance.md. Returns whether the C library took the settings.
    """
    if platform.system() != "Linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2
    gib = 1 << 30
    return bool(
        mallopt(mmap_threshold, gib) and mallopt(trim_threshold, 2 * gib - 1) and mallopt(top_pad, 64 << 20)
    )


def available_memory_bytes() -> int:
    """Return the memory this process could still take: the smaller of the machine's and its control group's."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            raw = (Path("/sys/fs/cgroup") / limit).read_text().strip()
            if raw != "max":
                free = min(free, int(raw) - int((Path("/sys/fs/cgroup") / used).read_text()))
        except (OSError, ValueError):
            continue
    return max(free, 0)


def describe_machine(config: RuntimeConfig | None = None) -> dict[str, Any]:
    """Return what decides bits and speed: versions, processor, threads, device. Holds no names, paths or secrets."""
    import torch

    config = config or RuntimeConfig()
    # What is off is left out, so that machine.json files of before it existed still compare.
    extras: dict[str, Any] = {}
    if config.compiles():
        extras["compile"] = config.compile if config.compile == "graphs" else True
    if config.loss_logits_bytes():
        extras["loss_logits_mib"] = config.loss_logits_bytes() >> 20
    if config.torch_device().type == "cuda":
        extras["attention"] = config.attention_kernel()
    return extras | {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "device": str(config.torch_device()),
        "device_name": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": config.num_threads(),
        "precision": str(config.compute_dtype()).removeprefix("torch."),
        "byteorder": sys.byteorder,
    }
