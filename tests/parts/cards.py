"""The model cards of the two shipped parts; figures are filled in when a part is built."""

from __future__ import annotations

DECODER_CARD = """---
license: apache-2.0
language: [en, zh]
library_name: transformers
---
# Demo decoder of basic-lite

A Llama decoder ({parameters} parameters, 8 layers, width 128, tied embeddings, byte-level BPE) that has
read nothing but made-up text about small scenes of coloured shapes, in English and Chinese. Given a
description of a scene it answers questions about it. It is the language half of the embedded demo
world; it knows nothing else and is of no use elsewhere.

## Training
Built from nothing by `python -m parts.command --seed {seed}`: {steps} steps of 16 rows, {minutes} minutes
on {device}. A row is a description followed by a caption, or by three to seven turns of questions and
answers in ChatML, four in ten of them multiple choice. The first steps only repeat descriptions word for
word, from which the model learns to look back; captions in another order and simple questions follow, then
all of them, and in a second course mostly multiple choice. Eight of the 64 pairs of colour and shape are held
out of the world's training pictures, but not of this decoder's text, as a language model has read of nearly
everything. One scene in eight is held out of the text: no description of it, in whatever words and order, was
read.

Three choices go beyond plain language modelling. The first two are there so that the premise of BASIC,
that shallow layers refine what stands in the context, holds in a model a thousand times smaller than those
of the paper; the third so that an hour and a half of two cores is enough:

- In four rows of ten the description is replaced by *blurred words*: each position holds a random
  mixture of the embeddings of several words of one thing (size, colour, shape, row, column), with
  noise, among positions of pure noise.
- At those positions the states after layers 1 to 4 are trained to be near the embeddings of the words of
  the mixture.
- The way to an answer is shown: where a thing has been told, the state after layer 4 is trained to be near
  the words for it; where an answer begins, the state after layer 5 near the words that were asked about,
  the attention of layer 6 on what they refer to, and the state after it near the words for that.

All shape the layers towards what BASIC measures. Results in this world therefore show that the method's
code and mechanism work; they are no evidence about large models.

## Figures
On descriptions of scenes that were held out, each with a pair of colour and shape that no training picture
has; greedy answers, exact match. `choice` questions are answered by a letter. `shallow` lines are about
blurred words: how often the best-matching token of the input, and of the shallow layers' weighted mean,
names something true of the thing.

{probe}

## Format
ChatML with a BOS: `<s><|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n...<|im_end|>`. The
token `<image>` is in the vocabulary, was never trained, and is kept for image positions. Weights are
stored in fp16 and meant for fp32.
"""

TOWER_CARD = """---
license: apache-2.0
library_name: transformers
---
# Demo tower of basic-lite

A CLIP-like vision transformer ({parameters} parameters, 6 layers, width 128, 96-pixel pictures, 64
patches of 12 pixels) that has seen nothing but drawn scenes of coloured shapes. It is the vision half
of the embedded demo world, to be used by the features of the layer before the last, without the class
token; it is of no use elsewhere.

## Training
Built from nothing by `python -m parts.command --seed {seed}`: {steps} steps of 64 pictures, {minutes}
minutes on {device}. It is supervised, not contrastive: heads on each patch name colour, shape,
size and place of the thing there, each attribute alone; a head on the class token lists the shapes of
the picture. The heads are not part of this folder. A fifth of the patches is blanked.
Eight of the 64 pairs of colour and shape are held out: no picture of them is drawn for training. Shapes are
learned from pictures with randomly turned colours, where colours have no names; without that the
tower knew each shape only in the colours it had seen it in (36 % on held-out pairs).

## Figures
Linear probes on the patch features, fitted on 1,000 new pictures of seen pairs and tested on 500 pictures
that each have a thing of a held-out pair; patches of which a thing covers at least a fifth.

{probe}

Weights are stored in fp16 and meant for fp32.
"""
