"""`dispatchgym make-model`: a random model as a directory, for trying things where no checkpoint is at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from dispatchgym.serving.executor.demo import write_demo


@dataclass(frozen=True, slots=True)
class Options:
    """Write a Llama with random weights and a tokenizer of single bytes, as a Hugging Face directory.

    Example: dispatchgym make-model --out /tmp/tiny
    """

    out: Path
    """Folder to write; new, or empty."""

    size: str = "tiny"
    """tiny (runs anywhere), 1b or 8b (the shapes of Llama 3.2 1B and 3.1 8B: 2.5 and 16 GB)."""

    seed: int = 0
    """The same seed writes the same weights."""


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = tyro.cli(Options, args=argv, prog="dispatchgym make-model")
    write_demo(options.out, options.size, options.seed)
    print(f"{options.out}: a random model of size {options.size}")
    return 0
