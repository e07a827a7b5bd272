"""Compare the speed of geometry with numpy, scikit-dimension and IsoScore on the same arrays, in one run.

    make bench                      (in the environment of `make oracles`; 10 to 20 minutes on 2 cores)
    python -m benchmarks.geometry_metrics in_loop local_dimension ...    (only some of the questions)

Questions: in_loop, isoscore, local_dimension, memory, large. Each prints what was timed and a ratio. The things
compared are timed in turn; the median over rounds is printed with the minimum and the maximum.
"""

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from geometry import dimension, isotropy
from geometry.probe import summarize

IN_LOOP = ("effective_rank", "stable_rank", "mean_cosine", "partition_isotropy")


def in_turn(rounds: int, **what: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Return the seconds of each, [rounds]; each must have been called before, so that nothing is compiled."""
    seconds: dict[str, list[float]] = {name: [] for name in what}
    for _ in range(rounds):
        for name, call in what.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def finished(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return jax.block_until_ready(f(*args, **options))


def tell(title: str, seconds: dict[str, np.ndarray], ours: str, theirs: str) -> None:
    parts = [f"{n} {np.median(s):.3f} s ({s.min():.3f} to {s.max():.3f})" for n, s in seconds.items()]
    ratio = np.median(seconds[theirs] / seconds[ours])
    print(f"{title}: {', '.join(parts)}; {theirs} / {ours} = {ratio:.1f}", flush=True)


def unembeddings() -> dict[str, np.ndarray]:
    """Return unembeddings of 50304 x 256 by name, as at the start, decaying as a power law, and of condition 1e5.

    Their rows are as long as those of trained ones.
    """
    rng = np.random.default_rng(0)
    gaussian = rng.standard_normal((50304, 256))
    u, _ = np.linalg.qr(gaussian)
    v, _ = np.linalg.qr(rng.standard_normal((256, 256)))
    made = {"gaussian": gaussian, "power law, condition 50": (u * np.arange(1, 257) ** -0.7) @ v.T,
            "condition 1e5": (u * np.geomspace(1, 1e-5, 256)) @ v.T}  # fmt: skip
    return {name: (0.5 * w / np.sqrt(np.mean(np.sum(w * w, axis=1)))).astype(np.float32) for name, w in made.items()}


def numpy_set(w: np.ndarray) -> list[float]:
    """Return the in-loop set, computed accurately in numpy and in float32 as ours: QR, SVD of the factor, logsumexp."""
    _, s, v = np.linalg.svd(np.linalg.qr(w, mode="r"))
    p = s / s.sum()
    rank = np.exp(-(p * np.log(p)).sum())
    stable = (s**2).sum() / s[0] ** 2
    u = w / np.linalg.norm(w, axis=1, keepdims=True)
    cosine = (np.square(u.sum(axis=0)).sum() - len(u)) / (len(u) * (len(u) - 1.0))
    y = w @ v.T
    highest = np.abs(y).max(axis=0)
    above, below = np.exp(y - highest).sum(axis=0), np.exp(-y - highest).sum(axis=0)
    log_z = highest + np.log(np.stack([above, below]))
    return [float(x) for x in (rank, stable, cosine, np.exp(log_z.min() - log_z.max()))]


def ask_in_loop() -> None:
    for name, w in unembeddings().items():
        x = jax.numpy.asarray(w)
        ours = [float(v) for v in summarize(x, IN_LOOP).values()]
        np.testing.assert_allclose(ours, numpy_set(w), rtol=2e-3, atol=1e-5)
        seconds = in_turn(9, numpy=partial(numpy_set, w), ours=partial(finished, summarize, x, IN_LOOP))
        tell(f"in-loop set, 50304 x 256, {name}", seconds, "ours", "numpy")


def ask_isoscore() -> None:
    import torch
    from IsoScore.IsoScore import IsoScore

    w = unembeddings()["power law, condition 50"]
    x, points = jax.numpy.asarray(w), torch.tensor(w)
    np.testing.assert_allclose(float(isotropy.isoscore(x)), float(IsoScore(points)), rtol=1e-3)
    seconds = in_turn(7, IsoScore=partial(IsoScore, points), ours=partial(finished, isotropy.isoscore, x))
    tell("IsoScore, 50304 x 256", seconds, "ours", "IsoScore")


def clouds() -> dict[str, np.ndarray]:
    """Return 10,000 points in 256 dimensions: a Gaussian, and a curved set of 10 dimensions, which resembles states."""
    rng = np.random.default_rng(1)
    bent = np.tanh(rng.standard_normal((10_000, 10)) @ rng.standard_normal((10, 256)))
    made = {"gaussian": rng.standard_normal((10_000, 256)), "10 bent dimensions": bent}
    return {name: x.astype(np.float32) for name, x in made.items()}


def ask_local_dimension() -> None:
    import skdim

    for name, x in clouds().items():
        on_device = jax.numpy.asarray(x)

        ours = partial(finished, dimension.local_two_nn, on_device, 64, convention="skdim034")

        def theirs(x: np.ndarray = x, jobs: int = 1) -> Any:
            return skdim.id.TwoNN().fit_pw(x, n_neighbors=64, n_jobs=jobs).dimension_pw_

        # Of 10,000 sets one or two have a 64th and a 65th neighbour that float32 can't tell apart.
        assert np.mean(np.isclose(ours(), theirs(), rtol=1e-3)) > 0.999
        seconds = in_turn(2, skdim=theirs, skdim_2_jobs=partial(theirs, jobs=2), ours=ours)
        tell(f"local TwoNN, N 10,000, D 256, L 64, {name}", seconds, "ours", "skdim")
        tell(f"local TwoNN, N 10,000, D 256, L 64, {name}", seconds, "ours", "skdim_2_jobs")


def ask_memory() -> None:
    """Print the temporary bytes of the compiled program as N doubles."""
    for n in (5_000, 10_000, 20_000, 40_000):
        shape = jax.ShapeDtypeStruct((n, 256), np.float32)
        memory = dimension.local_two_nn.lower(shape, 64).compile().memory_analysis()
        assert memory is not None
        size = memory.temp_size_in_bytes
        print(
            f"memory, local TwoNN, D 256, L 64: N {n:,} takes {size / 2**20:.0f} MiB, {size / n:.0f} bytes per point",
            flush=True,
        )


def ask_large() -> None:
    """Measure paper B's size in a separate process, whose peak memory the operating system reports."""
    code = (
        "import numpy as np, jax, resource, time; from geometry.dimension import local_two_nn;"
        "rng = np.random.default_rng(2);"
        "x = np.tanh(rng.standard_normal((60_000, 12), np.float32) @ rng.standard_normal((12, 768), np.float32));"
        "start = time.perf_counter(); d = np.asarray(local_two_nn(x, 128)); took = time.perf_counter() - start;"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20;"
        "print(f'local TwoNN, N 60,000, D 768, L 128: {took:.0f} s with compilation, peak {peak:.2f} GiB, "
        "mean {d.mean():.2f}')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    questions = {name.removeprefix("ask_"): f for name, f in globals().items() if name.startswith("ask_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(questions))
    chosen = parser.parse_args().questions or list(questions)
    if unknown := set(chosen) - set(questions):
        parser.error(f"unknown question {', '.join(sorted(unknown))}; choose from {', '.join(questions)}")
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, numpy {np.__version__}, "
          f"Python {platform.python_version()}", flush=True)  # fmt: skip
    for name in chosen:
        questions[name]()


if __name__ == "__main__":
    main()
