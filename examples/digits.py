"""Classify scikit-learn's digits, watch the validation accuracy, and plot the history.

Needs ``pip install 'pyfastnn[datasets,plot]'``; run it with ``python examples/digits.py [history.png]``.
"""

import sys

import pyfastnn as pf


def main():
    data = pf.datasets.load_digits()
    net = pf.MLP([64, 128, 64, 10], activation="relu", output="softmax", seed=0)
    print(net)
    history = net.fit(
        data.x_train,
        data.y_train,
        epochs=30,
        batch_size=64,
        optimizer=pf.Adam(1e-3),
        validation_data=(data.x_test, data.y_test),
    )
    print(history.latest())
    print(f"{sum(history.seconds):.3f} s of training")

    path = sys.argv[1] if len(sys.argv) > 1 else "history.png"
    history.plot().figure.savefig(path, dpi=150)
    print(f"plotted in {path}")


if __name__ == "__main__":
    main()
