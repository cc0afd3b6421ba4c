"""fit and evaluate: batches, order, weights, optimizers and what they remember."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import pyfastnn as pf
from pyfastnn.optimizers import OptimizerState

SGD, MOMENTUM = pf.SGD(0.05), pf.SGD(0.05, momentum=0.9)
NESTEROV, ADAM = pf.SGD(0.05, momentum=0.9, nesterov=True), pf.Adam(0.05)
OPTIMIZERS = [SGD, MOMENTUM, NESTEROV, ADAM]


def data(dtype: np.dtype, samples: int = 23) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(samples, 4)).astype(dtype), rng.normal(size=(samples, 3)).astype(dtype)


def network(dtype: np.dtype, seed: object = 1) -> pf.MLP:
    return pf.MLP([4, 6, 3], "tanh", dtype=dtype, seed=seed)


def rng_state(net: pf.MLP) -> object:
    return net.__getstate__()["rng"]


class Step:
    """The updates as the papers write them, in float64, with both bias corrections of Adam apart."""

    def __init__(self, optimizer: pf.SGD | pf.Adam, size: int) -> None:
        self.optimizer, self.count = optimizer, 0
        self.first, self.second = np.zeros(size), np.zeros(size)

    def __call__(self, params: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        self.count += 1
        o = self.optimizer
        if isinstance(o, pf.Adam):
            self.first = o.beta1 * self.first + (1 - o.beta1) * gradient
            self.second = o.beta2 * self.second + (1 - o.beta2) * gradient**2
            mean = self.first / (1 - o.beta1**self.count)
            variance = self.second / (1 - o.beta2**self.count)
            return params - o.learning_rate * mean / (np.sqrt(variance) + o.epsilon)
        self.first = o.momentum * self.first + gradient
        ahead = o.momentum * self.first + gradient if o.nesterov else self.first
        return params - o.learning_rate * ahead


@pytest.mark.parametrize(
    "optimizer",
    [
        pf.SGD(1e-3),
        pf.SGD(1e-3, momentum=0.9),
        pf.SGD(1e-3, momentum=0.9, nesterov=True),
        pf.Adam(0.1),
        pf.Adam(0.1, beta1=0.5, beta2=0.7, epsilon=100.0),
        pf.Adam(0.1, beta1=0.0, beta2=0.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("batch_size", [10, 4, 1])
def test_steps_as_the_papers_write_them(backend, dtype, optimizer, batch_size):
    """A linear layer with the quadratic loss, whose gradient is x^T (x w + b - y) / n."""
    rng = np.random.default_rng(2)
    x = rng.uniform(0.5, 1.5, (10, 3)).astype(dtype)
    # So far away that the gradient hardly changes: rounding errors add up, and are not amplified.
    y = rng.uniform(900, 1100, (10, 2)).astype(dtype)
    net = pf.MLP([3, 2], loss="quadratic", dtype=dtype, init="normal", seed=3)
    params, step = net.params.astype(np.float64), Step(optimizer, net.parameter_count)
    wide, targets = x.astype(np.float64), y.astype(np.float64)
    largest, steps = 1.0, 0
    for _ in range(2):
        for start in range(0, 10, batch_size):
            rows, goal = wide[start : start + batch_size], targets[start : start + batch_size]
            difference = (rows @ params[:6].reshape(3, 2) + params[6:] - goal) / len(rows)
            gradient = np.concatenate([(rows.T @ difference).ravel(), difference.sum(axis=0)])
            params = step(params, gradient)
            largest, steps = max(largest, abs(params).max()), steps + 1
    net.fit(x, y, epochs=2, batch_size=batch_size, optimizer=optimizer, shuffle=False)
    # A step adds to the parameters what took fewer than 50 roundings to compute: sums of 4 and of
    # batch_size terms, two slots whose own errors grow with the steps, a root and a quotient.
    bound = (50 + 2 * steps) * steps * np.finfo(dtype).eps * largest
    assert abs(net.params - params).max() <= bound
    # The formulas differ by more than that.
    assert bound < 0.05 * abs(params - network_start(dtype)).max()


def network_start(dtype: np.dtype) -> np.ndarray:
    return pf.MLP([3, 2], dtype=dtype, init="normal", seed=3).params


@pytest.mark.parametrize("weighted", [False, True])
def test_shuffling_takes_the_generators_permutations(backend, dtype, weighted):
    x, y = data(dtype)
    weight = np.linspace(0.5, 2, len(x), dtype=dtype) if weighted else None
    rng = np.random.default_rng(4)
    net = network(dtype, seed=rng)
    twin, orders = net.copy(), copy.deepcopy(rng)
    net.fit(x, y, epochs=3, batch_size=5, optimizer=MOMENTUM, sample_weight=weight)
    for _ in range(3):
        order = orders.permutation(len(x))
        chosen = None if weight is None else weight[order]
        twin.fit(
            x[order],
            y[order],
            epochs=1,
            batch_size=5,
            optimizer=MOMENTUM,
            shuffle=False,
            sample_weight=chosen,
        )
    assert net.params.tobytes() == twin.params.tobytes()


@pytest.mark.parametrize(("inputs", "outputs"), [(9, 17), (16, 8), (31, 33), (32, 1), (33, 2)], ids=repr)
def test_shuffled_rows_are_those_of_the_order(backend, dtype, inputs, outputs):
    rng = np.random.default_rng(6)
    x, y = (rng.normal(size=(50, columns)).astype(dtype) for columns in (inputs, outputs))
    net = pf.MLP([inputs, 9, outputs], "tanh", dtype=dtype, seed=rng)
    twin, order = net.copy(), copy.deepcopy(rng).permutation(len(x))
    options = {"epochs": 1, "batch_size": 21, "optimizer": MOMENTUM}
    net.fit(x, y, **options)
    twin.fit(x[order], y[order], shuffle=False, **options)
    assert net.params.tobytes() == twin.params.tobytes()


def test_order_without_shuffling_leaves_the_generator_alone(backend, dtype):
    x, y = data(dtype)
    net = network(dtype)
    before = rng_state(net)
    net.fit(x, y, epochs=2, batch_size=4, shuffle=False)
    net.fit(x, y, epochs=2, batch_size=len(x))  # one batch: any order is the same
    assert rng_state(net) == before
    net.fit(x, y, epochs=1, batch_size=4)
    assert rng_state(net) != before


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, None])
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=repr)
def test_epochs_at_once_are_those_one_by_one(backend, dtype, optimizer, bits, shuffle):
    class Derived(np.random.Generator):
        pass

    x, y = data(dtype)
    at_once, one_by_one = (
        network(dtype, np.random.Generator(bits(7)) if bits else Derived(np.random.PCG64(7)))
        for _ in range(2)
    )
    settings = {"batch_size": 5, "optimizer": optimizer, "shuffle": shuffle}
    history = at_once.fit(x, y, epochs=150, **settings)
    losses = [one_by_one.fit(x, y, epochs=1, **settings).loss[0] for _ in range(150)]
    assert history.loss == losses
    assert len(history.seconds) == 150
    assert all(second > 0 for second in history.seconds)
    np.testing.assert_array_equal(at_once.params, one_by_one.params)
    assert repr(rng_state(at_once)) == repr(rng_state(one_by_one))
    assert at_once._memory.step == one_by_one._memory.step == 150 * 5


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=repr)
def test_numbers_computed_ahead_are_those_of_the_steps(optimizer):
    state = OptimizerState(optimizer, ())
    for count in (1, 3, 1, 60, 2, 64, 65, 1, 5000, 1, 1):
        np.testing.assert_array_equal(state.numbers(count), optimizer.numbers(state.step + 1, count))
        state.step += count
    assert len(state._numbers) < 1000  # of many steps, none are kept


def test_same_seed_same_training(backend, dtype):
    x, y = data(dtype)
    nets = [network(dtype), network(dtype), network(dtype, seed=np.random.default_rng(1))]
    losses = [net.fit(x, y, epochs=3, batch_size=4).loss for net in nets]
    assert losses[0] == losses[1] == losses[2]
    assert nets[0].params.tobytes() == nets[1].params.tobytes() == nets[2].params.tobytes()


def test_batch_larger_than_the_data(backend, dtype):
    x, y = data(dtype)
    nets = [network(dtype) for _ in range(3)]
    for net, batch_size in zip(nets, (len(x), len(x) + 1, 10**9), strict=True):
        net.fit(x, y, epochs=3, batch_size=batch_size)
    assert nets[0].params.tobytes() == nets[1].params.tobytes() == nets[2].params.tobytes()


def test_data_are_not_changed(backend, dtype):
    x, y = data(dtype)
    weight = np.ones(len(x), dtype)
    for array in (x, y, weight):
        array.flags.writeable = False
    net = network(dtype)
    net.fit(x, y, epochs=1, batch_size=5, sample_weight=weight, validation_data=(x, y))
    assert np.isfinite(net.evaluate(x, y, sample_weight=weight)["loss"])


def test_no_epochs(backend, dtype):
    x, y = data(dtype)
    net = network(dtype)
    params, state = net.params.copy(), rng_state(net)
    history = net.fit(x, y, epochs=0, validation_data=(x, y))
    assert len(history) == 0
    assert history.latest() == {}
    np.testing.assert_array_equal(net.params, params)
    assert rng_state(net) == state


@pytest.mark.parametrize("batch_size", [1, 5, 23])
def test_recorded_loss_is_the_mean_over_the_samples(backend, dtype, batch_size):
    x, y = data(dtype)
    net = network(dtype)
    history = net.fit(x, y, epochs=2, batch_size=batch_size, optimizer=pf.SGD(0.0))
    expected = net.evaluate(x, y)["loss"]
    # The same terms in other orders: means of 23 samples of 3 outputs.
    np.testing.assert_allclose(history.loss, expected, rtol=(3 * 23 + 20) * np.finfo(dtype).eps)
    assert len(history.seconds) == 2
    assert all(seconds >= 0 for seconds in history.seconds)
    assert history.validation == {}


def test_validation_is_recorded_after_each_epoch(backend, dtype):
    x, _ = data(dtype)
    labels = np.arange(len(x)) % 3
    seen = []

    class Look(pf.Callback):
        def on_epoch(self, network: pf.MLP, history: pf.History) -> None:
            seen.append(network.evaluate(x, labels))

    net = pf.MLP([4, 6, 3], "tanh", "softmax", dtype=dtype, seed=1)
    history = net.fit(x, labels, epochs=4, validation_data=(x, labels), callbacks=[Look()])
    assert history.validation == {name: [figures[name] for figures in seen] for name in ("loss", "accuracy")}
    assert len(set(history.validation["loss"])) == 4


def test_a_batch_without_weight_changes_nothing(backend, dtype):
    x, y = data(dtype, samples=12)
    net, twin = network(dtype), network(dtype)
    weight = np.repeat(np.array([0, 1, 0], dtype), 4)
    net.fit(x, y, epochs=1, batch_size=4, optimizer=SGD, shuffle=False, sample_weight=weight)
    twin.fit(x[4:8], y[4:8], epochs=1, batch_size=4, optimizer=SGD, shuffle=False)
    assert net.params.tobytes() == twin.params.tobytes()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_an_equal_optimizer_goes_on(backend, dtype, optimizer):
    x, y = data(dtype)
    whole, parts = network(dtype), network(dtype)
    losses = whole.fit(x, y, epochs=5, batch_size=4, optimizer=optimizer).loss
    first = parts.fit(x, y, epochs=2, batch_size=4, optimizer=copy.copy(optimizer))
    second = parts.fit(x, y, epochs=3, batch_size=4, optimizer=optimizer)
    assert first.loss + second.loss == losses
    assert parts.params.tobytes() == whole.params.tobytes()


OTHERS = [SGD, MOMENTUM, pf.SGD(0.05, momentum=0.5, nesterov=True), pf.Adam(0.01)]
CHANGES = [(before, after) for before in OTHERS for after in OPTIMIZERS if before != after]


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=repr)
def test_another_optimizer_starts_afresh(backend, before, after):
    x, y = data(np.dtype(np.float64))
    net, fresh = network(np.float64), network(np.float64)
    for earlier in (after, before):  # what it remembered of its first turn is gone
        net.fit(x, y, epochs=2, optimizer=earlier, shuffle=False)
    fresh.params = net.params
    for each in (net, fresh):
        each.fit(x, y, epochs=2, optimizer=after, shuffle=False)
    assert net.params.tobytes() == fresh.params.tobytes()


def test_default_optimizer_is_adam(backend):
    x, y = data(np.dtype(np.float32))
    ours, theirs = network(np.float32), network(np.float32)
    assert ours.fit(x, y, epochs=2).loss == theirs.fit(x, y, epochs=2, optimizer=pf.Adam()).loss


@pytest.mark.parametrize(
    ("output", "loss"),
    [("identity", "mse"), ("sigmoid", "binary_cross_entropy"), ("exp", "poisson"), ("tanh", "huber")],
)
def test_flat_targets_of_one_output(backend, dtype, output, loss):
    x, y = data(dtype)
    column = np.ascontiguousarray(abs(y[:, :1]) / abs(y).max())
    flat = column[:, 0].copy()
    ours, theirs = (pf.MLP([4, 5, 1], "tanh", output, loss=loss, dtype=dtype, seed=1) for _ in range(2))
    history = ours.fit(x, flat, epochs=2, validation_data=(x, flat))
    expected = theirs.fit(x, column, epochs=2, validation_data=(x, column))
    assert history.loss == expected.loss
    assert history.validation == expected.validation
    assert ours.evaluate(x, flat) == theirs.evaluate(x, column)
    assert ours.loss_and_gradient(x, flat)[0] == theirs.loss_and_gradient(x, column)[0]
    with pytest.raises(ValueError, match=r"^y must have shape"):
        pf.MLP([4, 2], dtype=dtype).fit(x, flat)


def passing_on(outputs: int, output: str, dtype: np.dtype) -> pf.MLP:
    """A network of one layer whose pre-activations are its inputs."""
    net = pf.MLP([outputs, outputs], output=output, dtype=dtype)
    net.weights[0][...] = np.eye(outputs)
    net.biases[0][...] = 0
    return net


def test_accuracy_of_classes(backend, dtype):
    net = passing_on(3, "softmax", dtype)
    x = np.array([[2, 1, 0], [0, 1, 2], [0, 3, 1], [1, 0, 0]], dtype)
    y = np.array([0, 2, 2, 1])  # right, right, wrong, wrong
    one_hot = np.eye(3, dtype=dtype)[y]
    weight = np.array([1, 2, 4, 1], dtype)
    losses = np.log(np.exp(x.astype(np.float64)).sum(axis=1)) - x[np.arange(4), y]
    for targets in (y, one_hot):
        figures = net.evaluate(x, targets)
        assert figures["accuracy"] == 0.5
        # Exponential, quotient, logarithm and a mean of 4, each good to a few units.
        np.testing.assert_allclose(figures["loss"], losses.mean(), rtol=50 * np.finfo(dtype).eps)
        figures = net.evaluate(x, targets, sample_weight=weight)
        assert figures["accuracy"] == 3 / 8
        weighted = np.average(losses, weights=weight)
        np.testing.assert_allclose(figures["loss"], weighted, rtol=50 * np.finfo(dtype).eps)


def test_accuracy_of_yes_and_no(backend, dtype):
    net = passing_on(2, "sigmoid", dtype)
    x = np.array([[1, -1], [1, 1], [-2, 3], [-1, -1]], dtype)
    y = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], dtype)  # 2, 1, 0 and 1 of 2 right
    weight = np.array([1, 1, 1, 5], dtype)
    assert net.evaluate(x, y)["accuracy"] == 0.5
    assert net.evaluate(x, y, sample_weight=weight)["accuracy"] == (1 + 0.5 + 0 + 2.5) / 8


def test_regression_has_no_accuracy(backend, dtype):
    net = passing_on(2, "identity", dtype)
    x = np.array([[1, 2], [3, 4]], dtype)
    assert net.evaluate(x, np.zeros_like(x)) == {"loss": (1 + 4 + 9 + 16) / 4}
    weight = np.array([3, 1], dtype)
    assert net.evaluate(x, np.zeros_like(x), sample_weight=weight) == {"loss": (3 * 5 + 25) / 8}


@pytest.mark.large
def test_learns_the_matrix_exponential(backend):
    x, y = pf.datasets.expm(2000, seed=5)
    net = pf.MLP([4, 32, 32, 4], "tanh", seed=6)
    before = net.evaluate(x, y)["loss"]
    history = net.fit(x, y, epochs=40, batch_size=50, optimizer=pf.Adam(5e-3))
    # A constant leaves the variance of the targets, and a linear map about half of it: a tenth of
    # the variance means that the hidden layers have learnt.
    assert net.evaluate(x, y)["loss"] < 0.1 * y.var(axis=0).mean() < before
    assert history.loss[-1] < 0.1 * history.loss[0]


@pytest.mark.large
def test_learns_digits(backend):
    split = pf.datasets.load_digits()
    net = pf.MLP([64, 32, 10], "relu", "softmax", seed=0)
    net.fit(split.x_train, split.y_train, epochs=15, optimizer=pf.Adam(3e-3))
    # One in ten is chance.
    assert net.evaluate(split.x_test, split.y_test)["accuracy"] > 0.9
