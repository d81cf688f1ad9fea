"""The training loop: `transformers.Trainer` with BASIC's terms, exact under accumulation."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import AutocastKwargs
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments

from basic_lite import fused, optimizers, processes, sharding
from basic_lite.callbacks import GradientCheck, Stopper
from basic_lite.capture import Importance, Weighting, parts_of
from basic_lite.data.images import ImageTransform
from basic_lite.finite import FiniteGuard
from basic_lite.forward import Forward
from basic_lite.layout import Layout, layout_of
from basic_lite.memory import peak_mib
from basic_lite.metrics import Metrics, line_of
from basic_lite.objective import Objective
from basic_lite.saving import SavingTrainer
from basic_lite.splitting import Splitter
from basic_lite.supervision import BasicSupervision
from basic_lite.targets import TargetSpace
from basic_lite.types import Window


class ShardedArguments(TrainingArguments):
    """Arguments of a run whose model the Trainer must not move to the device in one piece."""

    place_model_on_device = False


class BasicTrainer(SavingTrainer):
    """Train a LLaVA with `L_lm + das_weight * L_das + sds_weight * L_sds`, or without the last two.

    What `transformers.Trainer` does differently from the obvious: the loss of a whole optimizer step is
    divided by the step's own counts (supervised tokens for `L_lm`, images for the others), known before
    its first micro-batch. So 4x1, 2x2 and 1x4 give the same update, whatever the mix of image and
    text-only rows.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        objective: Objective | None = None,
        layers: int | None = None,
        weighting: Weighting = "quadratic",
        importance: Importance = "attention",
        target: TargetSpace | None = None,
        transform: ImageTransform | None = None,
        batches: Sampler[list[int]] | None = None,
        projector_learning_rate: float | None = None,
        optimizer_name: str = "adamw",
        fused_kernels: bool = True,
        deferred: bool = True,
        prune_last_layer: bool = True,
        sharded: bool = False,
        manifest: dict | None = None,
        **kwargs: Any,
    ) -> None:
        """Prepare.

        Args:
            model: a LLaVA whose trainable parameters are set.
            args: of the Trainer.
            objective: weights of BASIC's terms; `None` for the paper's. Both 0 trains the plain twin.
            layers: k; `None` for half.
            weighting: how layers 1..k are weighted.
            importance: how patches are weighted.
            target: in which space the target is; `None` for raw, the paper's.
            transform: normalises uint8 pictures on the device; `None` if the collator gives floats.
            batches: which rows go together, instead of the Trainer's own sampler.
            projector_learning_rate: another one for the projector (LLaVA-1.5 with LoRA: 2e-5).
            optimizer_name: one of `optimizers.NAMES`.
            fused_kernels: on a GPU, Liger's norms, MLPs and rotary embedding in the decoder.
            deferred: compute BASIC's terms in the backward pass, when the decoder's activations are gone;
                the same gradients and values for less memory.
            prune_last_layer: run the decoder's last layer for supervised rows only, where that is exact.
            sharded: cut the decoder's layers over the processes when training begins.
            manifest: written into every checkpoint.
            kwargs: `train_dataset`, `data_collator`, `callbacks`, ...
        """
        args.remove_unused_columns = False
        self.sharded = sharded
        args.logging_nan_inf_filter = False  # its isnan() waits for the GPU in every step
        # Ours to clip, where processes have joined their gradients and the guard sees the norm.
        self.max_grad_norm, args.max_grad_norm = args.max_grad_norm, 0.0
        if sharded:
            if args.place_model_on_device is not False:
                raise ValueError(
                    "sharded=True places the model layer by layer; pass args as ShardedArguments"
                )
            sharding.place_around(model, args.device)
        super().__init__(model, args, **kwargs)
        # Every trained weight is narrowed once a pass. Autocast would keep the copies until the forward pass
        # ends, also those of layers that will run again: 1 GB for a 13B's adapters, 13 GB for a whole 7B.
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        # The loss below is already divided by the whole step's counts; two names for that, old and new.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        self.objective = objective or Objective()
        settings = (layers, weighting, importance)
        self.supervision = BasicSupervision(
            model,
            *settings,
            self.objective.das_weight,
            self.objective.sds_weight,
            self.objective.rows_per_chunk,
            target or TargetSpace(),
        )
        # The plain twin's cosine is worth a look too, on the steps that are logged; it trains nothing.
        self._observer = (
            None
            if self.objective.active
            else BasicSupervision(model, layers, weighting, "uniform", target=target or TargetSpace())
        )
        self.transform = transform
        self.batches = batches
        self.projector_learning_rate = projector_learning_rate
        self.manifest = manifest
        self.metrics = Metrics()
        optimizers.check_name(optimizer_name)
        if fused_kernels:
            fused.fuse(parts_of(self.model).decoder)
        self.optimizer_name, self.deferred = optimizer_name, deferred
        watching = self._observer or self.supervision
        self.forward = Forward(self.model, watching, self.objective, self.metrics, prune_last_layer, sharded)
        self._logged_chunk = 0
        self.splitter = Splitter(self.model, self.metrics)
        self.add_callback(GradientCheck(args))
        self.guard = FiniteGuard(Path(args.output_dir), self._ids, args.process_index)
        self._stopper = Stopper()
        if args.world_size > 1:
            processes.keep_unwrapped(self.accelerator)

    def get_train_dataloader(self) -> DataLoader:
        """Load by `batches`; a resumed run skips by index, without decoding a picture."""
        if self.batches is None:
            return super().get_train_dataloader()
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_num_workers > 0,
        )
        return processes.prepare_loader(self.accelerator, loader)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], Window]:
        """Fetch the micro-batches of one optimizer step and count what its loss is divided by."""
        batches = []
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            if "layout" not in batch:
                batch["layout"] = self._layout(batch)
            batches.append(batch)
        window = self._window(batches)
        if self.args.world_size > 1:  # a signal may have reached one process alone; all stop at the same step
            counts = [window.text_tokens, window.images, int(self._stopper.requested)]
            total = self.accelerator.reduce(torch.tensor(counts, device=device), "sum").tolist()
            *counts, stopping = (int(count) for count in total)
            window, self._stopper.agreed = Window(*counts), stopping > 0
        self.metrics.rows += sum(b["layout"].rows for b in batches)
        self.splitter.begin()
        self.guard.rows = [row for batch in batches for row in batch.get("rows", [])]
        return batches, window

    @staticmethod
    def _window(batches: list[dict]) -> Window:
        layouts = [batch["layout"] for batch in batches]
        return Window(sum(len(one.targets) for one in layouts), sum(one.images for one in layouts))

    def _layout(self, batch: dict) -> Layout:
        pixels = batch.get("pixel_values")
        images = 0 if pixels is None else len(pixels)
        token = parts_of(self.model).llava.config.image_token_id
        return layout_of(batch["input_ids"], batch.get("attention_mask"), token, images, batch["labels"])

    def _on_device(self, inputs: dict) -> dict:
        """Complete a batch whose tensors the Trainer has moved; pictures travel as uint8, normalised here."""
        inputs = inputs | {"layout": inputs["layout"].to(inputs["input_ids"].device)}
        pixels = inputs.get("pixel_values")
        if pixels is not None and self.transform is not None:
            dtype = next(parts_of(self.model).llava.vision_tower.parameters()).dtype
            inputs["pixel_values"] = self.transform.normalise(pixels, dtype)
        return inputs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Window | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict]:
        """Return this micro-batch's share of the step's loss.

        Args:
            model: the wrapped model.
            inputs: a batch with its layout.
            return_outputs: also return the terms.
            num_items_in_batch: counts of the whole step; `None` takes this batch as the whole.
        """
        window = num_items_in_batch or self._window([inputs])
        watched = self._observer is None or self._logs_next()
        deferred = self.deferred and model.training and torch.is_grad_enabled() and not return_outputs
        inputs = self._on_device(inputs)
        loss, terms = self.forward(model, inputs, window, watched=watched, deferred=deferred)
        if self.args.world_size > 1:
            loss = loss * self.accelerator.num_processes  # DDP averages over processes; the counts are global
        return (loss, {term.name: term for term in terms}) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict, num_items_in_batch: Window | None = None
    ) -> torch.Tensor:
        """Run one micro-batch forward and backward and return its share of the step's loss, whole.

        One that does not fit in memory is split; see `Splitter`.
        """
        if self.args.world_size > 1:  # the processes' collectives must stay in step
            return self._train(model, inputs, num_items_in_batch)
        window = num_items_in_batch or self._window([inputs])
        return self.splitter.run(inputs, lambda part: self._train(model, part, window))

    def _train(self, model: nn.Module, inputs: dict, window: Window | None) -> torch.Tensor:
        loss = super().training_step(model, inputs, window)
        deferral, self.forward.deferral = self.forward.deferral, None
        loss = loss if deferral is None else loss + deferral.value * self.args.world_size
        return torch.where(loss.isfinite(), loss, 0.0)  # one skipped step must not hide all later ones

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor | float:
        """Clip the step's gradients, the same on all processes; a step whose norm is not finite is not taken.

        Returns:
            The norm before.
        """
        self._average_gradients()
        largest = self.max_grad_norm or math.inf
        if self.sharded:
            norm = sharding.clip(self.model.parameters(), largest)
        else:
            norm = self.accelerator.clip_grad_norm_(model.parameters(), largest)
        self.guard.judge(self.optimizer, norm, self.metrics.step, self.state.global_step + 1)
        return norm

    def _average_gradients(self) -> None:
        if self.args.world_size > 1:
            processes.average_gradients(self.model.parameters(), self.accelerator)

    def _ids(self, rows: list[int]) -> list:
        """Return the ids of rows, where the data set knows them."""
        raw = getattr(getattr(self.train_dataset, "rows", None), "raw", None)
        return [raw(row).id for row in rows] if raw else []

    def _logs_next(self) -> bool:
        """Whether the optimizer step in progress will be logged."""
        step, every = self.state.global_step + 1, max(int(self.state.logging_steps), 1)
        return step % every == 0 or (step == 1 and self.args.logging_first_step)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer by its name; the projector may have a learning rate of its own."""
        if self.optimizer is None:
            if self.sharded:  # before it sees a parameter, and after a checkpoint was read into whole ones
                sharding.shard(self.model, self.args.device)
            rate = self.projector_learning_rate
            self.optimizer = optimizers.make(self.optimizer_name, self.model, self.args, rate)
            self.optimizer.register_load_state_dict_post_hook(sharding.cut_moments)
        return self.optimizer

    def floating_point_ops(self, inputs: dict) -> int:
        """Count nothing: the Trainer's estimate walks over every parameter in every micro-batch."""
        return 0

    # -- logging ---------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the terms to what the Trainer logs, and append the step to `log.jsonl`."""
        if "loss" in logs and "train_runtime" not in logs:
            logs |= processes.sums_over_processes(self.metrics.take(), self.accelerator)
            logs["peak_mib"] = round(peak_mib(self.args.device), 1)
            if self.splitter.limit is not None:
                logs["micro_batch"] = self.splitter.limit
            if self.forward.chunk != self._logged_chunk:
                logs["rows_per_chunk"] = self._logged_chunk = self.forward.chunk
            self.guard.look(wait=True)
            if self.guard.skipped:
                logs["skipped"], self.guard.skipped = self.guard.skipped, 0
            if self.is_world_process_zero():
                row = line_of(logs, self.state.global_step, self.state.max_steps)
                with (Path(self.args.output_dir) / "log.jsonl").open("a", encoding="utf-8") as handle:
                    handle.write(json.dumps(row) + "\n")
        super().log(logs, *args, **kwargs)

    def before_saving(self) -> None:
        """Let no step whose gradients were not finite into a checkpoint."""
        self.guard.look(wait=True)

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into "finish this step, save, stop"; a second Ctrl-C stops at once."""
        stopper = self._stopper = Stopper(self.args.world_size)
        self.add_callback(stopper)
        old = {s: signal.signal(s, stopper.request) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            self.remove_callback(stopper)
