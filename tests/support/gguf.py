"""Write a toy checkpoint as the two GGUF files that llama.cpp serves, with llama.cpp's own converter.

The converter knows published models: it tells a tokenizer by a checksum, looks for a vocabulary of sentencepiece first,
and names no more parts of a vision encoder than it has blocks, of which published ones have three and more. A toy is
none of these, so it is told in a process of its own, which is this module run as a program:

    python -m tests.support.gguf CONVERTER CHECKPOINT
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

#: How its byte-level tokenizers are split before merging, as llama.cpp calls it (tokenizers' `ByteLevel`).
SPLIT = "gpt-2"

#: Fewest blocks of a vision encoder with which the converter knows all names.
BLOCKS = 3


def write_gguf(checkpoint: Path, converter: Path) -> Path:
    """Write the files into a checkpoint's folder, which holds weights; returns the folder.

    converter: folder with llama.cpp's `convert_hf_to_gguf.py`.
    """
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    path = checkpoint / "preprocessor_config.json"
    settings = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, **json.loads(path.read_text())}
    path.write_text(json.dumps(settings))
    command = [sys.executable, "-m", __name__, str(converter), str(checkpoint)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return checkpoint


def main(converter: Path, checkpoint: Path) -> None:
    """Tell the converter of the toy, and let it write model and vision part."""
    sys.path[:0] = [str(converter), str(converter / "gguf-py")]
    import conversion.base as base  # type: ignore[import-not-found]
    import gguf  # type: ignore[import-not-found]

    names: Any = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = lambda architecture, blocks: names(architecture, max(blocks, BLOCKS))
    base.TextModel.get_vocab_base_pre = lambda model, tokenizer: SPLIT
    base.TextModel._set_vocab_sentencepiece = base.TextModel._set_vocab_gpt2
    for name, part in (("model.gguf", []), ("mmproj.gguf", ["--mmproj"])):
        sys.argv[1:] = [str(checkpoint), *part, "--outtype", "f32", "--outfile", str(checkpoint / name)]
        runpy.run_path(str(converter / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
