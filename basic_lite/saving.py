"""Checkpoints that are whole or not there, around what `transformers.Trainer` writes into them."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from basic_lite import checkpoint, run_folder, sharding, writing
from basic_lite.capture import parts_of


class SavingTrainer(Trainer):
    """A Trainer whose checkpoints hold what was trained alone, with the manifest, and are never half written.

    Attributes:
        manifest: what every checkpoint says of its run; `None` leaves it out.
    """

    manifest: dict | None = None

    def before_saving(self) -> None:
        """Do what must be known before a checkpoint may be written; raises if it may not."""

    def save_weights(self, folder: Path, whole: dict[str, torch.Tensor] | None = None) -> None:
        """Write what was trained: projector, adapters in PEFT's own layout, or decoder and projector.

        Args:
            folder: where to.
            whole: what `sharding.gather` returned, where the adapters are cut.
        """
        with writing.told(folder):
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
            checkpoint.save_projector(model, folder / run_folder.PROJECTOR)
            if any(p.requires_grad for p in parts_of(model).decoder.parameters()):
                checkpoint.save_decoder(model, folder / run_folder.DECODER)
        if self.manifest is not None:
            content = self.manifest | {"steps": self.state.global_step, "weights": run_folder.hashes(folder)}
            writing.write_json(folder / run_folder.MANIFEST, content)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights and the manifest to `output_dir`."""
        whole = sharding.gather(self.model, self.args.should_save)
        if self.args.should_save:
            self.save_weights(Path(output_dir or self.args.output_dir), whole)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let the Trainer write into a draft folder and rename it when it is complete.

        A kill at any moment leaves the last complete checkpoint; a half-written one is never found.
        """
        self.before_saving()
        out, main = Path(self.args.output_dir), self.is_world_process_zero()
        name = f"checkpoint-{self.state.global_step}"
        parts = out / f".{name}.parts"
        with writing.complete(out / name) if main else nullcontext() as draft:
            try:
                if main:
                    shutil.rmtree(parts, ignore_errors=True)
                self.accelerator.wait_for_everyone()
                # The Trainer appends the checkpoint's name by itself. Every process writes its random state
                # there, the first one Adam's moments whole, however they are held.
                self.args.output_dir = str(parts)
                moments = sharding.whole_moments(self.optimizer, self.args.should_save)
                with moments, writing.told(out / name):
                    super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if main:
                    _add_state(parts / name)
                    (parts / name).rename(draft)
            finally:
                self.args.output_dir = str(out)
                if main:
                    shutil.rmtree(parts, ignore_errors=True)
        keep = self.args.save_total_limit
        for old in run_folder.checkpoints(out)[:-keep] if keep and main else []:
            shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def load_weights(self, folder: Path) -> None:
        """Read back what `save_weights` wrote; a missing or unexpected tensor is an error."""
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            from peft import load_peft_weights, set_peft_model_state_dict

            checkpoint.check_adapter(model, folder)
            state = load_peft_weights(str(folder), device="cpu")
            result = set_peft_model_state_dict(model, state)
            assert not result.unexpected_keys, (
                f"{folder} holds tensors of another model: {result.unexpected_keys}"
            )
            return
        checkpoint.load_projector(model, folder / run_folder.PROJECTOR)
        if (folder / run_folder.DECODER).is_file():
            checkpoint.load_decoder(model, folder / run_folder.DECODER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.load_weights(Path(resume_from_checkpoint))


def _add_state(folder: Path) -> None:
    """Put the hashes of the Trainer's own files into a checkpoint's manifest."""
    path = folder / run_folder.MANIFEST
    if path.is_file():
        content = run_folder.read_manifest(folder) | {"state": run_folder.hashes(folder, run_folder.STATE)}
        writing.write_json(path, content)
