"""Learn the exponential of 2 x 2 matrices: regression by full-batch training.

Run it with ``python examples/expm.py``.
"""

import numpy as np

import pyfastnn as pf


def main():
    x, y = pf.datasets.expm(10_000, seed=0)
    x_test, y_test = pf.datasets.expm(10_000, seed=1)
    net = pf.MLP([4, 32, 16, 4], activation="tanh", seed=0)
    for rate, epochs in ((1e-2, 1000), (1e-3, 500)):
        history = net.fit(x, y, epochs=epochs, batch_size=len(x), shuffle=False, optimizer=pf.Adam(rate))
        print(
            f"Adam({rate:g}), {epochs:,} epochs: training loss {history.loss[-1]:.4f}, "
            f"{np.median(history.seconds) * 1e3:.2f} ms an epoch"
        )
    print(f"test loss {net.evaluate(x_test, y_test)['loss']:.4f}, variance of the targets {y_test.var():.4f}")

    rotation = np.array([[0, -1, 1, 0]], np.float32)  # its exponential is the rotation by one radian
    print("exp of [[0, -1], [1, 0]], learnt and true:")
    print(net.predict(rotation).round(2).reshape(2, 2))
    print(np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]]).round(2))


if __name__ == "__main__":
    main()
