"""The `brickwork` command."""

import os
import re
import subprocess
import sys
import warnings

import pytest

import brickwork
from brickwork import cli, options


def test_the_overview_lists_every_command(capsys):
    assert cli.main([]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in cli.COMMANDS)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "example" in output.lower() and f"brickwork {name}" in output


def test_help_is_quick_to_answer():
    """torch and diffusers take seconds to import: no parser waits for them."""
    names = [[]] + [name.split() for name in cli.COMMANDS]
    code = f"""
import sys
sys.argv = ["brickwork"]
from brickwork import cli
for words in {names!r}:
    try:
        cli.main([*words, "--help"])
    except SystemExit:
        pass
    assert not {{"torch", "diffusers", "transformers", "datasets"}} & set(sys.modules), words
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_nothing_is_imported_that_is_not_used(tmp_path):
    """A network alone, then a picture from the shell's command; what diffusers brings along is not ours."""
    code = """
import sys
sys.argv = ["brickwork"]
def absent(*names):
    assert not set(names) & set(sys.modules), set(names) & set(sys.modules)
from brickwork import cli, LegoTransformer2DModel
absent("diffusers.pipelines.pipeline_utils", "diffusers.models.unets.unet_2d", "diffusers.models.transformers",
       "diffusers.models.autoencoders.autoencoder_kl", "brickwork.pipelines", "brickwork.eval", "scipy.stats")
words = ["generate", "lego-avatars-64", "-n", "1", "--classes", "0", "--steps", "1", "--device", "cpu", "-o"]
assert cli.main([*words, sys.orig_argv[-1]]) == 0
absent("pandas", "matplotlib", "torchmetrics", "sklearn", "datasets", "torch._inductor.compile_fx",
       "diffusers.pipelines.stable_diffusion", "brickwork.training", "brickwork.eval.metrics", "brickwork.eval.judge",
       "brickwork.gen.networks.unet", "brickwork.gen.networks.transformer")
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_python_m_is_the_command():
    result = subprocess.run([sys.executable, "-m", "brickwork", "--version"], capture_output=True, text=True)
    assert result.stdout == f"{brickwork.__version__}\n"


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_options_have_one_style(name):
    """`-o` where something is written, `-n` beside `--count`; every command can be quiet or say more."""
    helped = cli.parser_of(name).format_help()
    names = cli.parser_of(name).option_names()
    assert {"--quiet", "--verbose"} <= set(names)
    assert not [option for option in names if not re.fullmatch(r"--[a-z0-9]+(-[a-z0-9]+)*", option)]
    assert "--output" not in names or "-o " in helped
    assert "--count" not in names or "-n " in helped


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(shell, capsys, tmp_path):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for name in cli.COMMANDS for word in name.split())
    assert "guidance" in script and "brick-schedule" not in script
    if shell == "bash":
        for words, found in ((("data", "se"), "select"), (("generate", "--sche"), "--schedule"), (("inf",), "info")):
            line = f"COMP_WORDS=(brickwork {' '.join(words)}); COMP_CWORD={len(words)}; "
            asked = script + line + '_brickwork; echo "${COMPREPLY[@]}"'
            answer = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
            assert answer.stdout.split() == [found], answer.stderr


# `calc` loads the extractor again, by the name that the reference keeps.
WITHOUT_HUB_OPTIONS = ["evaluate ref"]


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_what_loads_models_of_the_hub_takes_its_options(name):
    """A command whose help offers a model's name on the hub takes all of them, with the words of one table."""
    parser = cli.parser_of(name)
    told = [action.help or "" for action in parser._actions]
    models = [text for text in told if re.search(r"(hub id|name on the hub|hub name\b|on the Hub)", text)]
    if not [text for text in models if "Parquet" not in text] or name in WITHOUT_HUB_OPTIONS:
        return
    actions = parser._option_string_actions
    for option, how in options._HUB.items():
        assert f"--{option}" in actions, models
        assert actions[f"--{option}"].help in (how["help"], options._BASE[option]["help"])


def test_commands_with_models_of_the_hub_are_found():
    """As the test above finds them: it would pass if it found none."""
    with_options = [name for name in cli.COMMANDS if "--revision" in cli.parser_of(name)._option_string_actions]
    wanted = "app benchmark distill export generate info judge merge search seams sweep".split()
    assert {*wanted, "convert resadapter", "evaluate gen", "evaluate calc", "data cache"} <= {*with_options}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("`guidance_scale` is nan; give a number", "`--guidance-scale` is nan; give a number"),
        ("`num_inference_steps` is 0", "`--steps` is 0"),
        ("`height` is 3; see `config.height`", "`--height` is 3; see `config.height`"),
        ("give overwrite=True, or set overwrite", "give --overwrite, or add --overwrite"),
        ("`nothing_of_ours` is 3", "`nothing_of_ours` is 3"),
        ("'my_batch_size/x' lacks batch_size", "'my_batch_size/x' lacks --batch-size"),
    ],
)
def test_errors_speak_of_options(text, told):
    assert cli.as_options(text, cli.parser_of("generate")) == told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "x", "--guidence", "2"], "did you mean --guidance"),
        (["info", "--heigt=3", "x"], "did you mean --height"),
        (["convbn", "--only", "cots"], "did you mean cost?"),
    ],
)
def test_a_slip_in_an_option_or_a_choice(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_slip_in_the_second_word_of_a_group(capsys):
    assert cli.main(["evaluate", "gne"]) == 2
    told = capsys.readouterr().err
    assert "evaluate compare" in told and "did you mean evaluate gen?" in told


def loud(parser):
    def run(args):
        warnings.warn("something\nis odd", stacklevel=1)
        print("done")
        if args.model == "wrong":
            raise ValueError("it is wrong")

    parser.add_argument("model")
    parser.set_defaults(run=run)


@pytest.mark.parametrize(
    ("option", "words"),
    [(None, ["warning: something is odd"]), ("--verbose", ["is odd (UserWarning, ", "Traceback"]), ("--quiet", [])],
)
def test_warnings_are_one_line_or_none(option, words, monkeypatch, capsys):
    monkeypatch.setattr("brickwork.eval.commands.info.configure_parser", loud)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert cli.main(["info", "wrong", *([option] if option else [])]) == 2
    told = capsys.readouterr()
    assert told.out == "done\n" and told.err.endswith("error: it is wrong\n")
    assert all(word in told.err for word in words)
    assert ("test_cli.py" in told.err) == (option == "--verbose") and ("odd" in told.err) == (option != "--quiet")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demoo"], "did you mean demo"),
        (["convert", "leggo"], "convert lego"),
        (["demo", "resadaptor", "--scale", "1"], "no command 'demo resadaptor'; did you mean demo resadapter?"),
        (["frobnicate"], "no command 'frobnicate'"),
    ],
)
def test_unknown_commands(words, message, capsys):
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_a_group_lists_its_commands(capsys):
    assert cli.main(["convert"]) == 0
    assert "convert lego" in capsys.readouterr().out


def test_bad_input_is_one_line_and_status_2(capsys, tmp_path):
    assert cli.main(["info", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nothing" in error and "Traceback" not in error


def test_ctrl_c_is_no_traceback(capsys, monkeypatch):
    def interrupted(parser):
        def run(args):
            raise KeyboardInterrupt

        parser.set_defaults(run=run)

    monkeypatch.setattr("brickwork.eval.commands.info.configure_parser", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize("name", ["config.json", "model_index.json"])
def test_deep_nesting_is_one_line(name, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).write_text('{"_class_name": ' + "[" * 100_000)
    for words in (["info", str(folder)], ["generate", str(folder), "-o", str(tmp_path / "out")]):
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and "Traceback" not in said


def test_a_missing_extra_is_one_line_with_the_fix(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert cli.main(["export", "lego-avatars-64", "-o", str(tmp_path / "graphs"), "--sizes", "64"]) == 2
    assert capsys.readouterr().err == "error: Exported networks need onnx; pip install 'brickwork[export]'.\n"
    assert not (tmp_path / "graphs").exists()


@pytest.mark.parametrize("token", ["hf_x y", "hf_ü", "", "hf_a\x00"])
def test_what_is_no_token_is_not_shown(token, capsys):
    """Clients of HTTP do show it, in their error."""
    with pytest.raises(SystemExit):
        cli.main(["info", "lego-avatars-64", "--token", token])
    error = capsys.readouterr().err
    assert "no token of the hub" in error and not (token and token in error)


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["distill", "a/b", "--token", "hf_x", "-o", "x"], ["distill", "a/b", "--token", "…", "-o", "x"]),
        (["distill", "--token=hf_x"], ["distill", "--token=…"]),
        (["distill", "--tok", "hf_x"], ["distill", "--tok", "…"]),
        (["train", "x.yaml", "run.seed=1", "--teacher", "t"], ["train", "x.yaml", "run.seed=1", "--teacher", "t"]),
    ],
)
def test_a_command_line_is_kept_without_the_token(words, kept):
    assert options.without_token(words) == kept


def test_a_shell_does_not_wait_for_torch_when_it_starts():
    code = "import sys; sys.argv = ['brickwork']; from brickwork import cli; cli.main(['completion', 'bash']); "
    command = [sys.executable, "-c", code + "assert 'torch' not in sys.modules"]
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("option", [None, "--verbose"])
def test_which_image_processor_is_taken_is_told_with_verbose_alone(option, monkeypatch, capsys):
    """transformers says so of two at each import of diffusers' pipelines, where there is no torchvision."""
    import logging

    logger = logging.getLogger("transformers.utils.import_utils")
    monkeypatch.setattr(cli, "_run", lambda args: seen.append(logger.isEnabledFor(logging.WARNING)))
    seen, level = [], logger.level
    cli.main(["env", *([option] if option else [])])
    assert seen == [option == "--verbose"] and logger.level == level
