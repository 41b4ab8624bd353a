"""What workers that share weights or compress gradients do, beside plain ones: run by torchrun, told as JSON by the first worker.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/worker_cases.py FOLDER

One start of two processes serves all cases; test_two_workers.py asserts what is found.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seedbed.hashing import fold, key_from
from seedbed.models.trunks import set_recomputing
from seedbed.objectives.causal_lm import CausalLMConfig
from seedbed.objectives.masked_lm import MaskedLMConfig
from seedbed.optim import OPTIMIZERS, muon
from seedbed.training.averaging import WeightAverage, evaluation_weights
from seedbed.training.checkpoint import Checkpoints
from seedbed.training.compression import PowerSGDMemory
from seedbed.training.hooks import MetricsLog
from seedbed.training.parallel import (
    any_worker,
    gathered,
    joined,
    sum_over_workers,
    wait_for_all,
    worker,
    wrapped,
)
from seedbed.training.perturbations import PGD
from seedbed.training.rollback import RollbackHook
from seedbed.training.sharding import shard
from seedbed.training.state import TrainingState
from seedbed.training.step import Learner, MicroBatch, StepResult, train_step
from seedbed.training.tensor_parallel import split
from toys import VOCABULARY, toy_model, toy_reader

# Products in float32 on every machine: in bfloat16 a sum in another order may round to another number, a thousand times further off.
muon.cpu_multiplies_bfloat16 = lambda: False

ROWS = 4  # of a micro-batch; there are four of them a step
MODELS = {
    "llama": {"num_kv_heads": 1},
    "gpt2": {},
    "albert": {},
    "native_decoder": {"num_layers": 3},
}
EVEN = {"hidden_size": 40, "num_heads": 4}
"""Of 36 units and 3 heads: layers run twice, parameters of one element, rows that do not divide."""

SHARED: list[Any] = []
"""All that hold the process group, which must not outlive the run."""


@dataclass
class Run:
    """A learner, its optimizer, and the rows it reads."""

    state: TrainingState
    objective: Any
    reader: Any
    model: Any

    def micro_batches(self, number: int) -> list[MicroBatch]:
        """This worker's rows of a step."""
        count = 4 // self.state.num_data_workers
        starts = [ROWS * (4 * number + count * self.state.data_worker + k) for k in range(count)]
        return [MicroBatch(*self.objective.make_batch(*self.reader.read(at, ROWS))) for at in starts]

    def step(self, *, module: Any = None, rate: float = 0.01, **options: Any) -> StepResult:
        """Do the next step."""
        number = self.state.window
        result = train_step(
            module or self.state.learner,
            self.state.optimizer,
            self.micro_batches(number),
            objectives=[self.objective],
            progress=0.5,
            learning_rate=rate,
            max_grad_norm=0.3,
            dropout_key=fold(key_from("dropout"), number),
            shards=self.state.shards,
            embedding_width=36,
            **options,
        )
        if self.state.average is not None:
            self.state.average.update(self.state.parameters(), number, result.is_applied)
        self.state.window += 1
        return result

    def score(self) -> float:
        """The loss at rows of its own, the same on all workers."""

        def loss() -> torch.Tensor:
            batch, targets = self.objective.make_batch(*self.reader.read(0, ROWS))
            with torch.no_grad():
                terms = self.objective.losses(self.state.learner.modules_by_name(), batch, targets)
            return sum(term.loss for term in terms.values())

        return float(self.state.run(loss))


def start(family: str = "llama", *, optim: str = "adamw", sharding: str = "none") -> Run:
    """A new model, and its optimizer."""
    sizes = {"hidden_size": 36, "num_heads": 3, "ffn_size": 50, "hidden_dropout": 0.1}
    if family.startswith("even "):
        family, sizes = family.removeprefix("even "), {**sizes, **EVEN}
        sizes |= {"num_kv_heads": 2} if family == "llama" else {}
        model = toy_model(family, **sizes)
        model.trunk.config = model.config.updated(attention_dropout=0.1)
    else:
        model = toy_model(family, **{**sizes, **MODELS[family]})
    config = MaskedLMConfig(mask_rate=0.3) if family == "albert" else CausalLMConfig()
    objective = config.build(VOCABULARY, row_length=17, is_segmented=False)
    learner = Learner([objective], objective.modules(model.trunk, model.head))
    section = OPTIMIZERS[optim](name=optim, weight_decay=0.1)
    state = TrainingState(learner, section.build(learner.parts.named_parameters()))
    state.average = WeightAverage(0.5)
    if sharding == "tensor_parallel":
        SHARED.append(split(state, size=2, device=torch.device("cpu"), model=model))
    elif sharding != "none":
        SHARED.append(shard(state, kind=sharding, device=torch.device("cpu"), model=model))
    return Run(state, objective, toy_reader(objective.raw_row_length, num_documents=80), model)


def whole(run: Run) -> dict[str, torch.Tensor]:
    """Weights, optimizer and average, gathered where they are shared."""
    state = run.state
    layout = {**state.layout, **state.optimizer_layout()}
    kinds = [state.model_tensors(), state.optimizer_tensors()]
    kinds.append({f"average {n}": t for n, t in state.average.tensors.items()})
    layout |= {f"average {n}": s for n, s in state.layout.items()}
    tensors = {name: t for kind in kinds for name, t in kind.items()}
    return {
        n: (layout[n].whole(t.detach()) if n in layout else t).detach().clone() for n, t in tensors.items()
    }


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of tensors; infinite where names or shapes differ."""
    if {n: t.shape for n, t in one.items()} != {n: t.shape for n, t in other.items()}:
        return float("inf")
    return max(float((one[n] - other[n]).abs().max()) for n in one)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    equal = one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    return not any_worker(not equal)


def compare(
    family: str = "llama", *, optim: str = "adamw", sharding: str = "full_shard", **options: Any
) -> dict[str, float]:
    """Do the same two steps with whole weights through DDP, and with shared ones; how far apart do they end?"""
    recomputes = options.pop("recomputes", False)
    options = {"rate": OPTIMIZERS[optim](name=optim).peak_rate / 2, **options}
    plain, shared = start(family, optim=optim), start(family, optim=optim, sharding=sharding)
    set_recomputing(shared.state.learner, recomputes)
    began = whole(plain)
    with wrapped(plain.state.learner) as module:
        before = [plain.step(module=module, **options) for _ in range(2)]
    after = [shared.step(**options) for _ in range(2)]
    pairs = list(zip(before, after, strict=True))
    (key,) = before[0].losses

    def loss(run: Run, result: StepResult) -> float:
        copies = 1 if run.state.shards is None else run.state.shards.num_copies
        return sum_over_workers({key: float(result.losses[key]) / copies})[key]

    ends = whole(plain)
    return {
        "losses": max(abs(loss(plain, a) / loss(shared, b) - 1) for a, b in pairs),
        "norms": max(float(abs(a.gradient_norm / b.gradient_norm - 1)) for a, b in pairs),
        "tensors": largest(ends, whole(shared)),
        "moved": max(float((ends[n] - began[n]).abs().max()) for n in began if n in ends),
        "score": abs(plain.score() / shared.score() - 1),
    }


def checkpoints_of_both(folder: Path) -> dict[str, Any]:
    """Save from shared weights, load into whole ones, save those; and the other way round."""
    found = {}
    cases = [
        ("native_decoder", optim, "full_shard") for optim in ("normuon", "adafactor", "schedule_free_adamw")
    ]
    for family, optim, sharding in [*cases, ("even llama", "lion", "tensor_parallel")]:
        shared = start(family, optim=optim, sharding=sharding)
        for _ in range(2):
            shared.step()
        saved = Checkpoints(folder / f"{optim}-shared", inputs={}).save(shared.state)
        wait_for_all()
        plain = start(family, optim=optim)
        Checkpoints(saved.parent, inputs={}).load(plain.state, Checkpoints(saved.parent, inputs={}).newest())
        again = Checkpoints(folder / f"{optim}-plain", inputs={}).save(plain.state)
        wait_for_all()
        files = ["model.safetensors", "optimizer.safetensors", "average.safetensors"]
        back = start(family, optim=optim, sharding=sharding)
        Checkpoints(again.parent, inputs={}).load(back.state, Checkpoints(again.parent, inputs={}).newest())
        is_same = same(whole(back), whole(shared))
        results = [run.step() for run in (shared, back)]  # what is loaded goes on as what was saved
        found[optim] = {
            "files": [(saved / name).read_bytes() == (again / name).read_bytes() for name in files],
            "same": is_same,
            "goes_on": same(whole(back), whole(shared)) and torch.equal(*(r.gradient_norm for r in results)),
        }
    return found


def bad_gradient(folder: Path) -> dict[str, Any]:
    """One worker's rows of one gradient are not numbers: all skip, and all roll back."""
    run = start(sharding="full_shard", optim="muon")
    checkpoints = Checkpoints(folder / "bad", inputs={})
    hook = RollbackHook(
        checkpoints, log=MetricsLog(folder / "log", window=-1), every=1, max_rollbacks=1, rows_of=lambda w: {}
    )
    run.step()
    hook.act(run.state)
    anchor = whole(run)
    run.step()
    before = whole(run)
    shards = run.state.shards
    plain = shards.take_gradients

    def spoiled() -> None:
        plain()
        if worker() == 1:
            shards.parameters["trunk.layers.1.attention.qkv.weight"].grad[0, 0] = float("nan")

    shards.take_gradients = spoiled
    result = run.step()
    shards.take_gradients = plain
    skipped = same(whole(run), before)
    hook.recover(run.state, 3, 3)
    return {
        "is_finite": any_worker(bool(result.is_applied)),
        "unchanged": skipped,
        "rolled_back": same(whole(run), anchor),
        "window": run.state.window,
    }


def held_bytes() -> dict[str, float]:
    """Bytes of weights and of what an optimizer remembers, as a share of what a worker with whole weights holds."""
    found = {}
    for optim in ("adamw", "muon"):
        sizes = []
        for sharding in ("none", "full_shard"):
            run = start(optim=optim, sharding=sharding)
            run.step()
            kept = [*run.state.parameters().values(), *run.state.optimizer_tensors().values()]
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
            # What the modules hold besides: whole weights, had they not been freed.
            for parameter in run.state.learner.parameters():
                local = parameter.to_local() if sharding != "none" else parameter
                storages[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
            sizes.append(sum(storages.values()))
        found[optim] = sizes[1] / sizes[0]
    return found


def the_end(family: str, sharding: str) -> dict[str, Any]:
    """Evaluate averaged weights, put the trained ones back, probe, gather: the first worker then runs the model alone."""
    run = start(family, sharding=sharding)
    for _ in range(2):
        run.step()
    before = whole(run)
    with evaluation_weights(run.state):
        averaged = run.score()
    trained = run.score()
    with run.state.shards.unchanged(run.state):
        run.step()
    is_same = same(whole(run), before)
    plain = start(family)
    with torch.no_grad():
        for name, parameter in plain.state.parameters().items():
            parameter.copy_(before[name])
    expected = plain.score()
    run.state.shards.gather()
    alone = run.score() if worker() == 0 else 0.0  # would wait for ever for the others
    given = dict(run.model.named_parameters())
    wait_for_all()
    return {
        "trained": abs(trained / expected - 1),
        "averaged_differs": averaged != trained,
        "unchanged": is_same,
        "alone": abs(alone / expected - 1) if worker() == 0 else 0.0,
        "given": all(torch.equal(given[n], before[n]) for n in given if n in before),
        "tied": run.model.head.weight is run.model.trunk.embedding.token.weight,
        "num_parameters": run.state.num_parameters == plain.state.num_parameters,
    }


def powersgd(folder: Path) -> dict[str, Any]:
    """Stop and go on, with what was remembered and without; a bad gradient in between leaves that alone."""
    whole_run, memory = start("gpt2", optim="sgd"), PowerSGDMemory()
    whole_run.state.memory = memory
    checkpoints = Checkpoints(folder / "powersgd", inputs={})
    spoiled = [
        p for n, p in whole_run.state.parameters().items() if n.endswith("layers.0.attention.qkv.weight")
    ]
    with wrapped(whole_run.state.learner, compression="powersgd", memory=memory) as module:
        for _ in range(4):
            whole_run.step(module=module)
        before = memory.saved()
        handle = spoiled[0].register_hook(lambda gradient: gradient * (float("nan") if worker() else 1.0))
        result = whole_run.step(module=module)
        handle.remove()
        unmoved = same(before, memory.saved())
        wait_for_all()
        saved = checkpoints.save(whole_run.state)
        whole_run.step(module=module)
        last = whole_run.step(module=module)
    wait_for_all()
    found = {"is_finite": bool(result.is_applied), "unmoved": unmoved, "after": bool(last.is_applied)}
    found["files"] = sorted(path.name for path in saved.iterdir() if path.name.startswith("powersgd"))
    found["errors_differ"] = not torch.equal(*gathered(before["error"]))
    for name in ("goes_on", "anew"):
        again = start("gpt2", optim="sgd")
        again.state.memory = PowerSGDMemory()
        checkpoints.load(again.state, checkpoints.newest())
        if name == "anew":
            again.state.memory = PowerSGDMemory()
        with wrapped(again.state.learner, compression="powersgd", memory=again.state.memory) as module:
            for _ in range(2):
                again.step(module=module)
        found[name] = same(whole(again), whole(whole_run))
    return found


def main(folder: Path) -> None:
    """Run all cases."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    kinds = ["full_shard", "shard_grad_op"]
    with joined(device_type="cpu"):
        found: dict[str, Any] = {
            f"optimizer {optim}": compare(optim=optim, sharding=kinds[number % 2])
            for number, optim in enumerate(OPTIMIZERS)
        }
        for family in ("gpt2", "albert", "native_decoder"):
            for sharding in kinds:
                found[f"{family} {sharding}"] = compare(family, sharding=sharding)
        for family in ("gpt2", "llama"):
            found[f"tensor parallel {family}"] = compare(f"even {family}", sharding="tensor_parallel")
        found["recomputed layers"] = compare(recomputes=True)
        found["bfloat16"] = compare(compute_dtype=torch.bfloat16)
        found["passes over disturbed embeddings"] = compare("gpt2", perturbation=PGD(0.5, 0.2, 2))
        found |= {"checkpoints": checkpoints_of_both(folder), "bad gradient": bad_gradient(folder)}
        found |= {"held": held_bytes(), "powersgd": powersgd(folder)}
        found["end"] = the_end("gpt2", "shard_grad_op")
        found["end of tensor parallel"] = the_end("even gpt2", "tensor_parallel")
        if worker() == 0:
            (folder / "found.json").write_text(json.dumps(found))
        for shards in SHARED:
            shards.release()
        gc.collect()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
