"""What the commands ask of a configuration: where it is, that it can be used, and what it names.

Called by the commands. It must never start anything, and it says an error with its exit code.
"""

from __future__ import annotations

from pathlib import Path

from scheduler.commands.exits import CommandError, ExitCode
from scheduler.config import Config, ConfigError, load_config, weights_folder
from scheduler.shipped import shipped_config


def demo_path() -> Path:
    """The demo's configuration: of the checkout, else as installed. Raises: CommandError."""
    try:
        return shipped_config("demo.yaml")
    except FileNotFoundError as error:
        raise CommandError(
            f"the demo's configuration is missing: {error}", code=ExitCode.NOT_FOUND, remedy="give --config PATH"
        ) from None


def load(path: Path) -> Config:
    """Reads and checks. Raises: CommandError, 3 where there is no file, 2 where it cannot be used."""
    if not path.exists():
        raise CommandError(f"{path}: there is no such file", code=ExitCode.NOT_FOUND, remedy="check --config")
    try:
        return load_config(path)
    except ConfigError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from None


def ray_target(config: Config) -> tuple[str | None, str]:
    """Address (None = a cluster of our own) and namespace."""
    return config.ray.address, config.ray.namespace


def listeners(config: Config) -> dict[str, tuple[str, int]]:
    """Host and port of each listener, by the name of its section; port 0 = any."""
    return {"server": (config.server.host, config.server.port), "admin": (config.admin.host, config.admin.port)}


def model_folders(config: Config) -> dict[str, Path]:
    """Weights that are named as folders, by model; names on a hub are left out."""
    folders = {
        name: weights_folder(model.weights) for name, model in config.models.items() if model.weights is not None
    }
    return {name: folder for name, folder in folders.items() if folder is not None}
