"""Pretraining of the demo tower: a small CLIP-like vision transformer that learns what its patches show.

It is trained on pictures of seen pairs alone. Heads on the patch features of the layer before the last,
which is the one that LLaVA uses, name colour, shape, size and place of the thing at each patch, each by its
own head, and whether there is one; a head on the last layer's class token lists the shapes of the whole
picture. Only the backbone ships. In training a fifth of the patches is blanked, so a patch must also look at
its neighbours, and shapes are learned from pictures in random colours.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from basic_lite.data.world.render import PATCH, SIDE, render
from basic_lite.data.world.scenes import COLOURS, PLACES, SHAPES, SIZES, sample_scene

ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "place": PLACES}

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

SHOWN = 0.2
"""A patch shows a thing that covers at least this share of it."""

BLANKED = 0.2


@dataclass(frozen=True)
class Album:
    """Pictures with the truth about their patches, ready for training.

    Attributes:
        pixels: `(I, 3, SIDE, SIDE)` uint8.
        labels: For each attribute `(I, P)` int64 indices into its values, -100 where no thing is shown.
        shown: `(I, P)` fp32: 1 where a thing is shown, 0 on plain ground, NaN where the edge of a thing is.
        held_out: `(I, P)` bool, whether the thing there is of a held-out pair.
    """

    pixels: torch.Tensor
    labels: dict[str, torch.Tensor]
    shown: torch.Tensor
    held_out: torch.Tensor


def album(pictures: int, seed: int, held_out: bool = False) -> Album:
    """Draw scenes and collect pixels and patch labels."""
    rng = random.Random(seed)
    patches = (SIDE // PATCH) ** 2
    pixels = torch.empty(pictures, 3, SIDE, SIDE, dtype=torch.uint8)
    labels = {name: torch.full((pictures, patches), -100) for name in ATTRIBUTES}
    shown = torch.zeros(pictures, patches)
    new = torch.zeros(pictures, patches, dtype=torch.bool)
    for i in range(pictures):
        scene = sample_scene(rng, held_out)
        picture = render(scene)
        pixels[i] = torch.from_numpy(np.array(picture.image)).permute(2, 0, 1)
        for patch, (index, share) in enumerate(zip(picture.thing, picture.share, strict=True)):
            if index < 0:
                continue
            shown[i, patch] = 1.0 if share >= SHOWN else float("nan")
            if share >= SHOWN:
                thing = scene.things[index]
                new[i, patch] = (COLOURS.index(thing.colour)) == SHAPES.index(thing.shape)
                for name, values in ATTRIBUTES.items():
                    labels[name][i, patch] = values.index(getattr(thing, name))
    return Album(pixels, labels, shown, new)


def tower_config() -> CLIPVisionConfig:
    """Return the tower's architecture: 6 layers of width 128, 64 patches, about 1 M parameters."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=128,
    )


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Return `(I, 3, h, w)` uint8 pixels as CLIP's image processor would give them."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return (pixels.float() / 255 - mean) / std


def patch_features(tower: CLIPVisionModel, pixels: torch.Tensor, rows: int = 128) -> torch.Tensor:
    """Return `(I, P, width)` features of the layer before the last, without the class token."""
    with torch.no_grad():
        parts = [
            tower(pixel_values=normalise(part), output_hidden_states=True).hidden_states[-2][:, 1:]
            for part in pixels.split(rows)
        ]
    return torch.cat(parts)


class _Heads(nn.Module):
    """The heads of pretraining; they do not ship."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attributes = nn.ModuleDict({name: nn.Linear(width, len(v)) for name, v in ATTRIBUTES.items()})
        self.shown = nn.Linear(width, 1)
        self.picture = nn.Linear(width, len(SHAPES))


def train_tower(
    seed: int,
    steps: int,
    pictures: int = 6_000,
    rows: int = 64,
    device: str = "cpu",
    progress: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> CLIPVisionModel:
    """Train the tower from nothing.

    Args:
        seed: Seed of weights, pictures, order and blanking.
        steps: Optimizer steps.
        pictures: Pictures drawn; they are seen several times.
        rows: Pictures per step.
        device: `"cpu"` or `"cuda"`; the weights start the same on both, rounding differs.
        progress: Called after every step with its number and its losses.

    Returns:
        The trained tower in fp32, on the CPU, without heads.
    """
    torch.manual_seed(seed)
    tower = CLIPVisionModel(tower_config())
    tower.set_attn_implementation("eager")  # in bf16 on a CPU twice as fast as the fused kernel's backward
    heads = _Heads(tower.config.hidden_size)
    tower.to(device)
    heads.to(device)
    book = album(pictures, seed)
    matrices = [p for p in tower.encoder.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for m in (tower, heads) for p in m.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-3, weight_decay=0.0),
    ]
    shape = lambda step: min(1, (step + 1) / 50) * (steps - step) / steps  # noqa: E731
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, shape) for optimizer in optimizers]
    order = torch.randperm(pictures)
    for step in range(steps):
        if (step + 1) * rows % pictures < rows:
            order = torch.randperm(pictures)
        chosen_rows = order[torch.arange(step * rows, (step + 1) * rows) % pictures]
        with torch.autocast(device, dtype=torch.bfloat16):
            losses = _losses(tower, heads, book, chosen_rows)
        sum(losses.values()).backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        progress(step, {name: loss.item() for name, loss in losses.items()})
    return tower.cpu().eval()


def _losses(
    tower: CLIPVisionModel, heads: _Heads, book: Album, chosen: torch.Tensor
) -> dict[str, torch.Tensor]:
    device = tower.device
    pixels, recoloured = (made.to(device) for made in recolour(book.pixels[chosen].float()))
    grid = SIDE // PATCH
    blank = (torch.rand(len(chosen), 1, grid, grid) < BLANKED).float().to(device)
    pixels = normalise(pixels) * (1 - F.interpolate(blank, scale_factor=PATCH))
    labels = {name: label[chosen].to(device) for name, label in book.labels.items()}
    labels["colour"] = labels["colour"].masked_fill(recoloured[:, None], -100)
    labels["shape"] = labels["shape"].masked_fill(~recoloured[:, None], -100)
    seen = tower(pixel_values=pixels, output_hidden_states=True)
    states = heads.norm(seen.hidden_states[-2][:, 1:])
    losses = {
        name: F.cross_entropy(head(states).flatten(0, 1).float(), labels[name].flatten())
        for name, head in heads.attributes.items()
    }
    shown = book.shown[chosen].to(device)
    clear = ~shown.isnan()
    logits = heads.shown(states)[..., 0].float()
    losses["shown"] = F.binary_cross_entropy_with_logits(logits[clear], shown[clear])
    present = F.one_hot(labels["shape"].clamp(min=0), len(SHAPES)) * labels["shape"].ge(0)[..., None]
    said = heads.picture(seen.pooler_output[recoloured]).float()
    losses["picture"] = F.binary_cross_entropy_with_logits(said, present.amax(1)[recoloured].float())
    return losses


def recolour(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give every other picture random colours, by turning colour space about its mean colour.

    Shape is learned from these alone. Else a tower learns each shape once per colour, takes a red thing for
    anything but the circle that was never red, and fails on the pairs it never saw.

    Args:
        pixels: `(I, 3, h, w)`, 0 to 255.

    Returns:
        The pictures, and `(I,)` bool: which have random colours.
    """
    turn = torch.linalg.qr(torch.randn(len(pixels), 3, 3)).Q
    mean = pixels.mean((2, 3), keepdim=True)
    mixed = (mean + torch.einsum("irc,ichw->irhw", turn, pixels - mean)).clamp(0, 255)
    chosen = torch.rand(len(pixels)) < 0.5
    return torch.where(chosen[:, None, None, None], mixed, pixels), chosen


def probe_tower(
    tower: CLIPVisionModel, seed: int, pictures: int = 1000, steps: int = 300
) -> dict[str, float]:
    """Fit linear probes on patch features of training pictures and test them on held-out pictures.

    Args:
        tower: The tower, frozen.
        seed: Seed of both sets of pictures; training must have used another.
        pictures: Pictures to fit on; half as many to test on, each with a thing of a held-out pair.
        steps: L-BFGS iterations at most.

    Returns:
        Accuracy in percent over patches that show a thing: each attribute over all such patches, and colour
        and shape over the patches of held-out pairs alone.
    """
    fit, test = album(pictures, seed), album(pictures // 2, seed + 1, held_out=True)
    known, asked = patch_features(tower, fit.pixels), patch_features(tower, test.pixels)
    mean, std = known.mean((0, 1)), known.std((0, 1)) + 1e-6
    known, asked = (known - mean) / std, (asked - mean) / std
    result = {}
    for name, values in ATTRIBUTES.items():
        label, truth = fit.labels[name], test.labels[name]
        where, there = label >= 0, truth >= 0
        head = nn.Linear(known.shape[-1], len(values))
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

        def closure(head=head, optimizer=optimizer, where=where, label=label) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(head(known[where]), label[where]) + 1e-4 * head.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        right = head(asked).argmax(-1) == truth
        result[name] = round(100 * right[there].float().mean().item(), 1)
        if name in ("colour", "shape"):
            chosen = there & test.held_out
            result[f"{name} of held-out pairs"] = round(100 * right[chosen].float().mean().item(), 1)
    return result
