"""One gym for learning dispatch rules: job shops, Kubernetes packing and LLM batch serving."""

from importlib import metadata
from pathlib import Path

try:
    __version__ = metadata.version("dispatchgym")
except metadata.PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0+checkout"

# A checkout without symbolic links (Windows) holds the code folders one level up.
_checkout = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "envs").is_dir() and (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

from dispatchgym.envs import register_envs  # noqa: E402 (needs the path above)

register_envs()  # Gymnasium 1 loads no plug-ins: importing dispatchgym is what makes its ids known
