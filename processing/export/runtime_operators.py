"""Operators of onnxruntime for what it computes slowly with the standard operators of ONNX.

Its attention keeps no scores in memory (FlashAttention, Dao et al., 2022) and takes half the time. Its rotary
embedding reads and writes the tokens once instead of five times. Its softmax is fast only along the last axis.
"""

from collections.abc import Callable
from typing import Any

import onnxscript
import torch
from onnx.defs import OpSchema
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops import core, nn
from onnxscript.rewriter import pattern


DOMAIN = "com.microsoft"

# onnx has no schemas of onnxruntime's operators.
multi_head_attention = onnxscript.values.Op(
    onnxscript.values.Opset(DOMAIN, 1),
    "MultiHeadAttention",
    OpSchema(
        "MultiHeadAttention",
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(name, "T") for name in ("query", "key", "value")],
        outputs=[OpSchema.FormalParameter("output", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[
            OpSchema.Attribute("num_heads", OpSchema.AttrType.INT),
            OpSchema.Attribute("scale", OpSchema.AttrType.FLOAT, required=False),
        ],
    ),
)


def joined_heads(op: Any, states: Any, num_heads: int, head_dim: int) -> Any:
    """Turns states of shape `(batch, heads, length, head_dim)` into `(batch, length, heads * head_dim)`."""
    return op.Reshape(op.Transpose(states, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, num_heads * head_dim]))


def split_heads(op: Any, states: Any, num_heads: int, head_dim: int) -> Any:
    """The inverse of [`joined_heads`]."""
    return op.Transpose(op.Reshape(states, op.Constant(value_ints=[0, 0, num_heads, head_dim])), perm=[0, 2, 1, 3])


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translates `scaled_dot_product_attention`. With a mask, the operator of onnxruntime is no faster."""
    num_heads, head_dim = query.shape[1], query.shape[3]
    if attn_mask is not None or is_causal or enable_gqa or value.shape[3] != head_dim:
        more = {"enable_gqa": enable_gqa} if enable_gqa else {}
        return nn.aten_scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, **more)
    states = [joined_heads(opset18, each, num_heads, head_dim) for each in (query, key, value)]
    scaling = {} if scale is None else {"scale": scale}
    return split_heads(opset18, multi_head_attention(*states, num_heads=num_heads, **scaling), num_heads, head_dim)


def softmax(self: Any, dim: int, dtype: int = -1) -> Any:
    """Translates `softmax`."""
    if dim % len(self.shape) == len(self.shape) - 1 or dtype not in (-1, None):
        return core.aten_softmax(self, dim, dtype)
    axes = opset18.Constant(value_ints=[dim])
    exponentials = opset18.Exp(opset18.Sub(self, opset18.ReduceMax(self, axes)))
    return opset18.Div(exponentials, opset18.ReduceSum(exponentials, axes))


TRANSLATIONS: dict[Callable, Callable] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    torch.ops.aten.softmax.int: softmax,
}


def _rotation(op: Any, states: Any, signed_sines: Any, doubled_cosines: Any) -> Any:
    """What [`modeling_jmceln.attention.rotate`] becomes."""
    first, second = op.Split(states, _outputs=2, _allow_other_attributes=True)
    return op.Add(op.Mul(op.Concat(second, first, axis=-1), signed_sines), op.Mul(states, doubled_cosines))


def _rotary_embedding(op: Any, states: Any, signed_sines: Any, doubled_cosines: Any) -> Any:
    _, num_heads, _, head_dim = states.shape
    start, middle, end, axis = (op.Constant(value_ints=[number]) for number in (0, head_dim // 2, head_dim, 1))
    rotated = op.RotaryEmbedding(
        joined_heads(op, states, num_heads, head_dim),
        start,
        op.Slice(doubled_cosines, start, middle, axis),
        op.Slice(signed_sines, middle, end, axis),
        num_heads=num_heads,
        _domain=DOMAIN,
        _version=1,
    )
    return split_heads(op, rotated, num_heads, head_dim)


def _has_heads(_context: Any, states: Any, **_: Any) -> bool:
    return states.shape is not None and len(states.shape) == 4


ROTATION_RULE = pattern.RewriteRule(_rotation, _rotary_embedding, _has_heads)
