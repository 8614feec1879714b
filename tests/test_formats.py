from __future__ import annotations

import pytest

from secateur.errors import closest
from secateur.formats import count


def test_counts_have_three_digits_and_round_up_to_the_next_prefix() -> None:
    numbers = (0, 999, 999.7, 1000, 999_400, 999_600, 999_999, 4 * 10**15, -1500)
    assert [count(number) for number in numbers] == [
        "0", "999", "1.00 k", "1.00 k", "999 k", "1.00 M", "1.00 M", "4000 T", "-1.50 k",
    ]  # fmt: skip
    assert [count(number, "B") for number in (0, 850, 46_839_840)] == ["0 B", "850 B", "46.8 MB"]


@pytest.mark.parametrize(
    ("name", "names", "hint"),
    [
        ("Taylr", ["taylor", "lamp"], "; did you mean 'taylor'?"),
        ("a.conv1", ["a.conv2", "a.conv3", "a.conv4"], "; did you mean 'a.conv4', 'a.conv3' or 'a.conv2'?"),
        ("resnet19", {"resnet18": "torchvision:resnet18"}, "; did you mean 'torchvision:resnet18'?"),
        ("x", [], ""),
    ],
)
def test_close_names_are_suggested(name: str, names: list[str] | dict[str, str], hint: str) -> None:
    assert closest(name, names) == hint
