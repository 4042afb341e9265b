"""Runs vLLM's own serving benchmark, unmodified, against any endpoint.

Called by hand and by ``tests/engine``. The CPU build of vLLM has no working ``vllm`` command, so its module is called
as that command would: all arguments are vLLM's own.
"""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> dict[str, object]:
    """``vllm bench serve ARGUMENTS``; returns the figures that it prints."""
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as run
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(description="vLLM's serving benchmark")
    add_cli_args(parser)
    return dict(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    figures = main(sys.argv[1:])
    sys.exit(0 if figures.get("completed") and not figures.get("failed") else 1)
