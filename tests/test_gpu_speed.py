"""benchmarks/gpu_speed.py: it says when there is no GPU, counts work as papers do, and our side runs."""

import importlib.util
from pathlib import Path

import pytest
import torch

from seedbed.models.gpt2 import GPT2Config


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[1] / "benchmarks" / "gpu_speed.py"
    spec = importlib.util.spec_from_file_location("gpu_speed", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # dataclasses look their module up
        patch.setitem(__import__("sys").modules, "gpu_speed", module)
        spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so(bench, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_work_is_six_operations_a_weight_and_attention(bench):
    """PaLM (2204.02311, appendix B): 6 N + 12 L H Q T a token, half of the attention where it is causal."""
    config = GPT2Config(preset="base", max_length=1024).build(vocab_size=50_257)
    layers = 12 * 12 * 768**2
    expected = 6 * (layers + 768 * 50_257) + 12 * 12 * 768 * 1024 / 2
    assert bench.flops_per_token(config, bench.CASES["gpt2"], 8, 1024) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_our_side_runs(bench, name, tmp_path):
    words = [
        "--device",
        "cpu",
        "--preset",
        "tiny",
        "--steps",
        "2",
        "--rows",
        "2",
        "--row-length",
        "32",
        "--vocab-size",
        "300",
    ]
    options = bench.parser().parse_args([*words, "--set", "runtime.threads=1"])
    options.model, options.folder = name, tmp_path
    bench.prepare_run(options)
    assert bench.ceiling(options)["teraflops"] > 0
    result = bench.ours(options)
    assert result["tokens_per_second"] > 0
    assert 4.0 < result["losses"][0] < 8.0  # 300 words, about
