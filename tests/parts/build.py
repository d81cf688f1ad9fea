"""Both parts from nothing, from a seed: train, probe, write what ships."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from basic_lite.data.world.render import SIDE
from parts.answering import probe_decoder, probe_shallow
from parts.cards import DECODER_CARD, TOWER_CARD
from parts.pretrain_decoder import Lesson, finish_decoder, train_decoder
from parts.pretrain_tower import PIXEL_MEAN, PIXEL_STD, probe_tower, train_tower
from parts.vocabulary import train_tokenizer

Progress = Callable[[int, dict[str, float]], None]


def build_decoder(
    folder: Path, seed: int, steps: int, device: str, progress: Progress, finish: int = 0
) -> dict[str, float]:
    """Train tokenizer and decoder, write them as one folder, and return the probe of what was written.

    Of several processes that train it together only the first writes and probes; the others return nothing.

    Args:
        folder: Where to.
        seed: Of weights and texts.
        steps: Of the first course, through the curriculum.
        device: `"cpu"` or `"cuda"`.
        progress: Called after every step.
        finish: Steps of the second course, mostly multiple choice; 0 leaves it out.
    """
    start = time.monotonic()
    tokenizer = train_tokenizer(seed)
    together = distributed.is_initialized()
    first = not together or distributed.get_rank() == 0
    model = train_decoder(Lesson(tokenizer, seed, steps, device=device, progress=progress))
    if first:
        tokenizer.save_pretrained(folder)
        _save_half(model, folder)
    if finish:
        if together:
            distributed.barrier()  # the first has written
        later = lambda step, values: progress(steps + step, values)  # noqa: E731
        model = finish_written(folder, Lesson(tokenizer, seed + 1, finish, device=device, progress=later))
        if first:
            _save_half(model, folder)
    if not first:
        return {}
    seconds = round(time.monotonic() - start)
    # Read back what ships, so that the figures are those of the rounded weights.
    model, tokenizer = read_decoder(folder)
    probe = probe_decoder(model, tokenizer, questions=700, seed=seed + 1)
    probe |= probe_shallow(model, tokenizer, seed=seed + 1)
    processes = distributed.get_world_size() if together else 1
    _describe(folder, DECODER_CARD, probe, seed, steps + finish, device, seconds, model, processes)
    return probe


def finish_written(folder: Path, lesson: Lesson) -> LlamaForCausalLM:
    """Give a decoder its second course from what is on disk: on a folder that the first left it is the same.

    (Rounding the model in place would round the frequencies of its positions, too.)
    """
    return finish_decoder(read_decoder(folder)[0], lesson)


def build_tower(folder: Path, seed: int, steps: int, device: str, progress: Progress) -> dict[str, float]:
    """Train the tower, write it as one folder, and return the probe of what was written."""
    from transformers import CLIPImageProcessor  # its import alone asks for torchvision, in every process

    start = time.monotonic()
    tower = train_tower(seed, steps, device=device, progress=progress)
    side = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=side, image_mean=PIXEL_MEAN, image_std=PIXEL_STD
    ).save_pretrained(folder)
    _save_half(tower, folder)
    seconds = round(time.monotonic() - start)
    tower = read_tower(folder)
    probe = probe_tower(tower, seed=seed + 1)
    _describe(folder, TOWER_CARD, probe, seed, steps, device, seconds, tower)
    return probe


def read_decoder(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load a written decoder and its tokenizer, in fp32."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def read_tower(folder: Path) -> CLIPVisionModel:
    """Load a written tower, in fp32."""
    return CLIPVisionModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def _save_half(model: PreTrainedModel, folder: Path) -> None:
    """Write the weights in fp16, and a config that asks for fp32: small to ship, exact to compute with."""
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _describe(
    folder: Path,
    card: str,
    probe: dict[str, float],
    seed: int,
    steps: int,
    device: str,
    seconds: int,
    model: PreTrainedModel,
    processes: int = 1,
) -> None:
    """Write `probe.json` and the model card with its figures."""
    made = {"seed": seed, "steps": steps, "device": device, "processes": processes}
    record = {**made, "torch": torch.__version__, "probe": probe}
    (folder / "probe.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    lines = ["| probe | % |", "|---|---|", *(f"| {name} | {value} |" for name, value in probe.items())]
    cores = "one CPU core" if processes == 1 else f"{processes} CPU cores"
    text = card.format(
        parameters=f"{model.num_parameters() / 1e6:.2f} M",
        seed=seed,
        steps=steps,
        minutes=f"{seconds / 60:.0f}",
        device="one GPU" if device == "cuda" else cores,
        probe="\n".join(lines),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
