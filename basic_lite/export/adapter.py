"""`--to peft`: adapters over the bare LLM, for PEFT's own loader, with the projector beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from basic_lite import files
from basic_lite.data.world import parts
from basic_lite.export import configs, parity
from basic_lite.export.card import background_note, orientation_note
from basic_lite.export.chat_template import chat_template
from basic_lite.export.folder import Plan, release
from basic_lite.export.vocabulary import write_tokenizer
from basic_lite.export.weights import Adapters
from basic_lite.models import checkpoint
from basic_lite.models.llava import Assembled, load_decoder_alone

_HOW = """# Adapters and projector

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

llm = AutoModelForCausalLM.from_pretrained({llm!r}, revision={revision!r}, dtype="{dtype}")
llm = PeftModel.from_pretrained(llm, "this folder")
```

`projector.safetensors` maps the features of `{tower}` (layer {layer}) to the LLM's embeddings:
`linear_2(gelu(linear_1(features)))`. The row that stands for a patch is {image}.

{orientation} {background}
"""


def export_peft(plan: Plan, progress: Callable[[str], None] = lambda line: None) -> dict:
    """Write adapters, projector and tokenizer, unless PEFT's own loader does not give the run's logits."""
    from peft import PeftModel

    progress("asking the run")
    assembled, _ = checkpoint.load_run(plan.run, plan.device)
    passes = parity.record_decoder(assembled, parity.ask_run(assembled))
    with files.complete(plan.out) as draft:
        draft.mkdir()
        progress("writing adapters and projector")
        _write(assembled, plan, draft)
        release(assembled)
        progress("reading them back with PEFT")
        sources = checkpoint.sources_of(plan.manifest)
        loaded = PeftModel.from_pretrained(load_decoder_alone(sources, plan.device), draft)
        content = plan.origin("peft") | {
            "parity": parity.compare_decoder(loaded, passes, sources.dtype),
            "weights": files.hashes(draft),
            "versions": files.versions(),
        }
        files.write_json(draft / "export.json", content)
    return content


def _write(assembled: Assembled, plan: Plan, folder: Path) -> None:
    """Write the files; adapters and projector stay in fp32, as they were trained."""
    adapters = Adapters(plan.run)
    tensors = {
        name.replace("base_model.model.model.language_model.", "base_model.model.model."): entry.read()
        for name, entry in adapters.tensors.items()
        if ".lora_" in name
    }
    save_file(tensors, folder / files.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    projector = {entry.name: entry.read() for entry in adapters.projector()}
    save_file(projector, folder / files.PROJECTOR, metadata={"format": "pt"})
    config = checkpoint.adapter_config(plan.run)
    names = "|".join(assembled.family.lora_targets)
    sources, revision = plan.manifest["sources"], plan.manifest["llm"].get("revision")
    config |= {
        "base_model_name_or_path": parts.located(sources["llm"]),
        "revision": revision,
        "target_modules": rf".*layers\.\d+\.[\w.]+\.({names})",
        "modules_to_save": None,
        "task_type": "CAUSAL_LM",
        "auto_mapping": None,
    }
    files.write_json(folder / files.ADAPTER, config)
    write_tokenizer(assembled, folder, chat_template(assembled.template))
    files.write_json(folder / "preprocessor_config.json", configs.preprocessor_config(assembled))
    how = _HOW.format(
        llm=parts.located(sources["llm"]),
        revision=revision,
        dtype=sources["dtype"],
        tower=sources["tower"],
        layer=sources["tower_layer"],
        image=assembled.image_token_id,
        orientation=orientation_note(assembled.sources.exif),
        background=background_note(assembled.sources.background),
    )
    (folder / "README.md").write_text(how, encoding="utf-8")
    assert all(tensor.dtype == torch.float32 for tensor in projector.values()), (
        "the projector is kept in fp32"
    )
