"""The command line: documented exit codes, one line and a hint, clean standard output."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import seedbed
from seedbed import cli, errors
from seedbed.cli import COMMANDS, main
from seedbed.recipe import Recipe


def fails(capsys, *words: str) -> tuple[int, list[str]]:
    """Run a command that must fail in the promised form; return its exit code and its lines on standard error."""
    capsys.readouterr()
    code = main(words)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("error: ", "hint:  "))]
    assert len(said) == 2, captured.err
    assert lines[-2:] == said, captured.err
    return code, said


# --- exit codes ------------------------------------------------------------------------------------------------------

DOCUMENTED = {
    errors.SeedbedError: 1,
    errors.ConfigError: 2,
    errors.DependencyError: 2,
    errors.DataError: 3,
    errors.TaskError: 3,
    errors.MemoryLimitError: 4,
    errors.NumericError: 5,
    errors.DiskError: 6,
    errors.LockedError: 7,
    errors.IntegrityError: 8,
    errors.IncompatibleError: 9,
    errors.WorkerLostError: 10,
}


def test_every_error_class_has_its_documented_exit_code():
    family = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.SeedbedError)
    }
    assert family == set(DOCUMENTED)
    assert {kind: kind.exit_code for kind in family} == DOCUMENTED
    assert errors.__doc__ is not None
    for kind, code in DOCUMENTED.items():
        assert re.search(rf"\b{kind.__name__} +exit {code}\b", errors.__doc__), kind


@pytest.mark.parametrize("kind", DOCUMENTED, ids=lambda k: k.__name__)
def test_an_error_of_a_command_is_one_line_a_hint_and_its_code(kind, monkeypatch, capsys):
    from seedbed.commands import env

    def run(options: object) -> int:
        if kind is errors.DependencyError:
            raise kind("wandb", extra="track", needed_for="training.tracker")
        raise kind("the thing in a.txt, line 3, is bad.", hint="mend it")

    monkeypatch.setattr(env, "run", run)
    code, (said, hint) = fails(capsys, "env")
    assert code == DOCUMENTED[kind]
    assert said.startswith("error: the thing in a.txt") or "wandb" in said
    assert hint in ("hint:  mend it", "hint:  pip install 'seedbed[track]'")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 4, "out of memory"),
        (RuntimeError("broken"), 1, "this is a bug in seedbed"),
    ],
)
def test_what_is_no_error_of_ours_has_its_code_too(raised, code, said, monkeypatch, capsys):
    from seedbed.commands import env

    def run(options: object) -> int:
        raise raised

    monkeypatch.setattr(env, "run", run)
    assert main(["env"]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"]])
def test_a_reader_that_goes_away_is_no_error(words):
    """As in `seedbed config | head`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "seedbed", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_a_terminal_without_the_characters_gets_their_numbers():
    code = (
        "import sys, seedbed.commands.env as env; from seedbed.cli import main\n"
        "from seedbed.commands.console import Console\n"
        "env.run = lambda options: Console().result({}, text='\u6587\u5b57')\n"
        "sys.exit(main(['env']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == rb"\u6587\u5b57" + b"\n"


def test_what_a_model_wrote_is_printed_as_it_is(capsys):
    """No markup, no emoji codes, no wrapping."""
    from seedbed.commands.console import Console

    text = "[bold]a :heart: b[/bold] [MASK] " + "word " * 60
    Console().result({}, text=text)
    Console().note(text)
    captured = capsys.readouterr()
    assert captured.out == text + "\n"
    assert captured.err == text + "\n"


# --- words that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "nearest"), [("pretain", "pretrain"), ("fillmask", "fill-mask"), ("token", "tokens")]
)
def test_an_unknown_verb_names_the_nearest(word, nearest, capsys):
    code, said = fails(capsys, word)
    assert code == 2
    assert said == [f"error: there is no command {word!r}.", f"hint:  did you mean {nearest}?"]


def test_a_verb_like_nothing_points_to_the_help(capsys):
    assert fails(capsys, "xyzzy")[1][1] == "hint:  seedbed --help lists the commands"


def test_no_word_at_all_prints_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["corpus"], ["corpus", "r.yaml", "--nothing"], ["generate"]])
def test_wrong_options_are_usage_errors(words, capsys):
    assert main(words) == 2
    assert f"usage: seedbed {words[0]}" in capsys.readouterr().err


def test_options_may_stand_anywhere(capsys):
    code, said = fails(capsys, "corpus", "--json", "nowhere.yaml", "--strict", "training.sead=2", "--replace")
    assert code == 2
    assert "nowhere.yaml" in said[0]  # the words were understood; the recipe is what is missing


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_help_of_every_verb_teaches(verb, capsys):
    """A sentence on what it does, a meaning for each option, an example."""
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: seedbed {verb}" in text
    assert "example" in text
    assert f"  seedbed {verb}" in text


def test_the_overview_lists_every_verb_and_the_version(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, (module, line) in COMMANDS.items():
        assert re.search(rf"^  {verb} +{re.escape(line)}$", text, re.M)
        assert module.startswith("seedbed.commands.")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"seedbed {seedbed.__version__}\n"


# --- a whole run, and everything that can be said about it ------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A recipe and the run it makes in two steps."""
    folder = tmp_path_factory.mktemp("cli")
    texts = [
        f"Document {n}.\nthe seed bed is {'very ' * (n % 5)}wide\n种子{'大' * (n % 4)}床。" for n in range(30)
    ]
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "run": str(folder / "run"),
                "corpus": {"inputs": [str(folder / "text.txt")], "validation_fraction": 0.2},
                "tokenizer": {"vocab_size": 300},
                "data": {"row_length": 16},
                "model": {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "max_length": 32},
                "training": {"budget_steps": 2, "batch_tokens": 64, "micro_batch_rows": 4},
                "runtime": {"threads": 1},
            }
        ),
        encoding="utf-8",
    )
    assert main(["run", str(recipe)]) == 0
    return recipe


def test_json_is_all_there_is_on_standard_output(run, tmp_path):
    """In a process of its own, so that nothing a library prints escapes."""
    commands = [
        ["run", str(run), f"run={tmp_path / 'run'}", "--json"],
        ["corpus", str(run), "--json"],
        ["tokenizer", str(run), "--json"],
        ["tokens", str(run), "--json"],
        ["pretrain", str(run), "--json"],
        ["evaluate", str(run.parent / "run"), "--pll-tokens", "20", "--json"],
        ["fill-mask", str(run.parent / "run"), "the [MASK] bed", "--json"],
        ["env", "--json"],
    ]
    code = (
        "import sys, json\nfrom seedbed.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    assert main(words) == 0, words\n"
        "    sys.stdout.flush(); sys.stdout.write('\\0'); sys.stdout.flush()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    parts = result.stdout.split("\0")[:-1]
    assert len(parts) == len(commands)
    for words, part in zip(commands, parts, strict=True):
        assert isinstance(json.loads(part), dict), words
        assert "\x1b" not in part


def test_without_json_the_result_says_what_is_next(run, capsys):
    assert main(["run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "validation loss" in out
    assert "next:   seedbed fill-mask" in out
    assert "\x1b" not in out


def test_a_damaged_file_is_exit_8_and_named(run, capsys, tmp_path):
    assert main(["run", str(run), f"run={tmp_path / 'run'}"]) == 0
    weights = tmp_path / "run" / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    code, (said, _) = fails(capsys, "fill-mask", str(tmp_path / "run"), "the [MASK] bed")
    assert code == 8
    assert "model.safetensors" in said


def test_another_recipe_in_the_same_folder_is_exit_9_and_names_the_change(run, capsys):
    code, (said, hint) = fails(capsys, "corpus", str(run), "corpus.split_seed=3")
    assert code == 9
    assert "split_seed 0 -> 3" in said
    assert "--replace" in hint


def test_a_run_in_use_is_exit_7_and_names_the_owner(run, capsys):
    from seedbed.lock import owned

    with owned(run.parent / "run"):
        code, (said, _) = fails(capsys, "corpus", str(run))
    assert code == 7
    assert f"process {os.getpid()}" in said


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["corpus", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["corpus", "{recipe}", "trainning.seed=1"], 2, "unknown key trainning"),
        (["config", "trainning"], 2, "no section 'trainning'"),
        (["config", "training.sead=1"], 2, "unknown key training.sead"),
        (["corpus", "{recipe}", "run={tmp}/a", "corpus.inputs=[{tmp}/nowhere]"], 3, "nowhere"),
        (["corpus", "{recipe}", "run={tmp}/file/run"], 6, "file/run"),
        (["fill-mask", "{tmp}/nowhere", "a [MASK]"], 3, "nowhere"),
        (["fill-mask", "{run}", "no mask"], 3, "[MASK]"),
        (["generate", "{run}", "a"], 9, "masked model"),
        (["report", "{tmp}/nowhere"], 3, "nowhere"),
        (["evaluate", "{run}", "--text", "{tmp}/nowhere.txt"], 3, "nowhere.txt"),
    ],
)
def test_what_users_get_wrong(words, code, part, run, tmp_path, capsys):
    (tmp_path / "file").write_text("a file")
    filled = [w.format(recipe=run, tmp=tmp_path, run=run.parent / "run") for w in words]
    found, (said, _) = fails(capsys, *filled)
    assert found == code
    assert part in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.fault
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(run, tmp_path, number, code):
    folder = tmp_path / "run"
    words = [
        "run",
        str(run),
        f"run={folder}",
        "training.budget_steps=100000",
        "training.validation_steps=50000",
    ]
    process = subprocess.Popen([sys.executable, "-m", "seedbed", *words], stderr=subprocess.PIPE, text=True)
    metrics = folder / "pretrain" / "timing.jsonl"
    deadline = time.monotonic() + 60
    while (
        not (metrics.exists() and metrics.stat().st_size)
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "everything is saved" in err
    assert f"to go on: seedbed run {run}" in err
    assert "Traceback" not in err
    assert list((folder / "pretrain" / "checkpoints").glob("step-*"))


# --- config and env ----------------------------------------------------------------------------------------------------


def test_the_printed_recipe_parses_back(tmp_path, capsys):
    assert main(["config"]) == 0
    path = tmp_path / "recipe.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["config", "--recipe", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")
    assert Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))) == Recipe()


def test_one_section_is_printed_with_its_comments(capsys):
    assert main(["config", "training", "training.budget_minutes=7"]) == 0
    out = capsys.readouterr().out
    assert list(yaml.safe_load(out)) == ["training"]
    assert "  budget_minutes: 7.0" in out
    assert "# Train about this long" in out


def test_env_shows_versions_and_no_paths_names_or_secrets(capsys, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "s3cr3t-value")
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["seedbed"] == seedbed.__version__
    assert values["torch"]
    assert values["threads"] >= 1
    for name, value in values.items():
        assert str(value) in text or value is None, name
    import getpass
    import platform

    for private in (str(Path.home()), str(Path.cwd()), sys.prefix, "s3cr3t", platform.node(), "/"):
        assert private not in text.replace(platform.machine(), ""), private
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text)


def test_the_module_runs_as_the_command_does():
    result = subprocess.run([sys.executable, "-m", "seedbed", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"seedbed {seedbed.__version__}\n")
    assert cli.__doc__
