"""What a run's visual embeddings mean to its LLM: every model shown the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from basic_lite.analysis import judges, replacement
from basic_lite.analysis.inspection import InspectionSettings, ModelResults, inspect_layers
from basic_lite.analysis.judges import end_tokens
from basic_lite.analysis.samples import Sample, Samples, Subject, each, method_of
from basic_lite.data.pictures import Aspect
from basic_lite.data.templates import TEMPLATES
from basic_lite.files import versions
from basic_lite.method.targets import supervised_layers
from basic_lite.method.words import WordTokens, token_texts, words_of
from basic_lite.models.llava import Assembled
from basic_lite.models.parts import parts_of

NOBODY = "nobody: there are no captions, no words and no drawn world to judge by"
WAYS: dict[str, str] = {
    "words": "a list of words: a match counts on any patch if it stands for one of them",
    "world": "the drawings: a match counts if it names something true of the thing that the patch shows",
    "captions": "captions: a match counts on any patch if it stands for a content word of the caption",
}
"""How matches are judged, in words."""


@dataclass
class Analysis:
    subjects: list[Subject]  # the models
    results: list[ModelResults]  # of each model
    samples: Samples  # what was shown
    judged_by: str | None  # key of `WAYS`, or `None`
    texts: list[str]  # text of every vocabulary row
    ends: frozenset[int]  # ids of special tokens and newlines
    layers: int  # k of the target
    weighting: str  # of its layers
    grid: int  # patches in a row of a picture
    prepared: list[Image.Image]  # the first pictures as the tower sees them

    @property
    def judged_how(self) -> str:
        return NOBODY if self.judged_by is None else WAYS[self.judged_by]

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON: every figure of the report, and the matches of the pictures shown there."""
        return {
            "format": 1,
            "images": self.samples.source,
            "found": self.samples.available,
            "pictures": [sample.name for sample in self.samples.chosen],
            "unreadable": self.samples.unreadable,
            "judged_by": self.judged_by,
            "judged_how": self.judged_how,
            "layers": self.layers,
            "weighting": self.weighting,
            "stand_ins": replacement.KINDS,
            "models": [self._model(*pair) for pair in zip(self.subjects, self.results, strict=True)],
            "versions": versions(),
        }

    def _model(self, subject: Subject, results: ModelResults) -> dict[str, object]:
        depths = [
            asdict(depth)
            | {"common": [[self.texts[token], count] for token, count in depth.common]}
            | {"meaningful_share": depth.meaningful_share, "end_share": depth.end_share}
            for depth in results.depths
        ]
        tried = [
            kind for kind in replacement.KINDS if any(kind in picture.texts for picture in results.pictures)
        ]
        return {
            "label": subject.label,
            "run": str(subject.folder),
            "stage": subject.manifest["stage"] if subject.seed is None else 0,
            "method": subject.manifest["method"] if subject.seed is None else None,
            "projector_seed": subject.seed,
            "projector_seed_from": subject.seed_from or None,
            "caption_loss": {kind: results.loss(kind) for kind in replacement.KINDS},
            "caption_loss_by_layer": results.loss_by_layer(),
            "floor": results.floor(),
            "survives": {kind: results.survives(kind) for kind in replacement.KINDS},
            "texts": {kind: results.overlap(kind) for kind in tried},
            "depths": depths,
            "pictures": [asdict(picture) for picture in results.pictures],
            "views": [[[self.texts[t] for t in row] for row in rows] for rows, _ in results.views],
        }


def analyse(
    chosen: list[Subject],
    samples: Samples,
    device: str,
    *,
    words: Path | None = None,
    views: int = 6,
    max_new_tokens: int = 48,
    advance: Callable[[str], None] = lambda label: None,
) -> Analysis:
    """Show every model the same pictures, prepared as for the last (stage 1 cuts a square, stage 2 pads).

    Models are loaded one after the other, and `advance` is called with a model's label after each picture;
    `views` pictures are kept in full. A file of `words` judges before all others. With `max_new_tokens` of 0
    the replacement test generates no text.
    """
    listed = None if words is None else judges.read_words(words)
    layers, weighting = method_of(chosen)
    aspect: Aspect = chosen[-1].manifest["training"].get("aspect", "pad")
    results: list[ModelResults] = []
    for subject, assembled in each(chosen, device):
        if not results:  # the vocabulary, the pictures and who judges are the same for all models
            parts, tokenizer = parts_of(assembled.model), assembled.tokenizer
            k, grid = supervised_layers(parts.decoder.config, layers), round(assembled.tokens_per_image**0.5)
            texts = token_texts(tokenizer, len(parts.embedding))
            ends = end_tokens(tokenizer, texts, [assembled.template, TEMPLATES["plain"]])
            judged_by, judged = _judges(assembled, samples.chosen, texts, listed)
            prepared = [_as_received(assembled, sample, aspect) for sample in samples.chosen[:views]]
            del parts
        plan = InspectionSettings(
            TEMPLATES["plain"] if subject.manifest["stage"] == 1 else assembled.template,
            aspect,
            layers,
            weighting,
            ends=ends,
            views=views,
            max_new_tokens=max_new_tokens,
        )
        note = partial(advance, subject.label)
        results.append(inspect_layers(assembled, samples.chosen, judged, plan, note))
        del assembled
    return Analysis(chosen, results, samples, judged_by, texts, ends, k, weighting, grid, prepared)


def _as_received(assembled: Assembled, sample: Sample, aspect: Aspect) -> Image.Image:
    """Return the square that the tower receives; of a scene the large drawing of the same square."""
    if sample.large is not None:
        return sample.large()
    pixels = assembled.transform(aspect)(sample.open())
    pixels = pixels if pixels.dim() == 3 else pixels[0]  # the whole picture: its tiles are not shown
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _judges(
    assembled: Assembled, samples: list[Sample], texts: list[str], words: list[str] | None
) -> tuple[str | None, list[judges.Judge | None]]:
    """Return who judges - the list of words, the drawing where its patches are the tower's, or captions."""
    named = WordTokens(assembled.tokenizer, texts)
    if words:
        return "words", [judges.by_words(named.of(words))] * len(samples)
    scenes = [sample.scene for sample in samples if sample.scene is not None]
    if [len(picture.thing) for _, picture in scenes] == [assembled.tokens_per_image] * len(samples):
        return "world", [judges.by_truth(*scene, texts) for scene in scenes]
    captions = [sample.caption for sample in samples if sample.caption]
    if len(captions) < len(samples):
        return None, [None] * len(samples)
    return "captions", [judges.by_words(named.of(words_of(caption))) for caption in captions]
