"""Measure a model on rows of an annotation file, all arms with the paper's target as the yardstick."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from basic_lite.ablation.measures import Measure
from basic_lite.capture import parts_of
from basic_lite.conversation import TEMPLATES
from basic_lite.data.images import ImageTransform
from basic_lite.data.readers import open_rows
from basic_lite.modeling import Assembled, for_inference
from basic_lite.prompting import forward_inputs
from basic_lite.supervision import BasicSupervision
from basic_lite.types import IGNORE_INDEX, Refinement


@torch.no_grad()
def rows_of_file(
    assembled: Assembled,
    data: str,
    images: str | None,
    count: int,
    label: str,
    max_length: int = 2048,
    follow_links: bool = False,
    words: Sequence[str] = (),
) -> list[Measure]:
    """Return caption loss, cosine to the target and both terms, for rows evenly spread over a file.

    Args:
        assembled: the model.
        data: annotation file.
        images: folder or archive of its pictures.
        count: how many rows with a picture, at most.
        label: what these rows are, in the plural.
        max_length: most tokens of a row.
        follow_links: links in the image folder may lead out of it.
        words: where every answer begins with one of these words, a token each: how often the right one is
            likelier than the others is measured too.

    Raises:
        ValueError: If no row has a picture, or one is bad.
    """
    model = assembled.model
    for_inference(model)
    parts, supervision = parts_of(model), BasicSupervision(model)
    ids = torch.tensor(
        [assembled.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    )
    found: dict[str, list[float]] = {name: [] for name in ("lm", "cosine", "das", "sds", "read")}
    transform = assembled.transform("crop")
    for batch in _batches(assembled, transform, data, images, count, max_length, follow_links):
        inputs = forward_inputs(model, batch, transform)
        device = inputs["input_ids"].device
        half = assembled.sources.dtype == torch.bfloat16
        with supervision, torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(**inputs, use_cache=False).logits[:, :-1].float()
        labels = batch["labels"][:, 1:].to(device)
        each = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")
        supervised = labels.ne(IGNORE_INDEX)
        found["lm"] += (each.sum(1) / supervised.sum(1).clamp(min=1)).tolist()
        if len(ids):
            rows, first = torch.arange(len(labels)), supervised.int().argmax(1)
            said = ids.to(device)[logits[rows, first][:, ids].argmax(1)]
            found["read"] += said.eq(labels[rows, first]).float().mul(100).tolist()
        for image in range(supervision.refinement.images):
            alone = _only(supervision.refinement, image)
            cosine = F.cosine_similarity(alone.initial.float(), alone.target.float(), dim=-1)
            found["cosine"].append(float(cosine.mean()))
            for term in supervision.objective.terms(alone, parts.embedding):
                found[term.name].append(float(term.total))
    measures = [
        Measure("caption_loss", "caption loss", "nats per token", "lower", label, found["lm"]),
        Measure("cosine", "cosine to the target", "", "higher", label, found["cosine"]),
        Measure("das", "L_das", "", None, label, found["das"]),
        Measure("sds", "L_sds", "", None, label, found["sds"]),
    ]
    read = Measure("read", f"words read, of {len(words)}", "%", "higher", label, found["read"], digits=1)
    return [*measures, read] if words else measures


def _batches(
    assembled: Assembled,
    transform: ImageTransform,
    data: str,
    images: str | None,
    count: int,
    max_length: int,
    follow_links: bool,
    size: int = 4,
) -> Iterator[dict]:
    """Yield batches of rows, evenly spread, as stage 1 is shown them."""
    opened = open_rows(data, images, follow_links=follow_links)
    usable = np.flatnonzero(opened.has_image)
    if not len(usable):
        raise ValueError(f"{data} has no row with a picture; measure on one that has some (--measure-data)")
    evenly = np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)
    chosen = usable[evenly]
    dataset = assembled.supervised(opened, TEMPLATES["plain"], transform, max_length=max_length)
    collate = assembled.collator()
    for start in range(0, len(chosen), size):
        yield collate([dataset[int(row)] for row in chosen[start : start + size]])


def _only(refinement: Refinement, image: int) -> Refinement:
    """Return one image's part."""
    mine = refinement.image == image
    parts = {name: getattr(refinement, name)[mine] for name in ("initial", "target", "importance", "image")}
    return replace(refinement, **parts, images=1)
