"""Flip one bit of one file, then run the command that reads the file: it is refused by name before anything is made of it.

Every file of a finished run is hit: of each stage, the checkpoints, the model, a fine-tune, and the live files beside them.
What was made from the file is removed first, so that it is needed. Three answers are right: refused with exit code 8, the file
named and both hashes said; a damaged checkpoint passed over with a warning, and the run ends to the bit; and, for the few files
without a hash (`PLAIN`), no weight changes and nothing looks like a bug. A file that the command does not open at all counts apart.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tests.torture.children import Child, fork
from tests.torture.toy_run import Failure, Toy, newest
from tests.torture.trials import Bench

LONG, SHORT = 500, 10
FINETUNE = (
    "task.name=toy",
    "task.kind=classification",
    "seeds=1",
    "epochs=2",
    "batch_rows=8",
    "max_length=16",
)
AFTER = {
    "corpus": ("tokenizer", "tokens", "validation", "pretrain", "model", "finetune", "finetune-toy"),
    "tokenizer": ("tokens", "validation", "pretrain", "model", "finetune", "finetune-toy"),
    "tokens": ("validation", "pretrain", "model", "finetune", "finetune-toy"),
    "validation": ("pretrain", "model", "finetune", "finetune-toy"),
    "checkpoints": ("model",),
    "live": ("model",),
    "model": ("finetune", "finetune-toy"),
    "finetune": ("finetune-toy",),
    "finetune-toy": (),
}
"""Of each kind of file what is removed with it, since it is made from it."""
PLAIN = re.compile(
    r"(metrics|timing|rows-[^/]*)\.jsonl$|/?(machine|samples|summary)\.json$|report\.html$|recipe\.yaml$|\.lock$"
)
"""Live files that decide nothing and have no hash: logs, times, what the machine was, what a person reads."""


def trial(bench: Bench, number: int) -> None:
    """Flip, use, judge."""
    chance = bench.chance(number)
    toy = bench.toy()
    base = _base(toy)
    kinds = _files(base)
    kind = list(AFTER)[number % len(AFTER)]
    folder = bench.scratch / "trial"
    shutil.copytree(base, folder, symlinks=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(toy.recipe(folder / "run")), encoding="utf-8")
    for name in AFTER[kind]:
        _remove(folder / "run", name)
    name = chance.choice([n for n in kinds[kind] if (folder / "run" / n).exists()])
    path = folder / "run" / name
    data = bytearray(path.read_bytes())
    bit = chance.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))
    opened = folder / "opened"
    watch = [["bit_flips:watch", {"path": str(path.resolve()), "told": str(opened)}]]
    child = _use(toy, folder, kind, chance.randrange(3), watch)
    child.wait()
    answer = _judge(child, base / "run", folder / "run", name, is_read=opened.exists())
    counts = bench.options.setdefault("report", {})
    counts[answer] = counts.get(answer, 0) + 1


def _use(toy: Toy, folder: Path, kind: str, way: int, hooks: list) -> Child:
    """Start the command that reads what was hit."""
    run = str(folder / "run")
    task = [f"task.{split}=[{toy.scratch / 'task.tsv'}]" for split in ("train", "dev")]
    if kind == "model":
        verbs = [("evaluate", run), ("fill-mask", run, "the [MASK]"), ("finetune", run, *FINETUNE, *task)]
        return _start(toy, folder, *verbs[way], hooks=hooks)
    if kind == "finetune":
        return _start(toy, folder, "finetune", run, *FINETUNE, *task, hooks=hooks)
    if kind == "finetune-toy":
        hooks = [*hooks, ["bit_flips:read_finetuned", {"folder": f"{run}/finetune-toy"}]]
        return toy.start(folder, verb="finetune", hooks=hooks)
    return toy.start(folder, verb="pretrain", hooks=hooks)


def _start(toy: Toy, folder: Path, *words: str, hooks: Sequence[Any] = ()) -> Child:
    conditions = {"hooks": list(hooks)} | ({"mutant": toy.mutant} if toy.mutant else {})
    return fork(words, folder / "said.txt", conditions=conditions)


def watch(path: str, told: str) -> None:
    """Write down that this process opens a file to read it; what libraries open by themselves is not seen."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | Path):
            mode, flags = arguments[1], arguments[2]
            is_write = (isinstance(mode, str) and set(mode) & set("wax")) or flags & (os.O_WRONLY | os.O_RDWR)
            if not is_write and os.path.realpath(os.fsdecode(arguments[0])) == path:
                os.close(os.open(told, os.O_WRONLY | os.O_CREAT))

    sys.addaudithook(hook)


def read_finetuned(folder: str) -> None:
    """Read a fine-tune's model and scores, as a program would, and end."""
    from seedbed.artifact import open_verified
    from seedbed.errors import SeedbedError
    from seedbed.models.classifier import read_classifier
    from seedbed.tokenizer.tokenizer import Tokenizer

    code = 0
    try:
        artifact = open_verified(folder)
        for name in artifact.files:
            if not name.startswith("model/"):
                artifact.file(name)
        read_classifier(Path(folder) / "model")
        Tokenizer.load(Path(folder) / "model")
    except SeedbedError as error:
        os.write(2, f"error: {error.message}\n".encode())
        code = error.exit_code
    os._exit(code)


def _judge(child: Child, whole: Path, run: Path, name: str, *, is_read: bool) -> str:
    """Return which right answer it was; raise for a wrong one."""
    said = child.output()
    if "Traceback" in said:
        raise Failure(f"{name}: looks like a bug: {said[-1500:]}")
    if PLAIN.search(name):
        if child.code == 0:
            _same_weights(whole, run, name)
        elif child.code not in (3, 8, 9):
            raise Failure(f"{name}: exit code {child.code}: {said[-800:]}")
        return "without a hash"
    if child.code == 8:
        place = Path(name).name
        if place not in said:
            raise Failure(f"{name} is not named: {said[-800:]}")
        hashes = len(set(re.findall(r"\b[0-9a-f]{64}\b", said)))
        # One that is no JSON any more has lost the hash it held; a flip may be in that hash.
        if hashes < 2 and place != "manifest.json" and not re.search(r"is damaged|, expected \S{64}", said):
            raise Failure(f"{name}: both hashes are not said: {said[-800:]}")
        return "refused"
    if child.code == 0 and (not is_read or "passed over" in said):
        _same_weights(whole, run, name)
        return "passed over" if is_read else "not read"
    raise Failure(f"{name}: exit code {child.code}, and nothing said of it: {said[-800:]}")


def _same_weights(whole: Path, run: Path, name: str) -> None:
    ours, theirs = newest(whole), newest(run)
    for file in ("model.safetensors", "optimizer.safetensors"):
        if (ours / file).read_bytes() != (theirs / file).read_bytes():
            raise Failure(f"{name}: another run came of it")
    models = [place / "model" / "model.safetensors" for place in (whole, run)]
    if models[0].read_bytes() != models[1].read_bytes():
        raise Failure(f"{name}: another model came of it")


def _base(toy: Toy) -> Path:
    """Return a finished run with a fine-tune, made once, without the mutant."""
    base = toy.folder / "base"
    if not base.exists():
        making = Toy(toy.scratch)
        shutil.rmtree(toy.folder / "making", ignore_errors=True)
        making.stages()  # writes the text
        folder = making.new_run(toy.folder / "making", has_stages=False)
        making.finish(folder)
        lines = [f"the {a} sings {i}\t{a}" for i in range(12) for a in ("cat", "dog")]
        (toy.scratch / "task.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
        task = [f"task.{split}=[{toy.scratch / 'task.tsv'}]" for split in ("train", "dev")]
        child = _start(making, folder, "finetune", str(folder / "run"), *FINETUNE, *task)
        if child.wait():
            raise Failure(child.output()[-1500:])
        folder.rename(base)
        (base / "said.txt").unlink()
    return base


def _files(base: Path) -> dict[str, list[str]]:
    """Return the files of a run by kind, named through the pointers."""
    run = base / "run"
    kinds: dict[str, list[str]] = {kind: [] for kind in AFTER}
    for kind in AFTER:
        place = run / ("pretrain/checkpoints" if kind == "checkpoints" else kind)
        if kind != "live":
            kinds[kind] = [
                f"{place.relative_to(run)}/{p.relative_to(place)}" for p in place.rglob("*") if p.is_file()
            ]
    live = [p for p in [*run.glob("*"), run / ".lock", *(run / "pretrain").glob("*")] if p.is_file()]
    kinds["live"] = [str(p.relative_to(run)) for p in live]
    for names in kinds.values():
        names[:] = sorted(n for n in names if (run / n).stat().st_size)
    return kinds


def _remove(run: Path, name: str) -> None:
    place = run / name
    if place.is_symlink():
        shutil.rmtree(place.resolve())
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)


def _trusting() -> None:
    """No file is hashed when it is read."""
    from seedbed import artifact

    def file(self: artifact.Artifact, name: str) -> Path:
        return self.path / name

    artifact.Artifact.file = file


def _unsealed() -> None:
    """What decides how a run goes on is read without its hash."""
    import json

    from seedbed.commands import planned_run, resuming

    def read(path: Path) -> dict:
        return {k: v for k, v in json.loads(path.read_bytes()).items() if k != "sha256"}

    planned_run.read_sealed_json = resuming.read_sealed_json = read


MUTANTS = {"nothing hashed": _trusting, "unsealed": _unsealed}
