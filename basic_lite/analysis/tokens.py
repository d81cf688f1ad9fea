"""What a run's visual embeddings mean to its LLM: every model shown the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from basic_lite.analysis import judges, replacement
from basic_lite.analysis.exhibits import Exhibit, Exhibition, Subject, each, method_of
from basic_lite.analysis.judges import end_tokens, token_texts, words_of
from basic_lite.analysis.look import Look, Plan, look
from basic_lite.data.templates import TEMPLATES, Template
from basic_lite.files import versions
from basic_lite.method.capture import supervised_layers
from basic_lite.models.llava import Assembled
from basic_lite.models.parts import parts_of

NOBODY = "nobody: neither captions nor words nor a drawn world says what is true"
WAYS: dict[str, str] = {
    "words": "a list of words: a match counts on any patch if it stands for one of them",
    "world": "the drawings: a match counts if it names something true of the thing that the patch shows",
    "captions": "captions: a match counts on any patch if it stands for a content word of the caption",
}
"""How matches are judged, in words."""


@dataclass
class Analysis:
    """Everything that was found.

    Attributes:
        subjects: the models.
        looks: what each makes of the pictures.
        exhibition: the pictures.
        judged_by: key of `WAYS`, or `None`.
        texts: text of every vocabulary row.
        ends: ids of special tokens and newlines.
        layers: k of the target.
        weighting: of its layers.
        grid: patches in a row of a picture.
        prepared: the first pictures as the tower sees them, for looking at.
    """

    subjects: list[Subject]
    looks: list[Look]
    exhibition: Exhibition
    judged_by: str | None
    texts: list[str]
    ends: frozenset[int]
    layers: int
    weighting: str
    grid: int
    prepared: list[Image.Image]

    @property
    def judged_how(self) -> str:
        """How matches were judged, in words."""
        return NOBODY if self.judged_by is None else WAYS[self.judged_by]

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON: every figure of the report, and the matches of the pictures shown there."""
        return {
            "format": 1,
            "images": self.exhibition.source,
            "found": self.exhibition.found,
            "pictures": [exhibit.name for exhibit in self.exhibition.exhibits],
            "unreadable": self.exhibition.unreadable,
            "judged_by": self.judged_by,
            "judged_how": self.judged_how,
            "layers": self.layers,
            "weighting": self.weighting,
            "stand_ins": replacement.KINDS,
            "models": [self._model(*pair) for pair in zip(self.subjects, self.looks, strict=True)],
            "versions": versions(),
        }

    def _model(self, subject: Subject, found: Look) -> dict[str, object]:
        content = found.as_dict()
        for row, depth in zip(content["depths"], found.depths, strict=True):
            row |= {"meaningful_share": depth.meaningful_share, "end_share": depth.end_share}
            row["common"] = [[self.texts[token], count] for token, count in depth.common]
        tried = [kind for kind in replacement.KINDS if any(kind in one.texts for one in found.said)]
        return {
            "label": subject.label,
            "run": str(subject.folder),
            "stage": subject.manifest["stage"] if subject.seed is None else 0,
            "method": subject.manifest["method"] if subject.seed is None else None,
            "projector_seed": subject.seed,
            "projector_seed_from": subject.seed_from or None,
            "caption_loss": {kind: found.loss(kind) for kind in replacement.KINDS},
            "caption_loss_by_layer": found.loss_by_layer(),
            "floor": found.floor(),
            "survives": {kind: found.survives(kind) for kind in replacement.KINDS},
            "texts": {kind: found.overlap(kind) for kind in tried},
            **content,
            "views": [[[self.texts[t] for t in row] for row in rows] for rows, _ in found.views],
        }


def analyse(
    chosen: list[Subject],
    exhibition: Exhibition,
    device: str,
    *,
    words: Path | None = None,
    views: int = 6,
    max_new_tokens: int = 48,
    advance: Callable[[str], None] = lambda label: None,
) -> Analysis:
    """Show every model the same pictures.

    All of them see the pictures as the last one does: a stage 1 cuts a square, a stage 2 pads to one.

    Args:
        chosen: the models; loaded one after the other.
        exhibition: the pictures.
        device: where the models go.
        words: file of words that mean something; before all other judges.
        views: pictures to keep in full.
        max_new_tokens: longest greedy text of the replacement test; 0 generates none.
        advance: told whose picture is done.
    """
    listed = None if words is None else judges.read_words(words)
    method, looks, known = method_of(chosen), [], None
    for subject, assembled in each(chosen, device):
        if known is None:
            known = _Known(assembled, exhibition, listed)
            aspect = chosen[-1].manifest["training"].get("aspect", "pad")
            prepared = [_as_seen(assembled, one, aspect) for one in exhibition.exhibits[:views]]
        plan = Plan(
            TEMPLATES["plain"] if subject.manifest["stage"] == 1 else assembled.template,
            aspect,
            *method,
            ends=known.ends,
            views=views,
            max_new_tokens=max_new_tokens,
        )
        note = subject.label
        looks.append(
            look(assembled, exhibition.exhibits, known.judges, plan, lambda note=note: advance(note))
        )
        grid = round(assembled.tokens_per_image**0.5)
        k = supervised_layers(parts_of(assembled.model).decoder.config, method[0])
        del assembled
    return Analysis(
        chosen, looks, exhibition, known.judged_by, known.texts, known.ends, k, method[1], grid, prepared
    )


class _Known:
    """What is the same for all models of an analysis: the vocabulary, and who judges."""

    def __init__(self, assembled: Assembled, exhibition: Exhibition, words: list[str] | None) -> None:
        self.texts = token_texts(assembled.tokenizer, len(parts_of(assembled.model).embedding))
        templates: list[Template] = [assembled.template, TEMPLATES["plain"]]
        self.ends = end_tokens(assembled.tokenizer, self.texts, templates)
        self.judged_by = _way(assembled, exhibition.exhibits, words)
        if self.judged_by is None:
            self.judges = [None] * len(exhibition.exhibits)
        elif self.judged_by == "world":
            self.judges = [judges.by_truth(*exhibit.scene, self.texts) for exhibit in exhibition.exhibits]
        else:
            find = judges.WordTokens(assembled.tokenizer, self.texts)
            lists = [words or words_of(exhibit.caption) for exhibit in exhibition.exhibits]
            self.judges = [judges.by_words(find.of(one)) for one in lists]


def _as_seen(assembled: Assembled, exhibit: Exhibit, aspect: str) -> Image.Image:
    """Return the square that the tower receives; of a scene the large drawing of the same square."""
    if exhibit.large is not None:
        return exhibit.large()
    pixels = assembled.transform(aspect)(exhibit.open())
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _way(assembled: Assembled, exhibits: list[Exhibit], words: list[str] | None) -> str | None:
    """Return who judges: the word list, the drawing where its patches are the tower's, or captions."""
    if words:
        return "words"
    scenes = [exhibit.scene for exhibit in exhibits]
    if all(scene is not None and len(scene[1].thing) == assembled.tokens_per_image for scene in scenes):
        return "world"
    return "captions" if all(exhibit.caption for exhibit in exhibits) else None
