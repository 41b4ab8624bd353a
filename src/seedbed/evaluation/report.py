"""Write the report of a run as one HTML page: what went in, what came out, and what the figures mean.

A pure function of plain values; reading them from a run folder is `commands/report.py`'s part, drawing is `page.py`'s.
Every section that has no data is left out, so that the report of an unfinished run is a shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from seedbed.evaluation.report_texts import KNOWS, LABELS, PARAGRAPHS
from seedbed.page import Chart, Page, Reference, Series, format_number

__all__ = ["RunReport", "Sample", "build_report"]

_RATE_POINTS = 80


@dataclass(frozen=True, slots=True)
class Sample:
    """What a model says to a text, before and after training.

    Attributes:
        prompt: the text given; "[MASK]" stands where something is hidden.
        before, after: (token, probability) guesses, most likely first, or the text it went on with.
        truth: what the author wrote there, if known.
    """

    prompt: str
    before: Sequence[tuple[str, float]] | str
    after: Sequence[tuple[str, float]] | str
    truth: str = ""


@dataclass(frozen=True, slots=True)
class RunReport:
    """Hold what a report is made of: plain values, as they stand in the run's files.

    Attributes:
        name: of the run.
        language: of the captions; "zh" has Chinese first, with the English beside it.
        summary: `summary.json`: objective, family, parameters, valid, baselines, steps, tokens, train_seconds,
            tokens_per_second, machine, note.
        corpus: counts of the corpus artifact: splits, files, rejects, han_fraction.
        tokenizer: `report.json` of the tokenizer artifact.
        model: properties to list, for example preset, layers, width.
        metrics: lines of `metrics.jsonl`.
        timing: lines of `timing.jsonl`.
        samples: before and after training.
        commands: how to reproduce the run, one a line.
    """

    name: str
    language: Literal["en", "zh"] = "en"
    summary: Mapping[str, Any] = field(default_factory=dict)
    corpus: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    timing: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Sample] = ()
    commands: Sequence[str] = ()


def build_report(run: RunReport) -> str:
    """Return the report as a self-contained HTML page."""
    writer = _Writer(run)
    writer.result()
    writer.curve()
    writer.continued()
    writer.beside()
    writer.samples()
    writer.corpus()
    writer.tokenizer()
    writer.model()
    writer.training()
    writer.reproduce()
    return writer.page.html()


class _Writer:
    """Write one report, section by section."""

    def __init__(self, run: RunReport) -> None:
        self.run = run
        self.summary = run.summary
        self.baselines: Mapping[str, float] = run.summary.get("baselines", {})
        self.objective = str(run.summary.get("objective", ""))
        self.terms = [  # "old." is the text of the run before, which is watched and not learned
            key.removesuffix(".loss")
            for key in self.summary.get("valid", {})
            if key.endswith(".loss") and not key.startswith("old.")
        ]
        self.steps = [line for line in run.metrics if line.get("kind") == "step"]
        self.validations = [line for line in run.metrics if line.get("kind") == "validation"]
        lead = " · ".join(
            str(part) for part in (self.objective, self.summary.get("family"), self._size(run.corpus)) if part
        )
        self.page = Page(f"{self.heading('title')}: {run.name}", run.language, lead=lead)

    def label(self, key: str) -> str:
        """Return a label in the report's language; an unknown key reads as it is."""
        english, chinese = LABELS.get(key, (key.replace("_", " "), key.replace("_", " ")))
        return chinese if self.run.language == "zh" else english

    def heading(self, key: str) -> str:
        """Return a heading; in Chinese reports the English stands behind it."""
        english, chinese = LABELS[key]
        return f"{chinese} · {english}" if self.run.language == "zh" else english

    def explain(self, key: str, **values: Any) -> None:
        """Add a paragraph; in Chinese reports the Chinese first, the English small below."""
        if key not in PARAGRAPHS:
            return
        english, chinese = (text.format(**values) for text in PARAGRAPHS[key])
        if self.run.language == "zh":
            self.page.text(chinese)
        self.page.text(english, is_soft=self.run.language == "zh")

    def result(self) -> None:
        """What came out, in large figures and one sentence."""
        scores, loss = self.summary.get("valid", {}), self.summary.get("valid_loss")
        if loss is None:
            return
        self.page.section(self.heading("result"))
        tiles = [(f"{loss:.3f}", self.label("validation_loss"))]
        if "unigram" in self.baselines:
            tiles.append((f"{self.baselines['unigram'] - loss:.2f}", self.label("under_unigram")))
        if "accuracy" in scores:
            tiles.append((f"{scores['accuracy']:.1%}", self.label("accuracy")))
        for key, write in (("parameters", format_number), ("tokens_per_second", format_number)):
            if key in self.summary:
                tiles.append((write(float(self.summary[key])), self.label(key)))
        if "train_seconds" in self.summary:
            tiles.append((_duration(float(self.summary["train_seconds"])), self.label("train_time")))
        self.page.tiles(tiles)
        self.explain(self.objective)
        if {"unigram", "bigram"} <= self.baselines.keys():
            unigram, bigram = (self.baselines[name] - loss for name in ("unigram", "bigram"))
            verdict = "above_unigram" if unigram < 0.1 else "above_bigram" if bigram <= 0 else "below_bigram"
            self.explain(verdict, unigram=unigram, bigram=bigram)
        if self.summary.get("note"):
            self.page.text(str(self.summary["note"]))

    def curve(self) -> None:
        """The loss over steps with the baselines drawn in."""
        if not self.steps and not self.validations:
            return
        raw = [(float(line["window"]), float(line["loss"])) for line in self.steps]
        valid = [(float(line["window"]), float(line["loss"])) for line in self.validations]
        series = [
            Series(self.label("train_raw"), raw, is_faint=True, color=0),
            Series(self.label("train_loss"), _smooth(raw), color=0),
            Series(self.label("valid_loss"), valid, has_markers=True, color=1),
        ]
        self.page.section(self.heading("curve"))
        self.page.line_chart(
            Chart(
                title=self.heading("loss_chart"),
                x_label=self.label("step"),
                y_label=self.label("loss_axis"),
                series=[one for one in series if one.points],
                references=[
                    Reference(self.label(name), value)
                    for name, value in self.baselines.items()
                    if name in LABELS
                ],
            )
        )
        bad = [line["window"] for line in self.steps if line.get("is_skipped")]
        if bad:
            shown = ", ".join(str(window) for window in bad[:20]) + (" ..." if len(bad) > 20 else "")
            self.explain("skipped", count=len(bad), windows=shown)
        for line in self.run.metrics:
            if line.get("kind") == "rollback":
                self.explain("rolled_back", to=line["to"], window=line["window"])
        for term in self.terms:
            self._term_curve(term)
        self.explain("curve")

    def _term_curve(self, term: str) -> None:
        """One part of the loss over steps, with its own baselines."""
        trained = [
            (float(line["window"]), float(line["losses"][term]))
            for line in self.steps
            if term in line.get("losses", {})
        ]
        valid = [
            (float(line["window"]), float(line[f"{term}.loss"]))
            for line in self.validations
            if f"{term}.loss" in line
        ]
        series = [
            Series(self.label("train_loss"), _smooth(trained), color=0),
            Series(self.label("valid_loss"), valid, has_markers=True, color=1),
        ]
        self.page.line_chart(
            Chart(
                title=self.heading("terms_chart").format(term=term.replace("_", " ")),
                x_label=self.label("step"),
                y_label=self.label("loss_axis"),
                series=[one for one in series if one.points],
                references=[Reference(self.label(name), value) for name, value in self._floors(term).items()],
            )
        )

    def _floors(self, term: str) -> dict[str, float]:
        """Return the baselines of one part of the loss."""
        return {
            name.removeprefix(f"{term}."): value
            for name, value in self.baselines.items()
            if name.startswith(f"{term}.")
        }

    def continued(self) -> None:
        """Loss on the new and the old text from before the first step, with the limit on forgetting drawn in."""
        said = self.summary.get("continued", {})
        old = [
            (float(line["window"]), float(line["old.loss"]))
            for line in self.validations
            if "old.loss" in line
        ]
        if not said and not old:
            return
        self.page.section(self.heading("continued"))
        if said:
            self.page.text(f"{said['sentence'][:1].upper()}{said['sentence'][1:]}.")
        if old and not said.get("keeps_validation"):
            new = [(float(line["window"]), float(line["loss"])) for line in self.validations]
            limit = said.get("max_forgetting")
            self.page.line_chart(
                Chart(
                    title=self.heading("domains_chart"),
                    x_label=self.label("step"),
                    y_label=self.label("loss_axis"),
                    series=[
                        Series(self.label("new_text"), new, has_markers=True, color=1),
                        Series(self.label("old_text"), old, has_markers=True, color=0),
                    ],
                    references=[] if limit is None else [Reference(self.label("limit"), old[0][1] + limit)],
                )
            )
        rows = [
            [self.label(f"{name}_text"), f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"]
            for name in (("new",) if said.get("keeps_validation") else ("new", "old"))
            if (before := said.get(f"{name}_loss_before")) is not None
            and (after := said.get(f"{name}_loss_after")) is not None
        ]
        if rows:
            header = [self.label(key) for key in ("text_size", "loss_before", "loss_after", "change")]
            self.page.table(header, rows, align="lrrr")
        self.explain("continued")

    def beside(self) -> None:
        """The final figures beside the baselines."""
        scores, loss = self.summary.get("valid", {}), self.summary.get("valid_loss")
        if loss is None or not self.baselines:
            return
        self.page.section(self.heading("beside"))
        if self.terms:
            self._beside_terms(scores)
            return
        rows = [
            [self.label(name), f"{value:.3f}", format_number(_perplexity(value)), "", self._knows(name)]
            for name, value in self.baselines.items()
        ]
        right = " / ".join(f"{scores[name]:.1%}" for name in ("accuracy", "accuracy_top5") if name in scores)
        own = [
            self.label("this_model"),
            f"{loss:.3f}",
            format_number(_perplexity(loss)),
            right,
            self._knows(self.objective),
        ]
        header = [self.label(key) for key in ("predictor", "loss", "perplexity")]
        header += [self.label("accuracies"), self.label("knows")]
        self.page.table(header, [*rows, own], align="lrrrl")
        targets = scores.get("targets")
        self.explain("beside", targets=format_number(float(targets)) if targets else "")

    def _beside_terms(self, scores: Mapping[str, float]) -> None:
        """The parts of a sum, each beside its own baselines: the sum itself has no perplexity."""
        names = [name for name in ("uniform", "unigram", "bigram", "chance") if self._has_floor(name)]
        rows = []
        for term in self.terms:
            floors, right = self._floors(term), scores.get(f"{term}.accuracy")
            rows.append(
                [
                    term.replace("_", " "),
                    f"{scores[f'{term}.loss']:.3f}",
                    *(f"{floors[name]:.3f}" if name in floors else "" for name in names),
                    "" if right is None else f"{right:.1%}",
                ]
            )
        header = [self.label(key) for key in ("term", "loss", *names, "accuracy")]
        self.page.table(header, rows, align="l" + "r" * (len(names) + 2))
        self.explain("beside_terms")

    def _has_floor(self, name: str) -> bool:
        return any(key.endswith(f".{name}") for key in self.baselines)

    def samples(self) -> None:
        """What the model says, before and after."""
        if not self.run.samples:
            return
        self.page.section(self.heading("samples"))
        is_text = any(isinstance(sample.after, str) for sample in self.run.samples)
        self.explain("samples_causal" if is_text else "samples_masked")
        has_truth = any(sample.truth for sample in self.run.samples)
        header = [self.label("prompt"), self.label("before"), self.label("after")]
        rows = []
        for sample in self.run.samples:
            row = [sample.prompt, _guesses(sample.before), _guesses(sample.after)]
            rows.append([*row, sample.truth] if has_truth else row)
        self.page.table([*header, self.label("truth")] if has_truth else header, rows)

    def corpus(self) -> None:
        """What text there was and what was left out."""
        splits = self.run.corpus.get("splits", {})
        if not splits:
            return
        self.page.section(self.heading("corpus"))
        columns = [c for c in ("documents", "lines", "characters") if any(c in s for s in splits.values())]
        rows = [
            [self.label(split), *(f"{counts.get(c, 0):,}" for c in columns), _bytes(counts.get("bytes", 0))]
            for split, counts in splits.items()
            if counts.get("documents")
        ]
        header = [self.label(key) for key in ("split", *columns, "text_size")]
        self.page.table(header, rows, align="l" + "r" * (len(columns) + 1))
        self.explain("corpus")
        facts = []
        if "files" in self.run.corpus:
            facts.append([self.label("files"), f"{self.run.corpus['files']:,}"])
        if "han_fraction" in self.run.corpus:
            facts.append([self.label("han_fraction"), f"{self.run.corpus['han_fraction']:.1%}"])
        if facts:
            self.page.table([], facts)
        rejects = {kind: count for kind, count in self.run.corpus.get("rejects", {}).items() if count}
        if rejects:
            listed = [[kind.replace("_", " "), f"{count:,}"] for kind, count in rejects.items()]
            self.page.table([self.label("left_out"), self.label("count")], listed, align="lr")

    def tokenizer(self) -> None:
        """How text became tokens."""
        report = self.run.tokenizer
        if not report:
            return
        self.page.section(self.heading("tokenizer"))
        vocab_size = report.get("vocab_size")
        self.explain(
            "tokenizer",
            vocab_size=f"{vocab_size:,}" if vocab_size else "",
            algorithm=report.get("algorithm", ""),
        )
        measured = {k: v for k, v in report.get("validation", {}).items() if isinstance(v, Mapping)}
        keys = ("tokens", "bytes_per_token", "tokens_per_word", "unknown_rate")
        if len(measured) == 2:  # one language and the sum over it
            measured.pop("all", None)
        rows = [
            [
                self.label(language),
                f"{figures.get('tokens', 0):,}",
                f"{figures.get('bytes_per_token', 0):.2f}",
                f"{figures.get('tokens_per_word', 0):.2f}",
                f"{figures.get('unknown_rate', 0):.3%}",
            ]
            for language, figures in measured.items()
        ]
        if rows:
            self.page.table([self.label(key) for key in ("language", *keys)], rows, align="lrrrr")

    def model(self) -> None:
        """What kind of model learned."""
        facts = {key: self.summary[key] for key in ("family", "parameters") if key in self.summary}
        facts |= self.run.model
        if facts:
            self.page.section(self.heading("model"))
            self._properties(facts)

    def training(self) -> None:
        """Learning rate and throughput."""
        rates = [(float(line["window"]), float(line["learning_rate"])) for line in self.steps]
        throughput = _throughput(self.steps, self.run.timing)
        facts = {key: self.summary[key] for key in ("steps", "tokens") if key in self.summary}
        if not rates and not facts:
            return
        self.page.section(self.heading("training"))
        for title, axis, points, color in (
            ("learning_rate", "", rates, 2),
            ("throughput", "throughput_axis", throughput, 3),
        ):
            if points:
                self.page.line_chart(
                    Chart(
                        title=self.heading(title),
                        x_label=self.label("step"),
                        y_label=self.label(axis) if axis else "",
                        series=[Series(self.label(title), points, color=color)],
                        from_zero=True,
                    )
                )
        self.explain("training")
        if facts:
            self._properties(facts)

    def reproduce(self) -> None:
        """Commands, machine and versions."""
        machine = self.summary.get("machine", {})
        if not self.run.commands and not machine:
            return
        self.page.section(self.heading("reproduce"))
        self.explain("reproduce")
        if self.run.commands:
            self.page.code("\n".join(self.run.commands))
        if machine:
            self._properties(machine)

    def _properties(self, facts: Mapping[str, Any]) -> None:
        self.page.table([], [[self.label(key), _plain(value)] for key, value in facts.items()])

    def _knows(self, name: str) -> str:
        english, chinese = KNOWS.get(name, ("", ""))
        return chinese if self.run.language == "zh" else english

    def _size(self, corpus: Mapping[str, Any]) -> str:
        total = sum(counts.get("bytes", 0) for counts in corpus.get("splits", {}).values())
        return _bytes(total) if total else ""


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the mean over about a fiftieth of the run around each step, narrower towards the ends: it does not lag."""
    known = [(x, y) for x, y in points if math.isfinite(y)]  # a skipped step has no loss
    sums = [0.0, *accumulate(y for _, y in known)]
    reach = len(known) // 100
    smoothed: list[tuple[float, float]] = []
    for index, (x, _) in enumerate(known):
        width = min(reach, index, len(known) - 1 - index)
        first, stop = index - width, index + width + 1
        smoothed.append((x, (sums[stop] - sums[first]) / (stop - first)))
    return smoothed


def _throughput(
    steps: Sequence[Mapping[str, Any]], timing: Sequence[Mapping[str, Any]]
) -> list[tuple[float, float]]:
    """Return tokens a second over stretches of steps; the first step, which warms caches up, is left out."""
    seconds = {line["window"]: float(line["seconds"]) for line in timing if line.get("kind") == "step"}
    known = [line for line in steps[1:] if line["window"] in seconds]
    points: list[tuple[float, float]] = []
    size = max(1, len(known) // _RATE_POINTS)
    for start in range(0, len(known) - size + 1, size):
        part = known[start : start + size]
        spent = sum(seconds[line["window"]] for line in part)
        tokens = sum(line["tokens"] / line["window"] for line in part)
        if spent > 0:
            points.append((float(part[-1]["window"]), tokens / spent))
    return points


def _guesses(value: Sequence[tuple[str, float]] | str) -> str:
    return value if isinstance(value, str) else " · ".join(f"{token} {_percent(p)}" for token, p in value)


def _percent(probability: float) -> str:
    return f"{probability:.0%}" if probability >= 0.01 else "<1%"


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else format_number(value, digits=4)
