"""The command line: what it lists, how it fails, and that asking for help costs little."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dispatchgym import __version__, cli
from dispatchgym.envs.api import UsageError


def refuse(argv: list[str]) -> int:
    """A command that cannot do what it is asked."""
    raise UsageError(f"policy {argv[0]!r}\nis not known")


def meet_a_full_disk(argv: list[str]) -> int:
    """A command that the operating system stops."""
    raise OSError(28, "No space left on device", "results.json")


def be_interrupted(argv: list[str]) -> int:
    """A command during which somebody presses Ctrl-C."""
    raise KeyboardInterrupt


def break_down(argv: list[str]) -> int:
    """A command with a bug."""
    raise ZeroDivisionError


def count_arguments(argv: list[str]) -> int:
    """A command whose exit code tells how many arguments reached it."""
    return len(argv)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file's commands in the place of the real ones, under their own names."""
    mine = (refuse, meet_a_full_disk, be_interrupted, break_down, count_arguments)
    table = {command.__name__: cli.Command(f"{__name__}:{command.__name__}", "for tests") for command in mine}
    monkeypatch.setattr(cli, "COMMANDS", table)
    monkeypatch.delenv("DISPATCHGYM_DEBUG", raising=False)


def python(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command_with_its_summary(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    listed = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in listed
        assert command.summary in listed


def test_help_loads_no_heavy_library() -> None:
    heavy = {"torch", "numba", "ortools", "matplotlib", "wandb", "tyro", "rich"}
    done = python(
        "-c",
        f"import sys; from dispatchgym.cli import main; main(['--help']); print(sorted({heavy!r} & set(sys.modules)))",
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dispatchgym {__version__}\n"


def test_no_command_at_all_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: dispatchgym" in capsys.readouterr().err


def test_an_unknown_command_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evalute"]) == 2
    assert capsys.readouterr().err == "error: command 'evalute' is not known; did you mean 'evaluate'?\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = cli.main([name, "--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0
    assert f"dispatchgym {name}" in capsys.readouterr().out


@pytest.mark.usefixtures("stand_ins")
def test_a_command_gets_its_arguments_and_gives_the_exit_code() -> None:
    assert cli.main(["count_arguments", "a", "--b", "c"]) == 3


@pytest.mark.usefixtures("stand_ins")
def test_a_refusal_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["refuse", "sptt"]) == 2
    assert capsys.readouterr() == ("", "error: policy 'sptt' is not known\n")


@pytest.mark.usefixtures("stand_ins")
def test_a_refusal_of_the_system_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["meet_a_full_disk"]) == 2
    assert capsys.readouterr().err == "error: results.json: No space left on device\n"


@pytest.mark.usefixtures("stand_ins")
def test_debug_shows_the_traceback_as_well(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["--debug", "refuse", "sptt"]) == 2
    by_flag = capsys.readouterr().err
    monkeypatch.setenv("DISPATCHGYM_DEBUG", "1")
    assert cli.main(["refuse", "sptt"]) == 2
    by_environment = capsys.readouterr().err
    for text in (by_flag, by_environment):
        assert "Traceback" in text
        assert text.endswith("error: policy 'sptt' is not known\n")


@pytest.mark.usefixtures("stand_ins")
def test_an_interrupt_ends_with_the_shells_code_and_no_noise(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["be_interrupted"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("stand_ins")
def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["break_down"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = python("-m", "dispatchgym", "--help", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("name", ["evaluate", "train"])
def test_the_script_at_the_root_is_the_command(name: str) -> None:
    script = Path(__file__).resolve().parent.parent / f"{name}.py"
    as_script, as_command = python(str(script), "--help"), python("-m", "dispatchgym", name, "--help")
    assert as_script.returncode == as_command.returncode == 0, as_script.stderr
    assert as_script.stdout == as_command.stdout
