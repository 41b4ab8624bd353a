from __future__ import annotations

import re
import string
from dataclasses import fields, replace

import pytest

from seedbed.evaluation.report import RunReport, Sample, _smooth, _throughput, build_report
from seedbed.evaluation.report_texts import KNOWS, LABELS, PARAGRAPHS
from seedbed.objectives import OBJECTIVES
from seedbed.objectives.combination import COMBINATIONS

METRICS = [
    {"kind": "step", "window": w, "loss": 9 - w / 10, "learning_rate": 1e-3 * w / 40, "tokens": 512 * w}
    for w in range(1, 41)
] + [{"kind": "validation", "window": w, "loss": 9.1 - w / 10} for w in (10, 20, 30, 40)]
TIMING = [{"kind": "step", "window": w, "seconds": 0.25} for w in range(1, 41)]
RUN = RunReport(
    name="toy",
    summary={
        "objective": "masked_lm",
        "family": "modernbert",
        "parameters": 5_312_000,
        "valid_loss": 5.1,
        "valid": {"loss": 5.1, "accuracy": 0.312, "accuracy_top5": 0.503, "targets": 2432.0},
        "baselines": {"uniform": 9.01, "unigram": 6.28, "bigram": 5.22},
        "steps": 40,
        "tokens": 20_480,
        "train_seconds": 183.2,
        "tokens_per_second": 2048.0,
        "note": "cut to 40 steps",
        "machine": {"torch": "2.13.0", "threads": 2},
    },
    corpus={
        "splits": {
            "train": {"documents": 104, "lines": 9012, "characters": 1_698_000, "bytes": 1_701_223},
            "test": {"documents": 0, "lines": 0, "characters": 0, "bytes": 0},
        },
        "files": 6,
        "rejects": {"invalid_utf8": 2, "short": 0},
        "han_fraction": 0.25,
    },
    tokenizer={
        "algorithm": "wordpiece",
        "vocab_size": 8192,
        "validation": {
            "all": {"tokens": 1900, "bytes_per_token": 4.2, "tokens_per_word": 1.2, "unknown_rate": 0.0},
            "longest_tokens": ["somewhere"],
        },
    },
    model={"preset": "mini"},
    metrics=METRICS,
    timing=TIMING,
    samples=[Sample("cried [MASK]", [("##x", 0.0004)], [("alice", 0.62)], "alice")],
    commands=["seedbed run recipe.yaml"],
)


def test_the_figures_of_the_run_are_on_the_page() -> None:
    html = build_report(RUN)
    for text in (
        "5.100", "1.18", "31.2%", "5.31M", "3.1 min",  # tiles: loss, nats below unigram, accuracy, size, time
        "uniform 9.01", "unigram 6.28", "bigram 5.22",  # reference lines
        "31.2% / 50.3%", "2,432", "cut to 40 steps",
        "1.70 MB", "invalid utf8", "25.0%", "8,192", "wordpiece", "4.20",
        "cried [MASK]", "##x &lt;1%", "alice 62%",
        "modernbert", "mini", "2.13.0", "seedbed run recipe.yaml",
    ):  # fmt: skip
        assert text in html, text
    assert html.count('<div class="chart">') == 3
    assert "short" not in html  # nothing was left out for that reason
    assert "0 B" not in html  # an empty split is not listed


def test_it_is_a_pure_function_and_self_contained() -> None:
    assert build_report(RUN) == build_report(RUN)
    assert "http" not in build_report(RUN).replace("http-equiv", "")


def test_whatever_a_corpus_holds_stays_text() -> None:
    evil = "<script>alert(1)</script>"
    html = build_report(
        replace(
            RUN,
            name=evil,
            samples=[Sample(evil, [(evil, 0.5)], evil, evil)],
            commands=[evil],
            model={evil: evil},
            corpus={"splits": {evil: {"documents": 1}}, "rejects": {evil: 1}},
            summary={**RUN.summary, "family": evil, "note": evil, "machine": {evil: evil}},
        )
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 10


def test_a_chinese_report_has_both_languages() -> None:
    html = build_report(replace(RUN, language="zh"))
    assert '<html lang="zh">' in html
    assert "损失曲线 · How the loss fell" in html
    assert "遮住 15% 的词元" in html
    assert "15 % of the tokens are hidden" in html
    assert "一元 6.28" in html


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (6.25, "not clearly below the unigram"),
        (5.5, "not yet below the bigram"),
        (4.1, "1.12 below the bigram"),
    ],
)
def test_the_verdict_follows_the_baselines(loss: float, expected: str) -> None:
    html = build_report(replace(RUN, summary={**RUN.summary, "valid_loss": loss}))
    assert expected in html


@pytest.mark.parametrize("name", [f.name for f in fields(RunReport) if f.name not in ("name", "language")])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_section_without_data_is_left_out(name: str, language: str) -> None:
    empty = getattr(RunReport("x"), name)
    shorter = build_report(replace(RUN, language=language, **{name: empty}))  # type: ignore[arg-type]
    assert len(shorter) < len(build_report(replace(RUN, language=language)))  # type: ignore[arg-type]
    assert "<h1>" in build_report(RunReport("x", language=language))  # type: ignore[arg-type]


def test_a_skipped_step_leaves_a_gap_and_nothing_else() -> None:
    metrics = [{**line, "loss": "nan"} if line["window"] == 7 else line for line in METRICS]
    html = build_report(replace(RUN, metrics=metrics))
    assert ">nan" not in html
    assert len(_smooth([(float(m["window"]), float(m["loss"])) for m in metrics[:40]])) == 39


@pytest.mark.parametrize("language", ["en", "zh"])
def test_skipped_steps_and_rollbacks_are_told(language: str) -> None:
    metrics = [line | {"is_skipped": True} if line["window"] in (5, 6, 7) else line for line in METRICS]
    metrics.append({"kind": "rollback", "window": 7, "from": 7, "to": 4, "first_bad": 5, "rows": {}})
    html = build_report(replace(RUN, metrics=metrics, language=language))
    assert "5, 6, 7" in html
    assert "went back to the weights of step 4" in html
    assert ("退回第 4 步" in html) == (language == "zh")
    assert "not finite" not in build_report(RUN)


def test_smoothing_does_not_lag_behind_a_line() -> None:
    line = [(float(x), 9 - 0.01 * x) for x in range(600)]
    assert _smooth(line) == [(x, pytest.approx(y, abs=1e-9)) for x, y in line]
    noisy = [(x, y + (0.5 if int(x) % 2 else -0.5)) for x, y in line]
    inside = _smooth(noisy)[50:-50]
    assert max(abs(y - line[int(x)][1]) for x, y in inside) < 0.1


def test_throughput_is_tokens_over_seconds() -> None:
    steps = METRICS[:40]
    points = _throughput(steps, TIMING)
    assert all(y == pytest.approx(2048) for _, y in points)
    slow = [{**line, "seconds": 1.0} if line["window"] == 1 else line for line in TIMING]
    assert _throughput(steps, slow) == points  # the first step warms up
    assert _throughput(steps, []) == []


def test_texts_of_both_languages_fill_in_the_same_values() -> None:
    for table in (LABELS, PARAGRAPHS, KNOWS):
        for key, (english, chinese) in table.items():
            names = [{n for _, n, _, _ in string.Formatter().parse(t) if n} for t in (english, chinese)]
            assert names[0] == names[1], key
            assert english.isascii(), key
            assert re.search(r"[\u4e00-\u9fff]", chinese), key


def test_the_parts_of_a_loss_stand_beside_their_own_baselines() -> None:
    valid = {"masked_lm.loss": 5.5, "masked_lm.accuracy": 0.21, "sentence_order.loss": 0.6, "loss": 6.1}
    floors = {"masked_lm.unigram": 7.04, "sentence_order.chance": 0.69, "chance": 7.73}
    metrics = [
        {**line, "losses": {"masked_lm": 6.0, "sentence_order": 0.7}}
        if line["kind"] == "step"
        else {**line, "masked_lm.loss": 5.6, "sentence_order.loss": 0.65}
        for line in METRICS
    ]
    summary = {**RUN.summary, "objective": "sentence_order", "valid": valid, "valid_loss": 6.1}
    html = build_report(replace(RUN, summary={**summary, "baselines": floors}, metrics=metrics))
    assert html.count('<div class="chart">') == 3 + 2  # the sum, each part, rate, throughput
    for text in ("masked lm: loss and baselines", "unigram 7.04", "chance 0.69", "chance 7.73", "21.0%"):
        assert text in html, text
    assert "perplexity" not in html.lower()  # of a sum it means nothing


def test_every_strategy_is_explained() -> None:
    supervised = {"classification", "supervised_generation"}  # parts of a mixture
    assert {*OBJECTIVES, *COMBINATIONS} - supervised <= PARAGRAPHS.keys()


def test_a_continued_run_shows_both_texts_and_what_changed() -> None:
    continued = {
        "new_loss_before": 6.105, "new_loss_after": 5.739, "gained": 0.366,
        "old_loss_before": 6.093, "old_loss_after": 6.218, "forgotten": 0.125,
        "max_forgetting": 0.2, "stopped_because": "", "sentence": "on the new text it gained 0.366 nats",
    }  # fmt: skip
    metrics = [
        {"kind": "validation", "window": w, "loss": 6 - w / 9, "old.loss": 6 + w / 9} for w in (0, 1, 2)
    ]
    valid = {**RUN.summary["valid"], "old.loss": 6.218, "old.accuracy": 0.2}
    summary = {**RUN.summary, "valid": valid, "continued": continued}
    html = build_report(replace(RUN, summary=summary, metrics=metrics))
    assert "part of the loss" not in html  # the old text is watched, not learned
    for text in (
        "On the new text it gained 0.366 nats.",
        "limit on forgetting 6.20",
        "-0.366",
        "+0.125",
        "31.2% / 50.3%",
    ):
        assert text in html, text
    assert "new text" not in build_report(RUN)
