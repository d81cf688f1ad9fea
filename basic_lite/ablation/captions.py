"""Measure a model on rows of an annotation file, all arms with the paper's target as the yardstick."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from basic_lite.ablation.measures import Measure
from basic_lite.conversation import TEMPLATES
from basic_lite.data.batches import Collator, SupervisedRows
from basic_lite.data.readers import open_rows
from basic_lite.modeling import Assembled, for_inference
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
    batch: int = 4,
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
        batch: rows per forward pass.

    Raises:
        ValueError: If no row has a picture, or one is bad.
    """
    model = assembled.model
    for_inference(model)
    opened = open_rows(data, images, follow_links=follow_links)
    usable = np.flatnonzero(opened.has_image)
    if not len(usable):
        raise ValueError(
            f"{data} has no row with a picture; measure on a file that has some (--measure-data)"
        )
    chosen = usable[np.unique(np.linspace(0, len(usable) - 1, count).round().astype(int))]
    transform = assembled.transform("crop")
    dataset = SupervisedRows(
        opened,
        template=TEMPLATES["plain"],
        tokenizer=assembled.tokenizer,
        transform=transform,
        image_token_id=assembled.image_token_id,
        tokens_per_image=assembled.tokens_per_image,
        max_length=max_length,
    )
    collate = Collator(pad_token_id=assembled.pad_token_id, image_token_id=assembled.image_token_id)
    supervision, found = BasicSupervision(model), {name: [] for name in ("lm", "cosine", "das", "sds")}
    device = next(model.parameters()).device
    for start in range(0, len(chosen), batch):
        rows = collate([dataset[int(row)] for row in chosen[start : start + batch]])
        pixels = transform.normalise(rows["pixel_values"].to(device), assembled.sources.dtype)
        ids, mask = rows["input_ids"].to(device), rows["attention_mask"].to(device)
        with (
            supervision,
            torch.autocast(device.type, torch.bfloat16, assembled.sources.dtype == torch.bfloat16),
        ):
            logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, use_cache=False).logits
        labels = rows["labels"][:, 1:].to(device)
        each = F.cross_entropy(
            logits[:, :-1].transpose(1, 2).float(), labels, ignore_index=IGNORE_INDEX, reduction="none"
        )
        found["lm"] += (each.sum(1) / labels.ne(IGNORE_INDEX).sum(1).clamp(min=1)).tolist()
        embedding = supervision.objective, supervision._capture.parts.embedding
        for image in range(supervision.refinement.images):
            alone = _only(supervision.refinement, image)
            cosine = F.cosine_similarity(alone.initial.float(), alone.target.float(), dim=-1)
            found["cosine"].append(float(cosine.mean()))
            for term in embedding[0].terms(alone, embedding[1]):
                found[term.name].append(float(term.total))
    return [
        Measure("caption_loss", "caption loss", "nats per token", "lower", label, found["lm"]),
        Measure("cosine", "cosine to the target", "", "higher", label, found["cosine"]),
        Measure("das", "L_das", "", None, label, found["das"]),
        Measure("sds", "L_sds", "", None, label, found["sds"]),
    ]


def _only(refinement: Refinement, image: int) -> Refinement:
    """Return one image's part."""
    mine = refinement.image == image
    parts = {name: getattr(refinement, name)[mine] for name in ("initial", "target", "importance", "image")}
    return replace(refinement, **parts, images=1)
