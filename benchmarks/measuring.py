"""Measures calls side by side: time, peak memory and floating-point operations, on CPU and CUDA."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


# Rounds in which others used more than this share of the machine are dropped, if enough quiet ones are left.
QUIET_SHARE = 0.1
LEAST_QUIET_ROUNDS = 3


@dataclass
class Timing:
    """
    Seconds of one call.

    Args:
        seconds (`float`): Median over the rounds that count.
        lower, upper (`float`): The first and the third quartile.
        ratio (`float`): Median over the rounds of the call's time over that of the first call in the same round.
        rounds (`int`): How many count.
        noisy (`bool`): Whether too few rounds were quiet, so that all count.
    """

    seconds: float
    lower: float
    upper: float
    ratio: float
    rounds: int
    noisy: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_once(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: by events on CUDA, by the clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start_event.record()
    call()
    end_event.record()
    torch.cuda.synchronize(device)
    return start_event.elapsed_time(end_event) / 1000


def busy_seconds() -> float:
    """Processor seconds that the whole machine has spent on anything, all cores together."""
    times = psutil.cpu_times()._asdict()
    # Linux counts guests in user and nice too.
    return sum(value for name, value in times.items() if name not in ("idle", "iowait", "guest", "guest_nice"))


def time_side_by_side(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int, warmup: int = 1
) -> dict[str, Timing]:
    """
    Times calls in turns, so that whatever else the machine does meets all of them alike.

    Args:
        calls: By name. The first is what the others are compared with.
        device (`torch.device`): Where they run.
        rounds (`int`): How often each is timed.
        warmup (`int`): How often each runs untimed before.

    Returns:
        One [`Timing`] a call.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    synchronize(device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    shares = []
    for _ in range(rounds):
        start, busy, own = time.perf_counter(), busy_seconds(), time.process_time()
        for name, call in calls.items():
            seconds[name].append(time_once(call, device))
        elapsed = time.perf_counter() - start
        by_others = busy_seconds() - busy - (time.process_time() - own)
        shares.append(by_others / (elapsed * (psutil.cpu_count() or 1)))
    quiet = [index for index, share in enumerate(shares) if share <= QUIET_SHARE]
    noisy = len(quiet) < min(LEAST_QUIET_ROUNDS, rounds)
    counted = list(range(rounds)) if noisy else quiet
    reference = next(iter(seconds.values()))
    timings = {}
    for name, values in seconds.items():
        kept = [values[index] for index in counted]
        lower, upper = np.quantile(kept, [0.25, 0.75]).tolist()
        ratio = statistics.median(values[index] / reference[index] for index in counted)
        timings[name] = Timing(statistics.median(kept), lower, upper, ratio, len(counted), noisy)
    return timings


def peak_memory(call: Callable[[], Any], device: torch.device) -> int:
    """
    Bytes that `call` holds at its peak, beyond what was allocated when it began.

    Exact on both devices: on CUDA by the counters of the allocator, on CPU from the allocator's events, which the
    profiler records one by one. What libraries allocate past PyTorch (oneDNN's scratch space) is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return max(0, int(held.max())) if len(held) else 0


class _NoMaskIsEmpty(TorchFunctionMode):
    """Tensors on the meta device hold no values: whether a mask hides nothing is answered by no, the general case."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            return False
        return func(*args, **(kwargs or {}))


def count_flops(module: torch.nn.Module, **inputs: Any) -> dict[str, int]:
    """
    Floating-point operations of one forward pass, exact, for each child of `module` and in "total".

    A multiplication with an addition counts as two. Module and inputs must be on the meta device, where nothing is
    computed, and attention must be eager: that of fused kernels is not counted on every device.
    """
    with _NoMaskIsEmpty(), FlopCounterMode(display=False, depth=None) as counter, torch.no_grad():
        module(**inputs)
    counts = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
    root = type(module).__name__
    parts: dict[str, int] = {}
    for name, _ in module.named_children():
        # A list of modules is never called itself, only its entries are.
        keys = [
            key
            for key in counts
            if key.startswith(f"{root}.{name}.") and key.removeprefix(f"{root}.{name}.").isdigit()
        ]
        found = sum(counts[key] for key in keys) if keys else counts.get(f"{root}.{name}", 0)
        parts[name] = found
    total = counts.get("Global", 0)
    return {**parts, "other": total - sum(parts.values()), "total": total}


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> dict[str, float]:
    """
    Least squares of `y = intercept + slope * x`.

    Returns:
        Intercept, slope, the greatest deviation from the line as a share of `y` ("largest_deviation") and the slope
        between logarithms ("exponent"): 1 is proportional, 2 quadratic.
    """
    if len(set(xs)) < 2:
        raise ValueError(f"A line needs two different places, got {list(xs)}.")
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    slope, intercept = np.polyfit(x, y, 1)
    exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
    deviation = np.abs(intercept + slope * x - y) / y
    return {
        "intercept": float(intercept),
        "slope": float(slope),
        "largest_deviation": float(deviation.max()),
        "exponent": float(exponent),
    }


def precision(dtype: str, device: torch.device) -> AbstractContextManager:
    """The context in which a model of float32 weights computes in `dtype`."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def matmul_rate(dtype: str, device: torch.device, rounds: int = 3) -> float:
    """FLOP a second of one large matrix product: what the machine gives at best in the same run."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    timing = time_side_by_side({"product": lambda: left @ right}, device, rounds)["product"]
    return 2 * size**3 / timing.seconds
