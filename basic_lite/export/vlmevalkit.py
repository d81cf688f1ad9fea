"""An exported folder in VLMEvalKit, as a model of its own.

    python -m basic_lite.export.vlmevalkit VLMEvalKit/run.py my-llava --data MMBench_DEV_EN_V11 --work-dir out

Runs VLMEvalKit's own `run.py` with everything behind the folder, and the model beside those it knows. Newer
checkouts have a class `LLaVA_HF` that reads such folders too, but computes in fp16, which no run was trained
in; here the folder's own dtype is used. Questions with options are asked as their LLaVA class asks them,
everything else as the toolkit asks by default.

Written against `vlmeval/vlm/base.py`, `vlmeval/vlm/llava/` and `run.py` of open-compass/VLMEvalKit, in 2026.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from basic_lite.evaluation.tasks.mmbench import vlmevalkit_llava_prompt

USAGE: str = "python -m basic_lite.export.vlmevalkit VLMEvalKit/run.py FOLDER --data NAME [--work-dir DIR]"


class Reader:
    """Reads an exported folder with transformers alone, and answers messages of VLMEvalKit.

    Args:
        folder: that `basic-lite export --to hf` wrote.
        max_new_tokens: most tokens of an answer.
    """

    def __init__(self, folder: str | Path, max_new_tokens: int = 512) -> None:
        import torch
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        self.processor = AutoProcessor.from_pretrained(folder)
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto")
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.max_new_tokens = max_new_tokens

    def answer(self, message: Sequence[Mapping[str, str]]) -> str:
        """Answer one user turn, greedily.

        Args:
            message: parts, `{"type": "image" or "text", "value": path or text}`. Pictures come first, as in
                training, wherever they stand.
        """
        import torch

        from basic_lite.data.pictures import open_picture

        pictures = [part["value"] for part in message if part["type"] == "image"]
        text = "\n".join(part["value"] for part in message if part["type"] == "text")
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
        turns = [{"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        images = [open_picture(Path(path)) for path in pictures] or None
        batch = self.processor(text=[prompt], images=images, return_tensors="pt")
        batch = batch.to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            whole = self.model.generate(
                **batch, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens
            )
        produced = whole[0, batch["input_ids"].shape[1] :]
        return self.processor.decode(produced, skip_special_tokens=True).strip()


def model_class() -> type:
    """Return the model as a class of VLMEvalKit, which must be installed."""
    from vlmeval.dataset import DATASET_TYPE
    from vlmeval.vlm.base import BaseModel

    class BasicLite(BaseModel):
        INSTALL_REQ = False
        INTERLEAVE = True

        def __init__(self, model_path: str, **kwargs: Any) -> None:
            self.reader = Reader(model_path, **kwargs)

        def use_custom_prompt(self, dataset: str) -> bool:
            return DATASET_TYPE(dataset) == "MCQ"

        def build_prompt(self, line: Mapping[str, Any], dataset: str | None = None) -> list[dict[str, str]]:
            asked = {name: value for name, value in line.items() if value == value}  # NaN: an empty cell
            text = vlmevalkit_llava_prompt(asked, "en")
            pictures = [{"type": "image", "value": path} for path in self.dump_image(line, dataset)]
            return [*pictures, {"type": "text", "value": text}]

        def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
            return self.reader.answer(message)

    return BasicLite


def main(arguments: Sequence[str]) -> None:
    """Run VLMEvalKit on a folder.

    Args:
        arguments: `run.py` of a VLMEvalKit that is installed, the folder, then what `run.py` takes.

    Raises:
        ValueError: If one of them is missing, or VLMEvalKit is.
    """
    if (
        len(arguments) < 2
        or not Path(arguments[0]).is_file()
        or not Path(arguments[1], "config.json").is_file()
    ):
        raise ValueError(f"two files are needed, run.py and an exported folder's config.json: {USAGE}")
    try:
        from vlmeval.config import supported_VLM
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: pip install -e VLMEvalKit") from None
    run, folder, *more = arguments
    name = Path(folder).absolute().name
    supported_VLM[name] = partial(model_class(), folder)
    sys.argv = [run, "--model", name, *more]
    runpy.run_path(run, run_name="__main__")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
