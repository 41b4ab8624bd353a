"""Join the workers of one run: torchrun starts them, torch's process group connects them, DDP sums their gradients.

With a single worker every function here is the identity. Nothing that decides a result may differ between workers, so whatever
depends on a clock or on one process alone (a signal, a forecast) is asked here: `agreed`, `any_worker`. Gradients are summed and
never averaged, since the division by the global number of targets is already done in the loss.
"""

# No `from __future__ import annotations` here: DDP checks the annotations of its hook at run time.
import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket, PrefixStore, TCPStore
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from seedbed.errors import ConfigError, WorkerLostError
from seedbed.training.compression import PowerSGDMemory
from seedbed.training.heartbeat import Heartbeat

__all__ = [
    "agreed",
    "any_worker",
    "first_worker_first",
    "from_worker",
    "gathered",
    "is_launched",
    "joined",
    "max_over_workers",
    "no_sync",
    "num_workers",
    "sum_over_workers",
    "wait_for_all",
    "worker",
    "wrapped",
]

_PREPARING = timedelta(days=30)
"""Workers wait so long for the first of them to prepare text, at most; a dead one is noticed by its heartbeat, much sooner."""

_LOST = ("gloo", "nccl", "connection", "socket", "store", "peer", "broken pipe")
"""What torch's messages hold when a worker went away; they are plain RuntimeErrors."""


def is_launched() -> bool:
    """Say whether torchrun (or the like) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(*, device_type: str) -> Iterator[None]:
    """Be one of the workers torchrun started while the block runs; do nothing where there is one process.

    Args:
        device_type: "cpu" (gloo) or "cuda" (NCCL for tensors on devices, gloo for the numbers of the host).

    Raises:
        ConfigError: the environment of torchrun is incomplete.
        WorkerLostError: another worker went away while the block ran.
    """
    if not is_launched():
        yield
        return
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE says that there are several workers, but {', '.join(missing)} is not set.",
            hint="start with torchrun --nproc-per-node N -m seedbed ..., or unset WORLD_SIZE",
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

    def connect() -> TCPStore:
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            size,
            is_master=rank == 0 and not has_agent,
            timeout=timedelta(minutes=5),
            multi_tenant=True,
        )

    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    store = PrefixStore(f"seedbed/{attempt}", connect())
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PREPARING)
    heartbeat = Heartbeat(PrefixStore(f"seedbed/{attempt}/beat", connect()), rank=rank, size=size)
    try:
        with lost_workers_named():
            with heartbeat:
                yield
                wait_for_all()
            wait_for_all()  # the store may live in the first worker, and is needed until nobody listens any more
    finally:
        dist.destroy_process_group()


@contextmanager
def lost_workers_named() -> Iterator[None]:
    """Turn torch's error about a connection that broke into one of ours."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if num_workers() > 1 and any(word in said.lower() for word in _LOST):
            raise WorkerLostError(
                f"worker {worker()} lost another worker ({said.splitlines()[0][:200]}).",
                hint="torchrun --max-restarts N starts all again; the same command goes on from the last checkpoint",
            ) from error
        raise


def num_workers() -> int:
    """Return how many workers train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def worker() -> int:
    """Return which of them this one is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def wait_for_all() -> None:
    """Wait until every worker is here."""
    if num_workers() > 1:
        dist.all_reduce(torch.zeros(1))


@contextmanager
def first_worker_first() -> Iterator[None]:
    """Let the first worker run the block alone, then the others: what it made, they find made."""
    if worker() > 0:
        wait_for_all()
    yield
    if worker() == 0:
        wait_for_all()


Compression = Literal["none", "fp16", "powersgd"]


@contextmanager
def wrapped(
    learner: nn.Module, *, compression: Compression = "none", memory: PowerSGDMemory | None = None
) -> Iterator[nn.Module]:
    """Give the learner as steps call it while the block runs: with several workers inside DDP, which sums gradients.

    Args:
        learner: what trains.
        compression: how gradients travel. fp16: in half precision, half the bytes. powersgd: as products of matrices of rank 4
            (1905.13727), with what was left out added to the next gradient.
        memory: what powersgd remembers; None: it begins anew, and is forgotten.
    """
    if num_workers() == 1:
        yield learner
        return
    # A term whose count is 0 is left out on all workers alike, so its head may get no gradient.
    num_bytes = sum(p.numel() * p.element_size() for p in learner.parameters())
    bucket_mib = num_bytes // 2**20 + 1 if compression == "powersgd" else None
    module = DistributedDataParallel(learner, find_unused_parameters=True, bucket_cap_mb=bucket_mib)
    if compression == "powersgd":
        (memory or PowerSGDMemory()).register(module)
    elif compression == "fp16":
        module.register_comm_hook(None, _summed(fp16_compress_hook))
    else:
        module.register_comm_hook(None, _sum_hook)
    try:
        yield module
    finally:
        # It holds the process group, which must not outlive destroy_process_group: its threads would end the interpreter.
        del module
        gc.collect()


def no_sync(learner: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which backward passes accumulate gradients locally."""
    return learner.no_sync() if isinstance(learner, DistributedDataParallel) else nullcontext()


def sum_over_workers(values: Mapping[Any, float]) -> dict[Any, float]:
    """Return the sums over all workers, key by key; every worker has the same keys in the same order."""
    if num_workers() == 1:
        return dict(values)
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))


def agreed(value: float) -> float:
    """Return the first worker's value, on all workers."""
    if num_workers() == 1:
        return value
    said = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(said, src=0)
    return float(said)


def max_over_workers(value: int) -> int:
    """Return the largest value of all workers, on all workers."""
    if num_workers() == 1:
        return value
    said = torch.tensor([value])
    dist.all_reduce(said, op=dist.ReduceOp.MAX)
    return int(said)


def any_worker(claim: bool) -> bool:
    """Say whether any worker claims it, on all workers alike."""
    return bool(max_over_workers(int(claim)))


def gathered(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all workers, alike in shape and type, in the order of the workers."""
    if num_workers() == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(num_workers())]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def from_worker(tensor: Tensor, number: int) -> Tensor:
    """Return a worker's tensor on the first, by way of the host, and their own on the others; shapes and types are alike."""
    if number == 0:
        return tensor
    host = tensor.detach().to("cpu").contiguous()
    if worker() == number:
        dist.send(host, dst=0)
    elif worker() == 0:
        host = torch.empty_like(host)
        dist.recv(host, src=number)
    return host


def _summed(hook: Callable[[Any, GradBucket], torch.futures.Future[torch.Tensor]]) -> Any:
    """Turn one of torch's hooks, which take the mean, into one that gives the sum."""

    def summed(state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        def scaled(future: torch.futures.Future[torch.Tensor]) -> torch.Tensor:
            return future.value() * num_workers()

        done: torch.futures.Future[torch.Tensor] = hook(state, bucket).then(scaled)
        return done

    return summed


def _sum_hook(state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Replace DDP's averaging by a plain sum."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None

    def first(future: torch.futures.Future[Any]) -> torch.Tensor:
        value = future.value()
        summed: torch.Tensor = value[0] if isinstance(value, list) else value
        return summed

    done: torch.futures.Future[torch.Tensor] = work.get_future().then(first)
    return done
