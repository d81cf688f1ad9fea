import pickle
from dataclasses import fields

import torch

from basic_lite.data.layout import layout_of
from basic_lite.data.parcel import Parcel


def batch(rows: int, images: int) -> dict[str, object]:
    input_ids = torch.arange(4, 4 + rows * 11).reshape(rows, 11)
    input_ids[:images, 2:5] = 3
    labels = input_ids.masked_fill(input_ids < 20, -100)
    mask = torch.ones_like(input_ids)
    made = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    if images:
        made["pixel_values"] = torch.randint(0, 255, (images, 3, 7, 5), dtype=torch.uint8)
    return {**made, "layout": layout_of(input_ids, mask, 3, images, labels), "rows": list(range(rows))}


def test_what_arrives_is_what_was_sent() -> None:
    for rows, images in ((3, 2), (1, 0), (2, 2)):
        sent = batch(rows, images)
        arrived = pickle.loads(pickle.dumps(Parcel(sent)))
        assert type(arrived) is dict
        assert list(arrived) == list(sent)
        assert arrived["rows"] == sent["rows"]
        for name in set(sent) - {"rows", "layout"}:
            assert arrived[name].dtype == sent[name].dtype
            assert torch.equal(arrived[name], sent[name])
        for field in fields(sent["layout"]):
            one, other = getattr(sent["layout"], field.name), getattr(arrived["layout"], field.name)
            if isinstance(one, torch.Tensor):
                assert (one.dtype, one.shape) == (other.dtype, other.shape)
                assert torch.equal(one, other)
            else:
                assert one == other


def test_one_piece_of_memory() -> None:
    arrived = pickle.loads(pickle.dumps(Parcel(batch(3, 2))))
    tensors = [
        arrived["input_ids"],
        arrived["pixel_values"],
        arrived["layout"].is_text,
        arrived["layout"].text_after,
    ]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    arrived["labels"].zero_()
    assert arrived["input_ids"].sum() > 0  # but none is another's
