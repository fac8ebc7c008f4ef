"""What a sweep measured, and its file: a JSON line about the engine, then one for every step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dispatchgym.agents.evaluation.files import atomic_write
from dispatchgym.envs.api import DispatchGymError, InvalidInstanceError
from dispatchgym.envs.llm.calibrate import StepCost, fit, summary
from dispatchgym.envs.llm.profile import Profile, profile_of


@dataclass(frozen=True, slots=True)
class Measured:
    """Steps of an engine.

    Attributes:
        rough: its profile, but for what is fitted.
        captured_sizes: tokens of its captured passes that do more than decode.
        steps: to be fitted to.
        held_out: to be judged on.
    """

    rough: Profile
    captured_sizes: tuple[int, ...]
    steps: list[StepCost]
    held_out: list[StepCost]

    def profile(self) -> Profile:
        """Fitted, and judged."""
        profile = fit(self.rough, self.steps, self.captured_sizes)
        fitted = {f"fitted_{name}": value for name, value in summary(profile, self.steps).items()}
        judged = {f"held_out_{name}": value for name, value in summary(profile, self.held_out).items()}
        return replace(profile, fit={**fitted, **judged})

    def save(self, file: Path) -> None:
        """Write the file; the steps that are held out come last."""
        head = {
            "held_out": len(self.held_out),
            "captured_sizes": self.captured_sizes,
            "rough": asdict(self.rough),
        }
        with atomic_write(file) as written:
            written.writelines(json.dumps(row) + "\n" for row in (head, *map(asdict, (*self.steps, *self.held_out))))


def load_measured(file: Path) -> Measured:
    """Read such a file.

    Raises:
        InvalidInstanceError: it is none, or cannot be read.
    """
    try:
        head, *rows = (json.loads(line) for line in file.read_text().splitlines())
        steps, count = [StepCost(**row) for row in rows], int(head["held_out"])
        rough = profile_of(head["rough"], str(file))
        sizes = tuple(int(size) for size in head["captured_sizes"])
    except DispatchGymError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidInstanceError(f"{file}: no steps as `calibrate --steps` writes them: {error!r}") from None
    if not 0 < count < len(steps):
        raise InvalidInstanceError(f"{file}: held_out {count} is not between 0 and its {len(steps)} steps")
    return Measured(rough, sizes, steps[:-count], steps[-count:])
