"""LLaVAs of any size made of fake tensors: shapes and dtypes without bytes, for exact counts in seconds."""

from __future__ import annotations

import weakref

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, PretrainedConfig

from basic_lite.data.layout import layout_of
from basic_lite.method.objective import Objective
from basic_lite.method.supervision import BasicSupervision
from basic_lite.method.types import Window
from basic_lite.models.devices import recompute_layers
from basic_lite.models.parts import parts_of
from basic_lite.models.projector import Projector
from basic_lite.training.callbacks import Metrics
from basic_lite.training.forward import Forward

WIDE_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 168,
    "patch_size": 14,
}
"""A tower's settings, for models that are measured and never run on real numbers."""


def _attention(query, key, value, *args, out_shape=None, **kwargs):
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient, query, key, value, *args, out_shape=None, **kwargs):
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch counts the kernels of a GPU and leaves out a CPU's own.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Bytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make and that are still in use, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        key, size = storage._cdata, storage.nbytes()

        def gone(_: object) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def expect(self, *tensors: torch.Tensor) -> None:
        """Do not count what was there before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = weakref.ref(storage)


class Weightless:
    """A LLaVA in stage 1 or 2 and one batch of captions for it; use inside no other fake mode.

    Args:
        decoder: its configuration.
        tower: settings of a `CLIPVisionConfig`.
        rows: pictures, one per row.
        text: supervised tokens behind each picture.
        rank: of adapters on all of the decoder's projections; 0 for stage 1.
        recompute: checkpoint the decoder's layers.
        dtype: of everything but the projector.
    """

    def __init__(
        self,
        decoder: PretrainedConfig,
        tower: dict,
        *,
        rows: int,
        text: int,
        rank: int = 0,
        recompute: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        vision = CLIPVisionConfig(**tower)
        self.patches = (vision.image_size // vision.patch_size) ** 2
        self.rows, self.text = rows, text
        config = LlavaConfig(
            text_config=decoder,
            vision_config=vision,
            image_token_index=3,
            image_seq_length=self.patches,
            tie_word_embeddings=decoder.tie_word_embeddings,
        )
        words = torch.arange(text) % 100 + 10
        ids = torch.cat([torch.ones(1).long(), torch.full((self.patches,), 3), words])
        ids = ids.expand(rows, -1).contiguous()
        layout = layout_of(ids, None, 3, rows, ids.masked_fill(ids < 10, -100))
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        old = torch.get_default_dtype()
        with self.mode:
            torch.set_default_dtype(dtype)
            try:
                self.model: nn.Module = LlavaForConditionalGeneration(config)
            finally:
                torch.set_default_dtype(old)
            self.model.model.multi_modal_projector = Projector(config)
            self.model.requires_grad_(False).train()
            if recompute:
                recompute_layers(parts_of(self.model).decoder)
            if rank:
                lora = LoraConfig(r=rank, target_modules=r".*language_model.*_proj")
                self.model = get_peft_model(self.model, lora, autocast_adapter_dtype=False)
            parts_of(self.model).llava.multi_modal_projector.requires_grad_(True)
            pixels = torch.empty(rows, 3, vision.image_size, vision.image_size, dtype=dtype)
            layout = layout._map(self.mode.from_tensor)
        self.inputs = {"input_ids": self.mode.from_tensor(ids), "layout": layout, "pixel_values": pixels}

    def _run(self, objective: Objective, deferred: bool, settings: dict) -> None:
        weights = {"das_weight": objective.das_weight, "sds_weight": objective.sds_weight}
        forward = Forward(
            self.model, BasicSupervision(self.model, **weights), objective, Metrics(), **settings
        )
        window = Window(self.rows * self.text, self.rows)
        loss, _ = forward(self.model, self.inputs, window, deferred=deferred)
        loss.backward()
        for parameter in self.model.parameters():
            parameter.grad = None

    def peak(self, objective: Objective, deferred: bool = True, **settings: object) -> int:
        """Highest number of bytes beyond weights and batch in one micro-batch, forward and backward."""
        with self.mode, Bytes() as counter:
            counter.expect(*self.model.parameters(), *self.model.buffers(), self.inputs["pixel_values"])
            self._run(objective, deferred, settings)
        return counter.peak

    def flops(self, objective: Objective, deferred: bool = True, **settings: object) -> int:
        """Floating point operations of one micro-batch's matrix products, forward and backward."""
        with self.mode, FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            self._run(objective, deferred, settings)
        return counter.get_total_flops()
