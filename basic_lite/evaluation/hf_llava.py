"""Any LLaVA in the layout of transformers, ready to be asked: an exported run, llava-hf/llava-1.5-7b-hf, ...

Only the words around a question are the model's own (its chat template; without one, LLaVA-1.5's). Pictures
are padded to a square as LLaVA-1.5's evaluation pads them, whatever the folder's processor crops by default,
so that a published model and a run are measured alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from basic_lite.data.conversation import IMAGE
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.templates import TEMPLATES
from basic_lite.files import file_hash, hashes
from basic_lite.models import repository

FALLBACK = TEMPLATES["vicuna_v1"]


@dataclass
class HfLlava:
    """A LLaVA and its processor.

    Attributes:
        model: in evaluation mode.
        processor: `LlavaProcessor`.
        tokenizer: the processor's.
        pad_token_id: id that fills a batch.
        image_token_id: id that marks a patch.
        tokens_per_image: patches per image.
        stops: ids that end an answer.
    """

    model: LlavaForConditionalGeneration
    processor: Any
    tokenizer: Any
    pad_token_id: int
    image_token_id: int
    tokens_per_image: int
    stops: list[int]

    def transform(self, aspect: str) -> ImageTransform:
        """Return the image preparation; see `Assembled.transform`."""
        return ImageTransform.from_processor(self.processor.image_processor.to_dict(), aspect=aspect)

    def prompt(self, text: str, *, pictured: bool) -> str:
        """Return a question as the model is to read it, with `<image>` where its picture stands."""
        if self.processor.chat_template is None:
            asked = FALLBACK.user.format(f"{IMAGE}\n{text}" if pictured else text)
            return FALLBACK.system + asked.replace(IMAGE, self.processor.image_token)
        content = [{"type": "image"}] if pictured else []
        content.append({"type": "text", "text": text})
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def prompt_ids(self, text: str, *, pictured: bool) -> list[int]:
        """Return the ids to answer from, one image id for every patch."""
        return self._ids(self.prompt(text, pictured=pictured))

    def answer_ids(self, text: str, answer: str, *, pictured: bool) -> list[int]:
        """Return a prompt's ids with an answer's behind them; a space parts it from what is no line's end."""
        written = self.prompt(text, pictured=pictured)
        return self._ids(written + ("" if written[-1:].isspace() else " ") + answer)

    def _ids(self, written: str) -> list[int]:
        # A template may write BOS itself, which the tokenizer would put a second time.
        bos = self.tokenizer.bos_token
        doubled = bool(bos) and written.startswith(bos)
        ids = self.tokenizer(written, add_special_tokens=not doubled).input_ids
        patches = [self.image_token_id] * self.tokens_per_image
        return [i for token in ids for i in (patches if token == self.image_token_id else [token])]


def identity(source: str) -> str:
    """Return what tells a model from others: hashes of its configuration and weights, or the hub's commit.

    Raises:
        ValueError: If the hub has no such model.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"{source} holds no model (no config.json): --model takes a LLaVA of transformers"
            )
        _config(source)
        each = hashes(folder, ("*.safetensors", "*.bin"))
        return " ".join([file_hash(folder / "config.json"), *each.values()])
    _config(source)
    return f"{source}@{repository.commit_of(source)}"


def _config(source: str) -> Any:
    if not Path(source).is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ValueError(f"{source} does not exist: --model takes a folder or a hub id")
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"no model can be loaded from {source!r}: give a folder with config.json and safetensors, or a "
            f"hub id while a hub can be reached ({repository.why(source, error)})"
        ) from error
    if config.model_type != "llava":
        raise ValueError(
            f"{source} is a {config.model_type}, not a LLaVA of transformers (model_type llava): ask it with "
            "another harness and score its answers with --predictions FILE"
        )
    return config


def load(source: str, device: torch.device | str = "cpu") -> HfLlava:
    """Load a model: in its own dtype on a GPU, in fp32 on a CPU.

    Raises:
        ValueError: In one line, if it cannot be loaded, is no LLaVA, or lacks weights.
    """
    config = _config(source)
    dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
    try:
        processor = AutoProcessor.from_pretrained(source)
        model, loaded = LlavaForConditionalGeneration.from_pretrained(
            source, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{source} cannot be loaded: {repository.why(source, error)}") from error
    wrong = [*loaded["missing_keys"], *loaded["mismatched_keys"]]
    if wrong:
        raise ValueError(f"{source} lacks {len(wrong)} weights (first: {sorted(map(str, wrong))[0]})")
    tokenizer, image = processor.tokenizer, config.image_token_id
    # The processor itself says how many ids a picture takes: its class token and selection are its affair.
    shown = processor(text=[processor.image_token], images=[Image.new("RGB", (8, 8))], return_tensors="pt")
    ends = model.generation_config.eos_token_id
    ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    stops = list(dict.fromkeys(end for end in ends if end is not None))
    candidates = (tokenizer.pad_token_id, model.generation_config.pad_token_id, *stops, 0)
    return HfLlava(
        model=model.to(device).eval(),
        processor=processor,
        tokenizer=tokenizer,
        pad_token_id=next(pad for pad in candidates if pad is not None and pad != image),
        image_token_id=image,
        tokens_per_image=int((shown["input_ids"] == image).sum()),
        stops=stops,
    )
