"""The `dispatchgym` command: finds the sub-command's module, runs it, and turns errors into one line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from typing import NamedTuple

import dispatchgym
from dispatchgym.envs.api import DispatchGymError
from dispatchgym.envs.registry import Registry


class Command(NamedTuple):
    """Where a sub-command lives, as "module:function" of type `(argv: list[str]) -> int`, and its line in the help."""

    target: str
    summary: str


COMMANDS: Mapping[str, Command] = {
    "train": Command(
        "dispatchgym.agents.train_command:main",
        "train a dispatch rule by PPO from a configuration file; write a run directory",
    ),
    "evaluate": Command(
        "dispatchgym.agents.evaluation.command:main",
        "judge rules and solvers on a suite of instances; write results and a report",
    ),
    "simulate": Command(
        "dispatchgym.agents.simulation.command:main",
        "replay LLM traffic under several schedulers of one engine; say which to take",
    ),
    "export": Command(
        "dispatchgym.agents.export_command:main",
        "write a run's best weights as a policy bundle that loads safely anywhere",
    ),
    "dashboard": Command(
        "dispatchgym.dashboards.command:main",
        "show the wandb dashboard of training runs, or save it in a project",
    ),
    "bundles": Command(
        "dispatchgym.agents.bundles_command:main",
        "list the shipped policy bundles with their results, or show one",
    ),
    "serve": Command(
        "dispatchgym.serving.command:main",
        "put a policy to work in a live system, such as a Kubernetes cluster",
    ),
    "calibrate": Command(
        "dispatchgym.serving.executor.calibrate_command:main",
        "measure how long a model's steps take here; write a profile for the simulator",
    ),
    "fidelity": Command(
        "dispatchgym.serving.executor.fidelity_command:main",
        "run traffic on a real model and on its profile; compare what users would feel",
    ),
    "make-model": Command(
        "dispatchgym.serving.executor.make_model_command:main",
        "write a random language model with its tokenizer, for trying things where there is no checkpoint",
    ),
    "load": Command(
        "dispatchgym.serving.load.command:main",
        "send a trace to a live LLM server when it is due; latencies, goodput, SLO attainment",
    ),
    "compare": Command(
        "dispatchgym.serving.load.compare_command:main",
        "the same live traffic under several LLM schedulers; paired differences with intervals",
    ),
    "data": Command(
        "dispatchgym.envs.data_command:main",
        "list the published instances and request traces, write them or random instances as files",
    ),
}

USAGE_ERROR = 2
INTERRUPTED = 130  # what a shell reports for a program that ends by Ctrl-C
PIPE_CLOSED = 141  # and for one whose reader went away


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command and return the exit code.

    Errors that dispatchgym raises on purpose, and refusals of the operating system, end as one
    line on stderr; `--debug` before the command, or DISPATCHGYM_DEBUG=1, shows the traceback too.
    Any other exception is our bug and passes through.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("DISPATCHGYM_DEBUG", "0") not in ("", "0")
    if arguments[:1] == ["--debug"]:
        debug = True
        arguments.pop(0)
    try:
        code = _run(arguments)
        sys.stdout.flush()  # a reader that went away is noticed here, not at interpreter exit
        return code
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        return INTERRUPTED
    except BrokenPipeError:
        # What is still buffered has no reader; without this the interpreter would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (DispatchGymError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return USAGE_ERROR


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(_help(), file=sys.stderr)
        return USAGE_ERROR
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"dispatchgym {dispatchgym.__version__}")
        return 0
    commands = Registry("command", {known: command.target for known, command in COMMANDS.items()})
    code: int = commands[name](rest)
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: dispatchgym [--debug] COMMAND [OPTION ...]",
            "",
            dispatchgym.__doc__ or "",
            "",
            "commands:",
            *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "options:",
            "  -h, --help  show this text; `dispatchgym COMMAND --help` explains a command",
            "  --version   print the version",
            "  --debug     show the traceback of an error (also: DISPATCHGYM_DEBUG=1)",
        ]
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
