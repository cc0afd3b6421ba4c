"""A network written by hand in NumPy, and the same with its hot lines replaced.

The first two functions are one training step of the same network, line for line. Both start from the
same parameters and see the same batches, so that in the end their parameters agree to rounding.

Run it with ``python examples/numpy_network.py``.
"""

import time

import numpy as np

import pyfastnn as pf

RATE = 0.1


def step_by_hand(x, y, w1, b1, w2, b2):
    a1 = 1 / (1 + np.exp(-(x.dot(w1) + b1)))
    e = np.exp(a1.dot(w2) + b2)
    a2 = e / e.sum(axis=1, keepdims=True)
    d2 = (a2 - y) / len(x)
    d1 = d2.dot(w2.T) * a1 * (1 - a1)
    w1 -= RATE * x.T.dot(d1)
    b1 -= RATE * d1.sum(axis=0)
    w2 -= RATE * a1.T.dot(d2)
    b2 -= RATE * d2.sum(axis=0)


def step_with_pyfastnn(x, y, w1, b1, w2, b2):
    a1 = pf.dense_forward(x, w1, b1, "sigmoid")
    a2 = pf.dense_forward(a1, w2, b2, "softmax")
    _, d2 = pf.output_delta(a2, y, "cross_entropy", "softmax")
    d1 = pf.sigmoid_delta(d2, w2, a1)
    pf.dense_update(x, w1, b1, d1, RATE)
    pf.dense_update(a1, w2, b2, d2, RATE)


def parameters_for(inputs, hidden, outputs):
    rng = np.random.default_rng(0)
    w1 = (rng.normal(size=(inputs, hidden)) / np.sqrt(inputs)).astype(np.float32)
    w2 = (rng.normal(size=(hidden, outputs)) / np.sqrt(hidden)).astype(np.float32)
    return w1, np.zeros(hidden, np.float32), w2, np.zeros(outputs, np.float32)


def batches_for(inputs, outputs, size, count):
    """Noisy images of a few patterns: something to learn that needs no download."""
    rng = np.random.default_rng(1)
    patterns = rng.random((outputs, inputs))
    for _ in range(count):
        labels = rng.integers(0, outputs, size)
        images = patterns[labels] + rng.normal(size=(size, inputs))
        yield images.astype(np.float32), np.eye(outputs, dtype=np.float32)[labels]


def train(step, parameters, batches):
    """Train in place; the seconds of every step."""
    seconds = []
    for x, y in batches:
        start = time.perf_counter()
        step(x, y, *parameters)
        seconds.append(time.perf_counter() - start)
    return seconds


def compare(sizes, batch_size):
    inputs, _, outputs = sizes
    batches = list(batches_for(inputs, outputs, batch_size, 300))
    steps = step_by_hand, step_with_pyfastnn
    parameters = [parameters_for(*sizes) for _ in steps]
    seconds = [[], []]
    for _ in range(3):  # in turn, so that a busy moment of the machine hits both
        for step, own, times in zip(steps, parameters, seconds, strict=True):
            time.sleep(0.2)  # OpenBLAS keeps a thread spinning for some time, whoever wants its core
            times += train(step, own, batches)

    slow, fast = (np.median(times) * 1e6 for times in seconds)
    difference = max(abs(p - q).max() for p, q in zip(*parameters, strict=True))
    print(
        f"{'-'.join(map(str, sizes))}, batch {batch_size}: {slow:.0f} us a step by hand, {fast:.0f} us with "
        f"pyfastnn ({slow / fast:.2f} x); parameters differ by at most {difference:.0e}"
    )
    # 900 steps in float32: far above rounding, far below any mistake.
    assert difference < 1e-4, "the two networks should agree"


def main():
    print(pf.get_backend())
    compare((784, 30, 10), batch_size=10)
    compare((784, 128, 10), batch_size=64)


if __name__ == "__main__":
    main()
