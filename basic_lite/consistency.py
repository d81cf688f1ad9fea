"""What must hold of an assembled model, whatever it was made of."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from basic_lite.capture import parts_of


def check_quantisation(model: nn.Module) -> None:
    """Assert that nothing outside the decoder's layers is quantised: `L_sds` multiplies by the embeddings."""
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            inside = ".language_model." in name and ".layers." in name
            assert inside, f"{name} must not be quantised"
    parts = parts_of(model)
    for what, weight in (("embeddings", parts.embedding), ("head", parts.head.weight)):
        plain = weight.is_floating_point() and weight.dim() == 2
        assert plain, f"the {what} must be a plain matrix"


@torch.no_grad()
def check_embedding_path(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Assert that the first layer receives the same from ids and from their embeddings: nothing is rescaled.

    Some releases scaled all of `inputs_embeds` inside the decoder (Gemma's sqrt(D)); a projector trained
    there is wrong by that factor here.
    """

    class Look(nn.Module):
        """In the place of all layers: a 7B in 4 bits takes its time for a pass on a CPU."""

        def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
            seen.append(hidden_states.float())
            return hidden_states

    seen: list[torch.Tensor] = []
    decoder = parts_of(model).decoder
    embed, layers = model.get_input_embeddings(), decoder.layers
    ids = torch.arange(4, 12, device=embed.weight.device)[None]
    decoder.layers = nn.ModuleList([Look()])
    try:
        model(input_ids=ids)
        model(inputs_embeds=embed(ids))
    finally:
        decoder.layers = layers
    by_id, by_embedding = seen
    gap = (by_id - by_embedding).abs().max() / by_id.abs().max()
    assert gap < 1e-3, f"inputs_embeds are rescaled inside the decoder (relative gap {gap:.2g})"
