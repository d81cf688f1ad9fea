"""The words of the world in English and Chinese, and what a word names.

An attribute value is a pair such as `("colour", "red")`. The words here are what answers use; `grammar` adds
synonyms. `named_by` is the other direction, for matching vocabulary tokens against what a patch shows.
"""

from __future__ import annotations

from typing import Literal

from basic_lite.data.world.scenes import COLOURS, PLACES, SHAPES, Thing

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

COLOUR_ZH: dict[str, str] = dict(
    zip(COLOURS, ("红色", "橙色", "黄色", "绿色", "蓝色", "紫色", "白色", "黑色"), strict=True)
)
SHAPE_ZH: dict[str, str] = dict(
    zip(SHAPES, ("圆形", "方形", "三角形", "星形", "十字形", "环形", "心形", "菱形"), strict=True)
)
PLACE_ZH: dict[str, str] = dict(
    zip(
        PLACES,
        ("左上角", "上边", "右上角", "左边", "中间", "右边", "左下角", "下边", "右下角"),
        strict=True,
    )
)
NUMBER_EN = ("zero", "one", "two", "three", "four")
NUMBER_ZH = ("零", "一", "两", "三", "四")
SIZE_EN = {"small": ("small", "little"), "large": ("large", "big")}
SIZE_ZH = {"small": "小", "large": "大"}
SIDE_ZH = {"left": "左边", "right": "右边", "above": "上面", "below": "下面"}

_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "middle", "right")

_NAMED: dict[str, tuple[str, str]] = {
    **{word: ("colour", word) for word in COLOURS},
    **{word[0]: ("colour", colour) for colour, word in COLOUR_ZH.items()},
    **{word: ("shape", word) for word in SHAPES},
    # The first character tells the shape; the last is the same for all. Of the triangle's it is the number
    # three as well, but no patch shows a number.
    **{word[0]: ("shape", shape) for shape, word in SHAPE_ZH.items()},
    **{word: ("size", size) for size, words in SIZE_EN.items() for word in words},
    **{word: ("size", size) for size, word in SIZE_ZH.items()},
    **{"top": ("row", "top"), "upper": ("row", "top"), "上": ("row", "top")},
    **{"bottom": ("row", "bottom"), "lower": ("row", "bottom"), "下": ("row", "bottom")},
    **{"left": ("column", "left"), "左": ("column", "left")},
    **{"right": ("column", "right"), "右": ("column", "right")},
    # Said of rows and of columns alike.
    **{word: ("place", "middle") for word in ("middle", "centre", "中")},
}


def named_by(token: str) -> tuple[str, str] | None:
    """Return the attribute and value that a token's text (`" red"`, `"Red"`, `"红"`) names, or `None`.

    Attributes are `colour`, `shape`, `size`, `row` and `column`, and `place` for the middle of either.
    """
    return _NAMED.get(token.strip().lower())


def attributes(thing: Thing) -> dict[str, str]:
    """Return everything that can be named about a thing, in the attributes of `named_by`."""
    return {
        "colour": thing.colour,
        "shape": thing.shape,
        "size": thing.size,
        "row": _ROWS[thing.row],
        "column": _COLUMNS[thing.column],
    }


def is_meaningful(token: str, thing: Thing | None) -> bool:
    """Return whether a token names something true of the thing at a patch; false if there is no thing."""
    named = named_by(token)
    if thing is None or named is None:
        return False
    return 1 in (thing.row, thing.column) if named[0] == "place" else attributes(thing)[named[0]] == named[1]


def word(attribute: str, value: str | int, language: Language) -> str:
    """Return the word for an attribute value as a short answer, for instance `"red"`, `"左上角"` or `"两个"`.

    `attribute` is `colour`, `shape`, `place`, `number` (0 to 4), `side` or `truth` (`yes` or `no`).
    """
    if attribute == "number":
        return NUMBER_EN[int(value)] if language == "en" else NUMBER_ZH[int(value)] + "个"
    if language == "en":
        return str(value)
    table = {"colour": COLOUR_ZH, "shape": SHAPE_ZH, "place": PLACE_ZH, "side": SIDE_ZH}
    table["truth"] = {"yes": "是", "no": "不是"}
    return table[attribute][str(value)]
