"""The training loop: `transformers.Trainer` with BASIC's terms, exact under accumulation."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import AutocastKwargs
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainingArguments

from basic_lite import files
from basic_lite.data.layout import Layout, layout_of
from basic_lite.data.pictures import ImageTransform
from basic_lite.data.stream import StreamBatches
from basic_lite.memory.available import peak_mib
from basic_lite.method.objective import Objective
from basic_lite.method.supervision import BasicSupervision
from basic_lite.method.targets import INDIVIDUAL, TargetSpace
from basic_lite.method.types import Importance, Weighting, Window
from basic_lite.models import adapters, checkpoint, decoder_layer
from basic_lite.models.parts import parts_of
from basic_lite.models.projector import Projector
from basic_lite.training import distributed, liger, optimizers
from basic_lite.training.callbacks import Begin, GradientCheck, Metrics, Stopper, cut_log, finite, line_of
from basic_lite.training.forward import Forward
from basic_lite.training.guards import DUMP, FiniteGuard, Splitter
from basic_lite.training.validation import NAMES, History, Validator, answer_tokens

LOG: str = "log.jsonl"

UNLOGGED: str = "unlogged.json"
"""File in a checkpoint: the sums of steps that no line of the log counts yet, over all processes."""


class ShardedArguments(TrainingArguments):
    """Arguments of a run whose model the Trainer must not move to the device in one piece."""

    @property
    def place_model_on_device(self) -> bool:
        return False


def stay_on_one_gpu(args: TrainingArguments) -> None:
    """Keep a process to its own GPU; several GPUs have a process each.

    Where a process sees more of them, transformers' Trainer spreads every batch over all of them by
    `nn.DataParallel`, which our batches with known positions and 4-bit weights do not survive.
    """
    args._n_gpu = min(args.n_gpu, 1)


class BasicTrainer(Trainer):
    """Train a LLaVA with `L_lm + das_weight * L_das + sds_weight * L_sds`, or without the last two.

    The loss of a whole optimizer step is divided by the step's own counts (supervised tokens for `L_lm`,
    images for the others), known before its first micro-batch. So 4x1, 2x2 and 1x4 give the same update,
    whatever the mix of image and text-only rows. Checkpoints hold only what was trained, with the manifest,
    and are never half written.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    train_dataset: Dataset
    _tr_loss: torch.Tensor

    def __init__(
        self,
        model: nn.Module,  # a LLaVA whose trainable parameters are set
        args: TrainingArguments,
        *,
        # Weights of BASIC's terms; `None` for the paper's. Both 0 trains the plain baseline.
        objective: Objective | None = None,
        layers: int | None = None,  # k; `None` for half
        weighting: Weighting = "quadratic",  # how layers 1..k are weighted
        importance: Importance = "attention",  # how patches are weighted
        target: TargetSpace | None = None,  # in which space the target is; `None` for raw, the paper's
        # Normalises uint8 pictures on the device; `None` if the collator gives floats
        transform: ImageTransform | None = None,
        batches: Sampler | None = None,  # which rows go together, instead of the Trainer's own sampler
        # Another one for the projector (LLaVA-1.5 with LoRA: 2e-5)
        projector_learning_rate: float | None = None,
        # Another one for a vision tower that is trained (LLaVA-NeXT: 2e-6)
        tower_learning_rate: float | None = None,
        optimizer_name: str = "adamw",  # one of `optimizers.NAMES`
        # On a GPU, Liger's norms, MLPs and rotary embedding in the decoder, and the projector's fp32 products
        # made of bf16 ones (`models.projector`)
        fused_kernels: bool = True,
        # Adapters that share an input run in one function (see `models.adapters`), and decoder layers in few
        # operations where their class is known (`models.decoder_layer`)
        grouped_adapters: bool = True,
        dequantised: int = 0,  # decoder layers of these whose 4-bit weights are also held dequantised
        # Compute BASIC's terms in the backward pass, when the decoder's activations are gone; the same
        # gradients and values for less memory
        deferred: bool = True,
        # Run the decoder's last layer for supervised rows only, where that is exact
        prune_last_layer: bool = True,
        sharded: bool = False,  # cut the decoder's layers over the processes when training begins
        manifest: dict | None = None,  # written into every checkpoint; `None` leaves it out
        # Measures held-out rows when `evaluate` is called (see `callbacks.Measurements`)
        validator: Validator | None = None,
        stop_after: int | None = None,  # end the run after this many measurements without a lower loss
        keeps_best: bool = False,  # save where a measurement is the best one yet, and keep that checkpoint
        **kwargs: Any,  # of the Trainer: `train_dataset`, `data_collator`, `callbacks`
    ) -> None:
        args.remove_unused_columns = False
        stay_on_one_gpu(args)
        self.sharded = sharded
        args.logging_nan_inf_filter = False  # its isnan() waits for the GPU in every step
        # Ours to clip, where processes have joined their gradients and the guard sees the norm.
        self.max_grad_norm, args.max_grad_norm = args.max_grad_norm, 0.0
        if sharded:
            if args.place_model_on_device:
                raise ValueError(
                    "sharded=True places the model layer by layer; pass args as ShardedArguments"
                )
            distributed.place_around(model, args.device)
        super().__init__(model, args, **kwargs)
        # Every trained weight is narrowed once a pass. Autocast would keep the copies until the forward pass
        # ends, also those of layers that will run again: 1 GB for a 13B's adapters, 13 GB for a whole 7B.
        accelerator: Any = self.accelerator
        accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        # The loss below is already divided by the whole step's counts; two names for that, old and new.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        self.objective = objective or Objective()
        self.supervision = BasicSupervision(
            model,
            layers,
            weighting,
            importance,
            self.objective.das_weight,
            self.objective.sds_weight,
            self.objective.rows_per_chunk,
            target or TargetSpace(),
        )
        # The plain baseline's cosine is logged, too; it trains nothing.
        self._observer = (
            None
            if self.objective.active
            else BasicSupervision(model, layers, weighting, "uniform", target=target or TargetSpace())
        )
        self.transform = transform
        self.validator, self.stop_after, self.keeps_best = validator, stop_after, keeps_best
        self.measuring_seconds = 0.0
        self.batches = batches
        self.learning_rates = projector_learning_rate, tower_learning_rate
        self.manifest = manifest
        self.metrics = Metrics()
        optimizers.check_name(optimizer_name)
        decoder = parts_of(self.model).decoder
        self.groups: list[adapters.Group] = []
        if grouped_adapters and not sharded:
            # 8-bit moments are for who has no memory left: the adapters' narrow copies do not stay either.
            self.groups = adapters.group_adapters(decoder.layers, keep_narrow=optimizer_name == "adamw")
        fused = fused_kernels and liger.fuse(decoder)
        if grouped_adapters and not sharded:
            decoder_layer.streamline(decoder, fused)
            product = torch.bfloat16 if args.bf16 else decoder.dtype
            decoder_layer.keep_dequantised(decoder, dequantised, product)
        if fused_kernels:
            for module in parts_of(self.model).llava.multi_modal_projector.modules():
                if isinstance(module, Projector):
                    module.split = not sharded
        self.optimizer_name, self.deferred = optimizer_name, deferred
        watching = self._observer or self.supervision
        self.forward = Forward(self.model, watching, self.objective, self.metrics, prune_last_layer, sharded)
        self._logged_chunk = 0
        self.splitter = Splitter(self.model, self.metrics)
        if self.objective.active and target is not None and target.kind == INDIVIDUAL:
            self.splitter.bound = f"an {INDIVIDUAL} target"
        self._resumed: Path | None = None
        self.add_callback(GradientCheck(args, self.metrics))
        self.add_callback(Begin(self._begin))
        self.guard = FiniteGuard(self.folder, self._ids, args.process_index)
        self._stopper = Stopper()
        if args.world_size > 1:
            distributed.keep_unwrapped(self.accelerator)

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
        return distributed.prepare_loader(self.accelerator, loader)

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
            total = cast(torch.Tensor, self.accelerator.reduce(torch.tensor(counts, device=device), "sum"))
            *counts, stopping = (int(count) for count in total.tolist())
            window, self._stopper.agreed = Window(*counts), stopping > 0
        self.metrics.rows += sum(b["layout"].rows for b in batches)
        self.splitter.begin()
        self.guard.rows = [row for batch in batches for row in batch.get("rows", [])]
        return batches, window

    @staticmethod
    def _window(batches: list[dict]) -> Window:
        layouts = [batch["layout"] for batch in batches]
        return Window(sum(len(x.targets) for x in layouts), sum(x.images for x in layouts))

    def _layout(self, batch: dict) -> Layout:
        pixels, parts, blocks = batch.get("pixel_values"), parts_of(self.model), None
        images = 0 if pixels is None else len(pixels)
        if images and parts.tiling is not None:
            blocks = parts.tiling.blocks(batch["image_sizes"])
            images = len(blocks)
        token, mask = parts.llava.config.image_token_id, batch.get("attention_mask")
        return layout_of(batch["input_ids"], mask, token, images, batch["labels"], blocks)

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
        counts: Any = window  # which the Trainer hands to `compute_loss`
        try:
            loss = super().training_step(model, inputs, counts)
        except torch.OutOfMemoryError:
            for group in self.groups:  # outputs that wait for a layer which did not run any more
                group.release()
            self.forward.deferral = None
            raise
        deferral, self.forward.deferral = self.forward.deferral, None
        if deferral is not None:
            assert deferral.value is not None, "no gradient arrived at the visual embeddings"
            loss = loss + deferral.value * self.args.world_size
        return torch.where(loss.isfinite(), loss, 0.0)  # one skipped step must not hide all later ones

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor | float:
        """Clip the gradients, the same on all processes, and refuse the step if their norm is not finite."""
        if self.args.world_size > 1:
            distributed.average_gradients(self.model.parameters(), self.accelerator)
        largest = self.max_grad_norm or math.inf
        if self.sharded:
            norm = distributed.clip(self.model.parameters(), largest)
        else:
            norm = nn.utils.clip_grad_norm_(self._trained(), largest, foreach=True)
        self.guard.judge(self.optimizer, norm, self.metrics.step, self.state.global_step + 1)
        return norm

    def _trained(self) -> list[nn.Parameter]:
        """Return what is trained, from the optimizer: a walk over a 7B's modules takes milliseconds."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and leave out the walks over all modules that the Trainer makes in every step.

        It calls `model.train()` for every micro-batch and `model.zero_grad()` for every step, each of which
        visits a thousand modules: 50 ms and more of a step, on a slow host, that change nothing.
        """
        model = self.model
        model.train()

        def stay(mode: bool = True) -> nn.Module:
            return model if model.training is mode else type(model).train(model, mode)

        def forget(set_to_none: bool = True) -> None:
            if self.optimizer is None or not set_to_none:
                type(model).zero_grad(model, set_to_none)
                return
            for parameter in self._trained():  # accelerate's optimizer does nothing between two steps
                parameter.grad = None
            for group in self.groups:  # what those were cut out of: 1.3 GB of a 7B's adapters
                group.gradients = []

        vars(model).update(train=stay, zero_grad=forget)
        try:
            return super().train(*args, **kwargs)
        finally:
            for name in ("train", "zero_grad"):
                vars(model).pop(name, None)

    def _ids(self, rows: list[int]) -> list:
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
                distributed.shard(self.model, self.args.device)
            rates = self.learning_rates
            self.optimizer = optimizers.make(self.optimizer_name, self.model, self.args, *rates)
            adapters.forget_after_steps(self.groups, self.optimizer)
            self.optimizer.register_load_state_dict_post_hook(distributed.cut_moments)
        return self.optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both; the next step has the rate of this run's schedule, not of one that was shorter."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            schedule: Any = self.lr_scheduler
            parts = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            schedule._last_lr = [base * share(schedule.last_epoch) for base, share in parts]
            for group, rate in zip(self.optimizer.param_groups, schedule._last_lr, strict=True):
                group["lr"] = rate

    def floating_point_ops(self, inputs: dict) -> int:
        """Count nothing: the Trainer's estimate walks over every parameter in every micro-batch."""
        return 0

    # -- saving ----------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def save_weights(self, folder: Path, whole: dict[str, torch.Tensor] | None = None) -> None:
        """Write what was trained: projector, adapters in PEFT's own layout, or decoder and projector.

        `whole` is what `distributed.gather` returned, where the adapters are cut.
        """
        with files.write_errors(folder):
            self._save_weights(folder, whole)

    def _save_weights(self, folder: Path, whole: dict[str, torch.Tensor] | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            draft = folder / ".adapter.part"
            shutil.rmtree(draft, ignore_errors=True)
            model.save_pretrained(
                draft, state_dict=whole, safe_serialization=True, save_embedding_layers=False
            )
            for path in draft.glob("adapter_*"):  # not PEFT's README, an empty form
                path.replace(folder / path.name)
            shutil.rmtree(draft)
        else:
            checkpoint.save_projector(model, folder / files.PROJECTOR)
            if any(p.requires_grad for p in parts_of(model).decoder.parameters()):
                checkpoint.save_decoder(model, folder / files.DECODER)
        if checkpoint.trained_of_tower(model):
            checkpoint.save_tower(model, folder / files.TOWER)
        self._write_manifest(folder)

    def _write_manifest(self, folder: Path) -> None:
        if self.manifest is not None:
            content = self.manifest | {"steps": self.state.global_step, "weights": files.hashes(folder)}
            files.write_json(folder / files.MANIFEST, content)

    def take_weights(self, checkpoint: Path) -> None:
        """Write a checkpoint's weights as the run's, in place of `save_model`: those of the last step."""
        if self.args.should_save:
            with files.write_errors(self.folder):
                for path in [*checkpoint.glob(files.WEIGHTS[0]), *checkpoint.glob(files.ADAPTER)]:
                    with files.complete(self.folder / path.name) as draft:
                        shutil.copyfile(path, draft)
                self._write_manifest(self.folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights and the manifest to `output_dir`."""
        whole = distributed.gather(self.model, self.args.should_save)
        if self.args.should_save:
            self.save_weights(Path(output_dir) if output_dir else self.folder, whole)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let the Trainer write into a draft folder and rename it when it is complete.

        A kill at any moment leaves the last complete checkpoint; a half-written one is never found.
        """
        self.guard.collect(wait=True)  # no step whose gradients were not finite gets into a checkpoint
        unlogged = self._unlogged()
        out, main = self.folder, self.is_world_process_zero()
        name = f"checkpoint-{self.state.global_step}"
        parts = out / f".{name}.parts"
        with files.complete(out / name) if main else nullcontext() as draft:
            try:
                if main:
                    shutil.rmtree(parts, ignore_errors=True)
                self.accelerator.wait_for_everyone()
                # The Trainer appends the checkpoint's name by itself. Every process writes its random state
                # there, the first one Adam's moments whole, however they are held.
                self.args.output_dir = str(parts)
                moments = distributed.whole_moments(self.optimizer, self.args.should_save)
                with moments, files.write_errors(out / name):
                    super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if draft is not None:
                    files.write_json(parts / name / UNLOGGED, unlogged)
                    if isinstance(self.batches, StreamBatches):
                        self.batches.save(parts / name, self.state.global_step)
                    _add_state(parts / name)
                    (parts / name).rename(draft)
            finally:
                self.args.output_dir = str(out)
                if main:
                    shutil.rmtree(parts, ignore_errors=True)
        keep = self.args.save_total_limit
        for old in files.checkpoints(out)[:-keep] if keep and main else []:
            if old.name != f"checkpoint-{self.best}":
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def load_weights(self, folder: Path) -> None:
        """Read back what `save_weights` wrote; a missing or unexpected tensor is an error."""
        model = self.accelerator.unwrap_model(self.model)
        if checkpoint.trained_of_tower(model):
            checkpoint.load_tower(model, folder / files.TOWER)
        if hasattr(model, "peft_config"):
            from peft import load_peft_weights, set_peft_model_state_dict

            checkpoint.check_adapter(model, folder)
            state = load_peft_weights(str(folder), device="cpu")
            result = set_peft_model_state_dict(model, state)
            assert not result.unexpected_keys, (
                f"{folder} holds tensors of another model: {result.unexpected_keys}"
            )
            return
        checkpoint.load_projector(model, folder / files.PROJECTOR)
        if (folder / files.DECODER).is_file():
            checkpoint.load_decoder(model, folder / files.DECODER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._resumed = Path(resume_from_checkpoint)
        self.load_weights(self._resumed)

    # -- held-out rows ---------------------------------------------------------------------------------------

    @property
    def history(self) -> History:
        """The measurements so far, with those before the run was resumed."""
        return History.of(self.state.log_history)

    @property
    def best(self) -> int | None:
        """Step of the best measurement yet, whose checkpoint stays however old it is; `None` for none."""
        return self.history.best if self.keeps_best else None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the held-out rows, log it, and decide whether to save and whether to stop.

        Returns:
            `NAMES` with `eval_` in front, under which trackers show them apart from training's.
        """
        if self.validator is None:
            return super().evaluate(*args, **kwargs)
        begun = time.monotonic()
        assert self.model is not None
        assert self.model_wrapped is not None
        how = {
            "rows_at_once": self.splitter.limit or self.args.per_device_train_batch_size,
            "sharded": self.sharded,
        }
        figures = self.validator.measure(
            self.model,
            self.model_wrapped,
            self.accelerator,
            on_device=lambda batch: self._on_device(self._prepare_inputs(batch)),
            **how,
        )
        logged = {f"eval_{name}": value for name, value in figures.items() if name in NAMES}
        self.log(dict(logged))
        history = self.history
        step, steps = self.state.global_step, self.state.max_steps
        is_over, samples = history.is_over(self.stop_after), []
        if is_over or self.validator.is_answered(step, steps):
            tokens = answer_tokens(steps)
            samples = self.validator.answers(self.model, self.accelerator, tokens=tokens, **how)
        seconds = round(time.monotonic() - begun, 3)
        self.measuring_seconds += seconds
        self.metrics.started += seconds  # training's samples per second are without it
        row = {f"val_{name}": figures.get(name) for name in (*NAMES, "rows")} | {"val_seconds": seconds}
        self._write_line(finite({"step": step, "steps": steps} | row) | {"samples": samples})
        is_best = step == history.best and history.is_below_the_beginning
        seen = logged | {"samples": samples, "is_best": is_best}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, seen)
        if self.keeps_best and step and history.best == step:
            self.control.should_save = True
        if is_over:
            self.control.should_training_stop = True
        return logged

    # -- logging ---------------------------------------------------------------------------------------------

    def _unlogged(self) -> dict[str, Any]:
        """Return what the next line of the log will count of the steps so far; all processes have to come."""
        metrics, loss = self.metrics, self.accelerator.reduce(self._tr_loss.clone(), "mean")
        sums = {name: float(metrics.sums.get(name, 0.0)) for name in metrics.steps}
        return {
            "logged": self._globalstep_last_logged,
            "loss": float(cast(torch.Tensor, loss)),
            "sums": distributed.sums_over_processes(sums, self.accelerator),
            "steps": metrics.steps,
            "skipped": self.guard.skipped,
            "rows_per_chunk": self._logged_chunk,
        }

    def _begin(self) -> None:
        """Let a resumed run log as if it had never stopped, at the intervals that are asked for now."""
        self.state.compute_steps(self.args, self.state.max_steps)
        if self._resumed is None:
            return
        if self.is_world_process_zero():
            for name in (LOG, DUMP):
                cut_log(self.folder / name, self.state.global_step)
        path, self._resumed = self._resumed / UNLOGGED, None
        if path.is_file():  # older versions left it out
            then = json.loads(path.read_text(encoding="utf-8"))
            self._globalstep_last_logged = then["logged"]
            self._tr_loss += then["loss"]
            self.metrics.sums = then["sums"] if self.is_world_process_zero() else {}
            self.metrics.steps = then["steps"]
            self.guard.skipped, self._logged_chunk = then["skipped"], then["rows_per_chunk"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the terms to what the Trainer logs, and append the step to `log.jsonl`."""
        if "loss" in logs and "train_runtime" not in logs:
            logs |= distributed.sums_over_processes(self.metrics.take(), self.accelerator)
            logs["peak_mib"] = round(peak_mib(self.args.device), 1)
            if self.splitter.limit is not None:
                logs["micro_batch"] = self.splitter.limit
            if self.forward.most_rows != self._logged_chunk:
                logs["rows_per_chunk"] = self._logged_chunk = self.forward.most_rows
            self.guard.collect(wait=True)
            if self.guard.skipped:
                logs["skipped"], self.guard.skipped = self.guard.skipped, 0
            self._write_line(line_of(logs, self.state.global_step, self.state.max_steps))
        super().log(logs, *args, **kwargs)

    def _write_line(self, row: dict[str, Any]) -> None:
        if self.is_world_process_zero():
            with (self.folder / LOG).open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")

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


def _add_state(folder: Path) -> None:
    """Put the hashes of the Trainer's own files into a checkpoint's manifest."""
    path = folder / files.MANIFEST
    if path.is_file():
        content = files.read_manifest(folder) | {"state": files.hashes(folder, files.STATE)}
        files.write_json(path, content)
