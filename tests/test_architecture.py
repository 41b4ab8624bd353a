"""Hold the direction of imports: along the pipeline, one way (docs/architecture.md draws the table)."""

from __future__ import annotations

import ast
from pathlib import Path

import seedbed

ROOT = Path(seedbed.__file__).parent

RANKS: dict[str, int] = {
    **dict.fromkeys(
        [
            "errors",
            "config",
            "artifact",
            "runtime",
            "document",
            "batch",
            "page",
            "progress",
            "hashing",
            "lock",
            "tensors",
        ],
        0,
    ),
    **dict.fromkeys(["corpus", "tokenizer", "models", "optim"], 1),
    **dict.fromkeys(["data", "tasks", "metrics", "generation"], 2),
    "objectives": 3,
    **dict.fromkeys(["training", "evaluation"], 4),
    **dict.fromkeys(["finetune", "compress", "export", "explain", "serve"], 5),
    **dict.fromkeys(["compare", "preflight", "diagnose"], 6),
    **dict.fromkeys(["api", "recipe"], 7),
    "commands": 8,
    "cli": 9,
    "__main__": 10,
}
WITHIN_RANK_0 = {
    "errors",
    "config",
}  # what rank 0 may import of itself; config only where a module has a config


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def violations(path: Path, source: str) -> list[str]:
    """Every import that goes the wrong way; imports in functions and under TYPE_CHECKING count too."""
    own = part_of(path)
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.append(f"{path}:{node.lineno}: relative import")
                continue
            modules = [node.module or ""]
            if node.module == "seedbed":
                modules = [f"seedbed.{alias.name}" for alias in node.names]
        for module in modules:
            if not module.startswith("seedbed."):
                continue
            other = module.split(".")[1]
            if other == own or other == "__version__":
                continue
            if other not in RANKS:
                found.append(f"{path}:{node.lineno}: {other} has no rank")
            elif RANKS[own] == 0 and RANKS[other] == 0:
                if other not in WITHIN_RANK_0:
                    found.append(f"{path}:{node.lineno}: {own} imports {other} within rank 0")
            elif RANKS[other] >= RANKS[own]:
                found.append(
                    f"{path}:{node.lineno}: {own} (rank {RANKS[own]}) imports {other} (rank {RANKS[other]})"
                )
    return found


def test_imports_run_one_way():
    files = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")
    assert len(files) > 50
    assert [v for path in files for v in violations(path, path.read_text(encoding="utf-8"))] == []


def test_the_check_finds_violations():
    """The test above could not fail if this did not."""
    path = ROOT / "models" / "x.py"
    for line in (
        "from seedbed.training.step import train_step",
        "import seedbed.tokenizer.special",
        "def f():\n    from seedbed.objectives import OBJECTIVES",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from seedbed.data import store",
        "from . import y",
        "from seedbed.nowhere import z",
    ):
        assert violations(path, line), line
    assert not violations(path, "from seedbed.errors import DataError\nfrom seedbed.batch import Batch")


def test_only_the_artifact_module_opens_manifests_and_nothing_unpickles():
    """No pickle, no eval, no code from artifacts."""
    banned = {"pickle", "marshal", "shelve", "dill", "joblib"}
    found = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name.split(".")[0] for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").split(".")[0]]
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("eval", "exec", "torch.load", "torch.save", "yaml.load", "np.load"):
                    found.append(f"{path}:{node.lineno}: {called}")
            found += [f"{path}:{node.lineno}: {name}" for name in names if name in banned]
    assert found == []


def test_help_is_instant():
    """Neither `import seedbed` nor the command line's table loads torch."""
    import subprocess
    import sys

    code = "import sys, seedbed.cli; seedbed.cli.main(['--help']); assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_verbs_declare_their_arguments_without_torch():
    import subprocess
    import sys

    code = (
        "import sys, seedbed.cli as c\n"
        "for verb in c.COMMANDS: assert c.main([verb, '--help']) == 0\n"
        "assert 'torch' not in sys.modules, 'a verb imports torch at the top'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_public_names_are_exactly_these():
    assert seedbed.__all__ == ["LoadedModel", "__version__", "load"]
    assert sorted(seedbed.__all__) == dir(seedbed)
    for name in seedbed.__all__:
        assert getattr(seedbed, name)
