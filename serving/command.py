"""`dispatchgym serve`: finds the server that is asked for and hands it the rest of the arguments."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.registry import Registry

SERVERS: Mapping[str, tuple[str, str]] = {
    "llm": (
        "dispatchgym.serving.llm.command:main",
        "an OpenAI-compatible server whose scheduler is any policy, changed while it runs",
    ),
    "kube": (
        "dispatchgym.serving.kube.command:main",
        "a scheduler extender: an unmodified kube-scheduler asks it which node it likes best",
    ),
    "kube-scheduler": (
        "dispatchgym.serving.kube.scheduler_command:main",
        "a second scheduler: binds the pods that name it, plans re-packing",
    ),
}
"""Name -> "module:function" of type `(argv: list[str]) -> int`, and its line in the help."""


def main(argv: list[str]) -> int:
    """Run one server until it is told to stop; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_help(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    servers = Registry("server", {name: target for name, (target, _) in SERVERS.items()})
    try:
        server = servers[argv[0]]
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("dispatchgym"):
            raise
        extra = "serving" if argv[0] == "llm" else "kubernetes"
        raise UsageError(
            f"serve {argv[0]} needs {error.name}, which is not installed: pip install 'dispatchgym[{extra}]'"
        ) from None
    code: int = server(argv[1:])
    return code


def _help() -> str:
    width = max(map(len, SERVERS))
    return "\n".join(
        [
            "usage: dispatchgym serve SERVER [OPTION ...]",
            "",
            "Put a policy to work.",
            "",
            "servers:",
            *(f"  {name:{width}}  {summary}" for name, (_, summary) in SERVERS.items()),
            "",
            "`dispatchgym serve SERVER --help` explains one",
        ]
    )
