"""Pictures in tiles for tests: a batch whose grids are written down by hand, the method's definition on it.

The tower's squares are 24 x 24 pixels of 3 x 3 patches, and a picture has at most 4 tiles.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from oracle import attended
from tiny import (
    IMAGE_TOKEN,
    VOCABULARY,
    is_projector,
    parts_config,
    tower_folder,
    train_projector,
    write_tokenizer,
)
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

PINPOINTS = [[24, 48], [48, 24], [48, 48], [24, 72], [72, 24]]
BASE = 9

SHAPES = {
    (24, 48): (3, 6, 3),
    (48, 24): (6, 3, 3),
    (40, 44): (6, 6, 5),
    (30, 48): (4, 6, 5),  # a line of padding at top and bottom is left out
    (10, 200): (1, 9, 4),  # so thin that its 3 lines lose the outer two
    (90, 31): (9, 3, 4),
}
"""Height and width of a picture: lines and columns of patches that its tiles leave, and its squares."""


def block_of(size: tuple[int, int]) -> list[bool]:
    """Return which of a picture's image tokens are patches."""
    lines, columns, _ = SHAPES[size]
    return [True] * BASE + ([True] * columns + [False]) * lines


def tiny_llava_next(
    decoder: str = "llama", tower: str = "clip", seed: int = 0
) -> LlavaNextForConditionalGeneration:
    """Build a random LLaVA-NeXT of transformers, frozen but for its projector and newline."""
    torch.manual_seed(seed)
    config = LlavaNextConfig(**parts_config(decoder, tower), image_grid_pinpoints=PINPOINTS)
    model = LlavaNextForConditionalGeneration(config)
    train_projector(model)
    return model


def llava_next_folder(folder: Path, pinpoints: list[list[int]]) -> LlavaNextForConditionalGeneration:
    """Save a random LLaVA-NeXT with the files that llava-hf's have, and return it."""
    model = tiny_llava_next()
    model.config.image_grid_pinpoints = pinpoints
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(folder)
    write_tokenizer(folder)
    settings = json.loads((tower_folder() / "preprocessor_config.json").read_text())
    settings |= {"aspect_ratio_setting": "anyres", "image_grid_pinpoints": pinpoints, "do_pad": True}
    settings |= {"image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    settings = {"processor_class": "LlavaNextProcessor", "image_token": "<image>", "patch_size": 8}
    settings |= {"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return model.eval()


def tiled_batch(padding: str = "right", seed: int = 1) -> dict:
    """Five rows: a picture; two of different grids; text only; a thin one last; two and a short caption."""
    generator = torch.Generator().manual_seed(seed)

    def text(count: int) -> list[int]:
        return torch.randint(4, VOCABULARY, (count,), generator=generator).tolist()

    def picture(size: tuple[int, int]) -> list[int]:
        sizes.append(size)
        return [IMAGE_TOKEN] * len(block_of(size))

    sizes: list[tuple[int, int]] = []
    rows = [
        [1, *text(3), *picture((24, 48)), *text(14)],
        [1, *picture((40, 44)), *text(4), *picture((48, 24)), *text(7)],
        [1, *text(11)],
        [1, *text(8), *picture((10, 200)), *text(1)],
        [1, *picture((90, 31)), *text(5), *picture((30, 48)), *text(2)],
    ]
    width = max(map(len, rows))
    ids, mask, labels = [], [], []
    for row in rows:
        off = [0] * (width - len(row))
        supervised = [-100 if i < 3 or t == IMAGE_TOKEN else t for i, t in enumerate(row)]
        on, no_loss = [1] * len(row), [-100] * len(off)
        ids.append(row + off if padding == "right" else off + row)
        mask.append(on + off if padding == "right" else off + on)
        labels.append(supervised + no_loss if padding == "right" else no_loss + supervised)
    squares = sum(SHAPES[size][2] for size in sizes)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
        "pixel_values": torch.randn(squares, 3, 24, 24, generator=generator),
        "image_sizes": sizes,
    }


def tiled_oracle(
    model,
    batch,
    k,
    importance="attention",
    weights=(1.0, 1.0, 0.01),
    is_wanted=is_projector,
    spared=None,
):
    """Everything that the method defines on pictures of different sizes, the slow and obvious way.

    `spared` says of each picture's patches which `L_sds` leaves out; the others get their importance.
    """
    model = copy.deepcopy(model).double().eval()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.set_attn_implementation("eager")
    embedding = inner.model.language_model.embed_tokens.weight.detach()
    lm, das, sds, targets, shares, supervised, images = 0.0, 0.0, 0.0, [], [], 0, 0
    sizes, pixels = list(batch["image_sizes"]), batch["pixel_values"].double()
    for row in range(len(batch["input_ids"])):  # one at a time, its padding cut off
        keep = batch["attention_mask"][row].bool()
        ids, labels = batch["input_ids"][row][keep], batch["labels"][row][keep]
        places = (ids == IMAGE_TOKEN).nonzero().flatten().tolist()
        mine, blocks = [], []
        while places:
            size = sizes.pop(0)
            of_it = block_of(size)
            block, places = places[: len(of_it)], places[len(of_it) :]
            blocks.append((block[-1], [i for i, patch in zip(block, of_it, strict=True) if patch]))
            mine.append(size)
        squares = sum(SHAPES[size][2] for size in mine)
        here, pixels = pixels[:squares], pixels[squares:]
        outputs = model(
            input_ids=ids[None],
            pixel_values=here if mine else None,
            image_sizes=mine or None,
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )
        log_probabilities = outputs.logits[0].log_softmax(-1)
        for j in range(1, len(ids)):
            if labels[j] != -100:
                lm, supervised = lm - log_probabilities[j - 1, labels[j]], supervised + 1
        for last, patches in blocks:
            images += 1
            text = [j for j in range(last + 1, len(ids)) if ids[j] != IMAGE_TOKEN]
            left_out = [False] * len(patches) if spared is None else spared[images - 1]
            all_of_it, kept, divergences = 0.0, 0.0, 0.0
            for i, out in zip(patches, left_out, strict=True):
                v = outputs.hidden_states[0][0, i]
                states = [outputs.hidden_states[layer][0, i].detach() for layer in range(1, k + 1)]
                squares_of = [layer**2 for layer in range(1, k + 1)]
                target = sum(w * s for w, s in zip(squares_of, states, strict=True)) / sum(squares_of)
                if importance == "uniform":
                    a = torch.tensor(1 / len(patches), dtype=torch.float64)
                else:
                    a = attended(outputs.attentions, k, text, i)
                das = das + a * (v / v.norm() - target / target.norm()).pow(2).sum()
                p, q = torch.softmax(embedding @ target, 0), torch.softmax(embedding @ v, 0)
                all_of_it = all_of_it + a
                if not out:
                    kept, divergences = kept + a, divergences + a * (p * (p.log() - q.log())).sum()
                targets.append(target)
                shares.append(a)
            if not all(left_out):
                sds = sds + divergences * all_of_it / kept
    assert not sizes
    lm, das, sds = lm / supervised, das / images, sds / images
    loss = weights[0] * lm + weights[1] * das + weights[2] * sds
    trained = {n: p for n, p in model.named_parameters() if is_wanted(n) and p.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()))
    return {
        "lm": lm,
        "das": das,
        "sds": sds,
        "loss": loss,
        "target": torch.stack(targets),
        "importance": torch.stack(shares),
        "gradients": dict(zip(trained, gradients, strict=True)),
        "counts": (supervised, images),
    }
