"""Time and memory of variants of a computation, each in a separate process.

The process of a variant prepares it, runs it twice (the first run compiles) and then waits. Each round runs all
variants once, one after the other, so that disturbances of the machine affect all of them equally. Compare ratios of
medians within one run; absolute times depend on the machine and its load.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch

Step = Callable[[], object]
WARM_UPS = 2


@dataclass(frozen=True)
class Variant:
    """One way to compute something.

    Attributes:
        name: name in the table.
        prepare: picklable function that builds the measured step in the variant's process.
    """

    name: str
    prepare: Callable[[], Step]


@dataclass
class Timing:
    """Times of a variant in seconds.

    Attributes:
        name: name of the variant.
        first: time of the first run, which compiles.
        rounds: time of each round.
    """

    name: str
    first: float
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def that_differ(variants: Sequence[Variant], device: str) -> list[Variant]:
    """The variants that differ on a device: keeping freed memory only affects the CPU."""
    return [each for each in variants if device == "cpu" or "kept memory" not in each.name]


def interleaved(variants: Sequence[Variant], rounds: int) -> list[Timing]:
    """Run all variants one after the other, ``rounds`` times."""
    with contextlib.ExitStack() as stack:
        timings, connections = [], []
        for variant in variants:  # one after the other, because warming up uses the whole machine
            connection = stack.enter_context(_process(_time, variant))
            timings.append(Timing(variant.name, _answer(connection, variant)))
            connections.append(connection)
        for _ in range(rounds):
            for variant, timing, connection in zip(variants, timings, connections, strict=True):
                connection.send(True)
                timing.rounds.append(_answer(connection, variant))
    return timings


def peak_memory(variant: Variant) -> int:
    """Bytes by which the first run in a new process increases its peak memory."""
    with _process(_weigh, variant) as connection:
        return int(_answer(connection, variant))


def first_run(variant: Variant) -> float:
    """Seconds of the first run in a new process."""
    with _process(_time, variant) as connection:
        return _answer(connection, variant)


def time_table(timings: Sequence[Timing]) -> str:
    """A Markdown table; each ratio is the median of the first variant divided by that of the row's variant."""
    lines = ["| variant | median s | least s | times as fast as the first | first run s |", "|---|---|---|---|---|"]
    for each in timings:
        ratio = timings[0].median / each.median
        lines.append(f"| {each.name} | {each.median:.3g} | {min(each.rounds):.3g} | {ratio:.2f} | {each.first:.3g} |")
    return "\n".join(lines)


def describe_machine() -> str:
    """The machine and the versions, on one line."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        fields = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        name = next((value.strip() for key, _, value in fields if key.startswith("model name")), name)
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    threads = f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return ", ".join([threads, *devices, f"torch {torch.__version__}", f"Python {platform.python_version()}"])


def use_float32() -> None:
    """Compute float32 products in float32 on every device, as with ``tf32=false``."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@contextlib.contextmanager
def _process(target: Callable[[Variant, Connection], None], variant: Variant) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(variant, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(10)
        process.kill()


def _answer(connection: Connection, variant: Variant) -> float:
    try:
        return float(connection.recv())
    except EOFError:
        raise SystemExit(f"the process of {variant.name!r} failed; its error stands above") from None


def _time(variant: Variant, connection: Connection) -> None:
    use_float32()
    run = variant.prepare()
    first = _seconds(run)
    for _ in range(WARM_UPS - 1):
        _seconds(run)
    connection.send(first)
    with contextlib.suppress(EOFError):
        while connection.recv():
            connection.send(_seconds(run))


def _seconds(run: Step) -> float:
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _weigh(variant: Variant, connection: Connection) -> None:
    use_float32()
    run = variant.prepare()
    before = reset_peak()
    run()
    connection.send(peak_bytes() - before)


def reset_peak() -> int:
    """Reset the peak memory of this process, or of its CUDA device, to the current memory; return it in bytes.

    Memory that has been freed, but not returned to the system, is returned before: it would hide what is used next.
    """
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    else:
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """The peak memory since :func:`reset_peak` in bytes."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
