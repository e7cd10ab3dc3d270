"""Measures time, peak memory and floating-point operations of calls, on CPU and CUDA."""

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


# Rounds in which other processes used more than this share of the machine are dropped, if enough other rounds remain.
QUIET_SHARE = 0.1
LEAST_QUIET_ROUNDS = 3


@dataclass
class Timing:
    """
    Seconds of one call.

    Args:
        seconds (`float`): Median over the rounds that count.
        lower, upper (`float`): The first and the third quartile.
        ratio (`float`): Median ratio of the time to that of the first call in the same round.
        rounds (`int`): Number of rounds that count.
        noisy (`bool`): Whether too few rounds were quiet, so that all rounds count.
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
    """Returns the seconds of one call, measured by events on CUDA and by the clock elsewhere."""
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
    """Returns the CPU seconds that the machine has used so far, over all processes and cores."""
    times = psutil.cpu_times()._asdict()
    # Linux includes guest times in user and nice.
    return sum(value for name, value in times.items() if name not in ("idle", "iowait", "guest", "guest_nice"))


def time_side_by_side(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int, warmup: int = 1
) -> dict[str, Timing]:
    """
    Times calls in turns, so that other load on the machine affects all of them equally.

    Args:
        calls: Calls by name. The others are compared with the first one.
        device (`torch.device`): Device on which they run.
        rounds (`int`): How often each call is timed.
        warmup (`int`): How often each call runs before, without timing.

    Returns:
        One [`Timing`] per call.
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
    Returns the peak memory of `call` in bytes, beyond what was allocated before.

    The value is exact on both devices: on CUDA from the counters of the allocator, on CPU from the allocator events
    that the profiler records. Memory that libraries allocate outside PyTorch (scratch space of oneDNN) is not
    included.
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
    """Tensors on the meta device have no values, so a check whether a mask is empty returns the general case, no."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            return False
        return func(*args, **(kwargs or {}))


def count_flops(module: torch.nn.Module, **inputs: Any) -> dict[str, int]:
    """
    Counts the floating-point operations of one forward pass exactly, for each child of `module` and in "total".

    A multiplication and an addition count as two. Module and inputs must be on the meta device, where nothing is
    computed, and attention must be eager, since operations of fused kernels are not counted on every device.
    """
    with _NoMaskIsEmpty(), FlopCounterMode(display=False, depth=None) as counter, torch.no_grad():
        module(**inputs)
    counts = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
    root = type(module).__name__
    parts: dict[str, int] = {}
    for name, _ in module.named_children():
        # A list of modules is not called itself, only its entries are.
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
    Fits `y = intercept + slope * x` by least squares.

    Returns:
        Intercept, slope, the largest relative deviation from the line ("largest_deviation") and the slope between
        logarithms ("exponent"): 1 is proportional, 2 quadratic.
    """
    if len(set(xs)) < 2:
        raise ValueError(f"A line needs two different values of x, got {list(xs)}.")
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
    """Returns the context in which a model with float32 weights computes in `dtype`."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def matmul_rate(dtype: str, device: torch.device, rounds: int = 3) -> float:
    """Measures the FLOP per second of one large matrix product, as the peak performance of the machine."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    timing = time_side_by_side({"product": lambda: left @ right}, device, rounds)["product"]
    return 2 * size**3 / timing.seconds
