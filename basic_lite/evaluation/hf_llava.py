"""Any LLaVA in the layout of transformers, ready to be asked: an exported run, llava-hf/llava-1.5-7b-hf, ...

Pictures are padded to a square as LLaVA-1.5's evaluation pads them, whatever the folder's processor crops, so
that a published model and a run are measured alike; a LLaVA-NeXT's are cut into its own tiles. The words
around a question are the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
)

from basic_lite.data.conversation import IMAGE, stop_ids
from basic_lite.data.pictures import Aspect, ImageTransform
from basic_lite.data.rows import WHITE, Exif
from basic_lite.data.templates import TEMPLATES, Template
from basic_lite.data.tiles import Size, TiledTransform, Tiling
from basic_lite.files import ADAPTER, MANIFEST, file_hash, hashes
from basic_lite.models import repository
from basic_lite.models.llava import read_config
from basic_lite.models.parts import tiling_of
from basic_lite.models.softcap import cap_logits
from basic_lite.models.unpacked import BACKGROUND_KEY, grids_of

FALLBACK = "vicuna_v1"
EXIF: Exif = "rotate"  # what transformers' own loader of pictures does, whatever a model was trained with
_CLASSES: dict[str, tuple[Any, type]] = {
    "llava": (LlavaForConditionalGeneration, LlavaProcessor),
    "llava_next": (LlavaNextForConditionalGeneration, LlavaNextProcessor),
}
LLAVA = "--model takes a LLaVA of transformers, such as llava-hf/llava-1.5-7b-hf or an exported folder"


@dataclass
class HfLlava:
    model: LlavaForConditionalGeneration | LlavaNextForConditionalGeneration  # in evaluation mode
    processor: Any  # `LlavaProcessor` or `LlavaNextProcessor`
    tokenizer: Any  # the processor's
    pad_token_id: int  # id that fills a batch
    image_token_id: int  # id that marks a patch
    stops: list[int]  # ids that end an answer
    template: Template | None = None  # in place of the processor's chat template
    tiling: Tiling | None = None  # a LLaVA-NeXT's grids; `None` for one square per picture

    def transform(self, aspect: Aspect) -> ImageTransform:
        """Return the image preparation, see `Assembled.transform`; turned by EXIF as `load_image` does."""
        config = self.processor.image_processor.to_dict()
        background = getattr(self.model.config, BACKGROUND_KEY, WHITE)
        how: dict[str, Any] = {"aspect": aspect, "exif": EXIF, "background": background}
        transform = ImageTransform.from_processor(config, **how)
        return transform if self.tiling is None else TiledTransform.of(transform, self.tiling)

    @cached_property
    def tokens_per_image(self) -> int:
        """Patches of a picture that reach the decoder: asked of the tower, as processors differ."""
        config, tower, size = self.model.config, self.model.model.vision_tower, self.transform("pad").size
        layer = config.vision_feature_layer
        pixels = torch.zeros(1, 3, size, size, dtype=tower.dtype, device=tower.device)
        with torch.inference_mode():
            states = tower(pixels, output_hidden_states=True).hidden_states
        state = states[layer if isinstance(layer, int) else layer[0]]
        return state.shape[1] - (config.vision_feature_select_strategy == "default")

    def prompt(self, text: str, *, pictured: bool) -> str:
        """Return a question as the model is to read it, with `<image>` where its picture stands."""
        if self.template is not None:
            asked = self.template.user.format(f"{IMAGE}\n{text}" if pictured else text)
            return self.template.system + asked.replace(IMAGE, self.processor.image_token)
        content = [{"type": "image"}] if pictured else []
        content.append({"type": "text", "text": text})
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def prompt_ids(self, text: str, *, pictured: bool, size: Size | None = None) -> list[int]:
        """Return the ids to answer from, one image id for every patch; with tiles by the picture's `size`."""
        return self._ids(self.prompt(text, pictured=pictured), size)

    def answer_ids(self, text: str, answer: str, *, pictured: bool, size: Size | None = None) -> list[int]:
        """Return a prompt's ids followed by an answer's, after a space where the prompt ends in none."""
        written = self.prompt(text, pictured=pictured)
        return self._ids(written + ("" if written[-1:].isspace() else " ") + answer, size)

    def _ids(self, written: str, size: Size | None) -> list[int]:
        # A template may write BOS itself, which the tokenizer would put a second time.
        bos = self.tokenizer.bos_token
        doubled = bool(bos) and written.startswith(bos)
        ids = self.tokenizer(written, add_special_tokens=not doubled).input_ids
        tokens = self.tokens_per_image
        if self.tiling is not None and size is not None:
            tokens = self.tiling.block(size).tokens
        patches = [self.image_token_id] * tokens
        return [i for token in ids for i in (patches if token == self.image_token_id else [token])]


def identity(source: str) -> str:
    """Return what distinguishes a model: hashes of its configuration and weights, or the hub's commit."""
    _config(source)
    folder = Path(source)
    if folder.is_dir():
        each = hashes(folder, ("*.safetensors", "*.bin"))
        return " ".join([file_hash(folder / "config.json"), *each.values()])
    return f"{source}@{repository.commit_of(source)}"


def _config(source: str) -> Any:
    folder = Path(source)
    if folder.is_dir():
        for name, what in ((MANIFEST, "a run: give it as --run"), (ADAPTER, "an adapter without its model")):
            if (folder / name).is_file() and not (folder / "config.json").is_file():
                raise ValueError(f"{source} is {what}; {LLAVA}")
        if not (folder / "config.json").is_file():
            raise ValueError(f"{source} holds no model (no config.json): {LLAVA}")
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ValueError(f"{source} does not exist: --model takes a folder or a hub id")
    config = read_config(source, "model")
    # LLaVA's own repositories say model_type llava too, with other names of weights.
    name = _CLASSES[config.model_type][0].__name__ if config.model_type in _CLASSES else None
    layout = (config.architectures or [name])[0]
    if name is None or layout != name:
        what = config.model_type if name is None else f"{layout} in its authors' layout"
        raise ValueError(
            f"{source} is a {what}, not a LLaVA of transformers (model_type {' or '.join(_CLASSES)}): ask it "
            "with another harness and score its answers with --predictions FILE"
        )
    grids_of(source, config.to_dict())
    return config


def load(source: str, device: torch.device | str = "cpu", template: str | None = None) -> HfLlava:
    """Load a model: in its own dtype on a GPU, in fp32 on a CPU.

    `template` of `templates.TEMPLATES` stands in place of the model's chat template; one that has none takes
    LLaVA-1.5's. Raises ValueError if it cannot be loaded, is no LLaVA, or lacks weights.
    """
    config = _config(source)
    dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
    try:
        processor = AutoProcessor.from_pretrained(source)
        kind, processing = _CLASSES[config.model_type]
        if not isinstance(processor, processing):
            raise ValueError(f"its {type(processor).__name__} cuts pictures in another way than LLaVA's")
        model, loaded = kind.from_pretrained(
            source, dtype=dtype, device_map={"": device}, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"{source} cannot be loaded: {repository.why(source, error)}") from error
    wrong = [*loaded["missing_keys"], *loaded["mismatched_keys"]]
    if wrong:
        raise ValueError(f"{source} lacks {len(wrong)} weights (first: {sorted(map(str, wrong))[0]})")
    cap_logits(model)  # a Gemma 2's, which LLaVA's class leaves out
    tokenizer, image = processor.tokenizer, config.image_token_id
    if template is None and processor.chat_template is None:
        template = FALLBACK
    stops = _ends(model, processor) if template is None else stop_ids(TEMPLATES[template], tokenizer)
    candidates = (tokenizer.pad_token_id, model.generation_config.pad_token_id, *stops, 0)
    return HfLlava(
        model=model.eval(),
        processor=processor,
        tokenizer=tokenizer,
        pad_token_id=next(pad for pad in candidates if pad is not None and pad != image),
        image_token_id=image,
        stops=stops,
        template=None if template is None else TEMPLATES[template],
        tiling=tiling_of(model.model),
    )


def _ends(model: Any, processor: Any) -> list[int]:
    """Return the ids that end an answer: the generation settings', the tokenizer's, the chat template's.

    A converted folder often names only the base model's end of text, while its answers end with a turn.
    """
    tokenizer, ends = processor.tokenizer, model.generation_config.eos_token_id
    ends = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    if processor.chat_template is not None:
        turns = [("user", "?"), ("assistant", "answer")]
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        written = processor.apply_chat_template(messages, tokenize=False)
        after = tokenizer(written.rpartition("answer")[2].lstrip(), add_special_tokens=False).input_ids
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        ends += [token for token in after[:1] if token in special]
    return list(dict.fromkeys(end for end in ends if end is not None))
