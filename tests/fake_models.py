"""Models of any size whose tensors have shapes but no bytes, and a count of what a step would hold.

Under `FakeTensorMode` the real modules, autograd and the real trainer run at a 7B's shapes in seconds on any
machine. Three things are imitated: bitsandbytes' packed parameter cannot be a fake tensor, so its layer gets
a plain one (autograd function and packing are bitsandbytes' own); the paths that torch takes on a GPU are
taken on the CPU; and Triton's kernels are not launched (Liger's autograd functions around them are its own).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.autograd._functions import MatMul4Bit
from bitsandbytes.functional import QuantState, dequantize_4bit
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PretrainedConfig, TrainingArguments
from triton.runtime.jit import KernelInterface

from basic_lite.bench import synthetic
from basic_lite.data.layout import layout_of
from basic_lite.data.pictures import ImageTransform
from basic_lite.memory.activations import DecoderSetup
from basic_lite.memory.peak import Step
from basic_lite.method import losses
from basic_lite.method.objective import Objective
from basic_lite.method.types import Window
from basic_lite.models import trainable, zoo
from basic_lite.models.adapters import group_adapters
from basic_lite.models.decoder_layer import streamline
from basic_lite.models.devices import recompute_layers
from basic_lite.models.llava import Assembled
from basic_lite.models.parts import parts_of
from basic_lite.training import liger
from basic_lite.training.trainer import BasicTrainer

_MODELING = [
    import_module(
        f"transformers.models.{family.removesuffix('_text')}.modeling_{family.removesuffix('_text')}"
    )
    for family in zoo.FAMILIES
]


class _Product(MatMul4Bit):
    """Forward as bitsandbytes does it on a GPU for more than some 1,500 rows: unpack, then multiply."""

    @staticmethod
    def forward(ctx, given, packed, out=None, bias=None, quant_state=None):
        ctx.is_empty, ctx.state = False, quant_state
        ctx.dtype_A, ctx.dtype_B, ctx.dtype_bias = given.dtype, packed.dtype, None
        ctx.tensors = (None, packed) if any(ctx.needs_input_grad[:2]) else (None, None)
        return F.linear(given, dequantize_4bit(packed, quant_state).to(given.dtype))


class PackedLinear(bnb.nn.Linear4bit):
    """nf4 with double quantisation, shapes only."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = linear.weight.shape
        self.bias, self.compute_dtype, self.compute_type_is_set = None, dtype, True
        blocks = linear.weight.numel() // 64
        packed = torch.empty(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        inner = QuantState(
            absmax=torch.empty(math.ceil(blocks / 256)),
            blocksize=256,
            code=torch.empty(256),
            dtype=torch.float32,
        )
        self.quant_state = QuantState(
            absmax=torch.empty(blocks, dtype=torch.uint8),
            shape=torch.Size(linear.weight.shape),
            code=torch.empty(16),
            blocksize=64,
            quant_type="nf4",
            dtype=dtype,
            offset=torch.empty(()),
            state2=inner,
        )
        for name, value in (("compress_statistics", True), ("quant_type", "nf4")):
            setattr(self.weight, name, value)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return _Product.apply(given.to(self.compute_dtype), self.weight, None, None, self.quant_state)

    def tensors(self) -> list[torch.Tensor]:
        return [self.quant_state.absmax, self.quant_state.state2.absmax]


def _pack(module: nn.Module, dtype: torch.dtype) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, dtype))
        else:
            _pack(child, dtype)


def _in_place(changed: dict[int, tuple[nn.Parameter, nn.Parameter]]):
    """Return an `nn.Module._apply` for fake parameters, which cannot be swapped: new ones are put in.

    Args:
        changed: old and new parameter by the old one's id, so that tied ones stay tied.
    """

    def apply(self: nn.Module, change, recurse: bool = True) -> nn.Module:
        for module in self.modules():
            for name, old in module._parameters.items():
                given = None if old is None else old.detach()
                new = None if given is None else change(given)
                if new is not given:
                    if id(old) not in changed:
                        changed[id(old)] = old, nn.Parameter(new, old.requires_grad)
                    module._parameters[name] = changed[id(old)][1]
            for name, old in module._buffers.items():
                module._buffers[name] = None if old is None else change(old)
        return self

    return apply


@contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Fake tensors, and torch's choices as on a GPU."""
    enabled, layer_norm = torch.is_autocast_enabled, F.layer_norm
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True) as mode:
        patch.setattr(nn.Module, "_apply", _in_place({}))
        patch.setattr(synthetic, "_fill", lambda model, shift: None)  # there is nothing to write numbers to
        # PEFT asks without a device, which means the GPU's.
        patch.setattr(torch, "is_autocast_enabled", lambda *device: enabled(*(device or ("cpu",))))
        patch.setattr(
            F,
            "dropout",
            lambda x, p=0.5, training=True, inplace=False: (
                torch.native_dropout(x, p, training)[0] if p and training else x
            ),
        )
        patch.setattr(  # autocast widens its input on a GPU
            F,
            "layer_norm",
            lambda x, *args, **kwargs: layer_norm(
                x.float() if enabled("cpu") else x,
                *(a.float() if enabled("cpu") and isinstance(a, torch.Tensor) else a for a in args),
                **kwargs,
            ),
        )
        patch.setitem(losses._BLOCK_ELEMENTS, "cpu", losses._BLOCK_ELEMENTS["cuda"])
        patch.setattr(KernelInterface, "__getitem__", lambda kernel, grid: lambda *args, **kwargs: None)
        before = [dict(vars(module)) for module in _MODELING]  # Liger changes them for all later models
        try:
            yield mode
        finally:
            for module, names in zip(_MODELING, before, strict=True):
                vars(module).update(names)


def fake_model(
    name: str,
    setup: DecoderSetup,
    layers: int | None = None,
    text: PretrainedConfig | None = None,
    tower_trained: bool = False,
    tower_rank: int = 0,
) -> Assembled:
    """Build a model of real size, or of `text`, as a stage trains it; only inside `fake_gpu`."""
    dtype = torch.bfloat16 if setup.half else torch.float32
    assembled = synthetic.random_model(name, bits=16, dtype=dtype, device="cpu", layers=layers, text=text)
    assembled.sources = replace(assembled.sources, bits=setup.bits)
    if setup.bits == 4:
        _pack(parts_of(assembled.model).decoder.layers, dtype)
    if setup.training == "projector":
        trainable.train_projector(assembled)
    elif setup.training == "adapters":
        sizes = (setup.rank, 2 * setup.rank, setup.dropout, tower_rank)
        trainable.train_adapters(assembled, trainable.Adapters(*sizes))
        assert group_adapters(parts_of(assembled.model).decoder.layers)
    else:
        trainable.train_everything(assembled)
    if tower_trained:
        trainable.train_tower(assembled)
    found = liger.patch_of(parts_of(assembled.model).decoder) if setup.fused else None
    if found is not None:
        patch, pieces = found
        patch(model=parts_of(assembled.model).decoder, **pieces)
    if setup.training != "decoder" and setup.bits != 8:
        streamline(parts_of(assembled.model).decoder, found is not None)
    return assembled


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    """Return a model's parameters, buffers and quantisation constants."""
    packed = [t for m in model.modules() if isinstance(m, PackedLinear) for t in m.tensors()]
    return [*model.parameters(), *model.buffers(), *packed]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there were.

    It asks which ones are still there whenever there might be more than ever before. (Python's own weak
    references to storages, with callbacks, crash the interpreter when a cycle of them is collected.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int, tuple]] = {}
        self.now = self.peak = 0

    def add(self, tensor: torch.Tensor, what: str = "given") -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return
        self.alive[key] = (StorageWeakRef(storage), size, (what, tuple(tensor.shape), tensor.dtype))
        self.now += size
        if self.now > self.peak:
            self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
            self.now = sum(size for _, size, _ in self.alive.values())
            self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.add(value, str(function))
        return result


def step_peak(name: str, step: Step, folder: str) -> int:
    """Run two optimizer steps of the real trainer, and return the most bytes held.

    Args:
        name: of a published decoder, with as many layers as `step.decoder` says.
        step: the step; every row has one picture.
        folder: for what the trainer writes.
    """
    words = torch.arange(step.text) % 100 + 10
    ids = torch.cat([torch.ones(1).long(), torch.full((step.tower.tokens,), 3), words])
    ids = ids.expand(step.micro_batch, -1).contiguous()
    labels = ids.masked_fill(ids < 10, -100)
    layout = layout_of(ids, None, 3, step.micro_batch, labels)
    side, rows, passes = step.tower.image_size, step.micro_batch, 2 if step.accumulates else 1
    pixels = torch.zeros(rows, 3, side, side, dtype=torch.uint8)
    half = (0.5, 0.5, 0.5)
    with fake_gpu() as mode:
        live = LiveBytes()
        tower = {"tower_trained": step.tower_trained, "tower_rank": step.tower_rank}
        model = fake_model(name, step.setup, step.decoder.depth, **tower).model
        recompute_layers(parts_of(model).decoder, step.recompute)
        args = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=passes,
            max_steps=2,
            bf16=step.setup.half,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        objective = Objective(rows_per_chunk=step.rows_per_chunk) if step.basic else Objective(0, 0)
        transform = ImageTransform(size=side, mean=half, std=half, aspect="squash")
        trainer = BasicTrainer(model, args, objective=objective, transform=transform, train_dataset=[0])
        for group in trainer.create_optimizer().param_groups:
            group.update(fused=True, foreach=False)  # as on a GPU
        trainer.current_gradient_accumulation_steps = passes
        wrapped = trainer.accelerator.prepare_model(model)  # which is where autocast comes from
        # Not before: the trainer lays the packed weights of grouped layers out anew, in other storages.
        for tensor in tensors_of(model):
            live.add(tensor.detach())  # a deep copy of a fake tensor has a storage that none of its views has
        with live:
            for _ in range(2):
                for _ in range(passes):
                    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
                    batch = {key: mode.from_tensor(value) for key, value in batch.items()}
                    batch |= {
                        "layout": layout._map(mode.from_tensor),
                        "pixel_values": mode.from_tensor(pixels),
                    }
                    trainer.training_step(wrapped, batch, Window(passes * rows * step.text, passes * rows))
                trainer.optimizer.step()
                model.zero_grad()
        return live.peak
