"""Inputs that nobody should send: damaged files, structures with foreign values in them, arrays of any kind."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst


# Any text, and halves of characters, which JSON can hold and UTF-8 cannot.
texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)

foreign_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30]),
    st.floats(),
    texts,
    st.builds(list),
    st.builds(dict),
    st.lists(st.integers(-5, 50), max_size=5),
    st.lists(texts, max_size=3),
    st.builds(lambda: [[[[[]]]]]),
)


@st.composite
def damaged(draw: st.DrawFn, files: Sequence[bytes]) -> bytes:
    """One of the files, cut off, with flipped bits, or with bytes overwritten, inserted or left out."""
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.sampled_from(["cut", "flip", "overwrite", "insert", "remove"])):
            case "cut":
                del content[place:]
            case "flip" if content:
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "overwrite":
                part = draw(st.binary(min_size=1, max_size=8))
                content[place : place + len(part)] = part
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "remove":
                del content[place : place + draw(st.integers(1, 40))]
    return bytes(content)


@st.composite
def altered(draw: st.DrawFn, values: Sequence[Any]) -> Any:
    """One of the values, made of lists and dictionaries, with up to three entries replaced or left out."""
    value = copy.deepcopy(draw(st.sampled_from(values)))
    for _ in range(draw(st.integers(1, 3))):
        node = value
        while node:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            child = node[key]
            if isinstance(child, list | dict) and child and draw(st.integers(0, 3)):
                node = child
                continue
            if draw(st.booleans()):
                node[key] = draw(foreign_values)
            else:
                del node[key]
            break
    return value


def arrays(max_side: int = 6, max_dims: int = 5) -> st.SearchStrategy[np.ndarray]:
    """Arrays of any shape and of any type of numbers, booleans and some that are neither."""
    types = st.one_of(
        npst.boolean_dtypes(),
        npst.integer_dtypes(),
        npst.unsigned_integer_dtypes(),
        npst.floating_dtypes(),
        npst.complex_number_dtypes(),
        st.just(np.dtype("U3")),
        st.just(np.dtype(object)),
    )
    shapes = npst.array_shapes(min_dims=0, max_dims=max_dims, min_side=0, max_side=max_side)
    return types.flatmap(
        lambda kind: npst.arrays(kind, shapes, elements=st.none() | st.integers()) if kind.hasobject
        else npst.arrays(kind, shapes)
    )  # fmt: skip


run_lengths = st.fixed_dictionaries(
    {
        "size": st.one_of(st.just([4, 6]), foreign_values),
        "counts": st.one_of(
            st.text(st.characters(min_codepoint=32, max_codepoint=127), max_size=12),
            st.binary(max_size=12),
            st.lists(st.integers(-2, 30), max_size=8),
            st.lists(st.integers(0, 6), min_size=1, max_size=6).map(lambda runs: [*runs, 24 - sum(runs)]),
            foreign_values,
        ),
    }
)

polygons = st.lists(
    st.one_of(
        st.lists(st.floats() | st.integers(-100, 100), max_size=12),
        st.lists(st.floats(-5, 12), min_size=6, max_size=12),
        foreign_values,
    ),
    max_size=3,
)
