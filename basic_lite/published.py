"""The published training sets, for a stage that is told no data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from basic_lite.data.stored import is_stored


@dataclass(frozen=True)
class Published:
    """Where a published annotation file is, and how its pictures come.

    Attributes:
        repository: data set on the hub.
        annotations: file in it.
        images: archive in it that holds the pictures, or `None` where they come from elsewhere.
        remedy: what a user without that file does.
    """

    repository: str
    annotations: str
    images: str | None
    remedy: str


STAGES: dict[int, Published] = {
    1: Published(
        "liuhaotian/LLaVA-Pretrain",
        "blip_laion_cc_sbu_558k.json",
        "images.zip",
        "--data blip_laion_cc_sbu_558k.json --images DIR (27 GB of pictures, unpacked), or any LLaVA JSON",
    ),
    2: Published(
        "liuhaotian/LLaVA-Instruct-150K",
        "llava_v1_5_mix665k.json",
        None,
        "--data llava_v1_5_mix665k.json --images DIR (with coco/ gqa/ ocr_vqa/ textvqa/ vg/), or any "
        "LLaVA JSON",
    ),
}


def fetch(stage: int, data: Path | None, images: Path | None) -> tuple[Path, Path | None]:
    """Return annotation file and image root of a stage, from the arguments or from the hub.

    Args:
        stage: 1 or 2.
        data: what the user gave, a path or a hub id, or `None`.
        images: what the user gave, or `None`.

    Raises:
        ValueError: In one line, if a given file does not exist or the hub does not answer.
    """
    if data is not None:
        if not data.is_file() and not data.is_dir() and not is_stored(data):
            raise ValueError(
                f"--data {data} does not exist; give a LLaVA JSON or JSONL file, a folder of Arrow or "
                "Parquet, or a hub id"
            )
        if images is not None and not images.exists():
            raise ValueError(f"--images {images} does not exist; give the folder that image paths start from")
        return data, images
    from huggingface_hub import hf_hub_download

    row = STAGES[stage]
    if row.images is None and images is None:
        raise ValueError(f"stage {stage} needs pictures that no single download holds: give {row.remedy}")
    try:
        found = Path(hf_hub_download(row.repository, row.annotations, repo_type="dataset"))
        if images is None:
            images = Path(hf_hub_download(row.repository, row.images, repo_type="dataset"))
    except Exception as error:  # the hub's client raises many types, none of them common
        raise ValueError(
            f"no hub answers for {row.repository} ({type(error).__name__}): give {row.remedy}"
        ) from error
    return found, images
