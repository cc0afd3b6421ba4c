"""The CUDA backend's own: plans and the ways of training; in the simulator or on a GPU."""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest
from cuda_fits import agree, problem, trained

import pyfastnn as pf
from pyfastnn.backends.cuda import narrow, plan, products, rows
from pyfastnn.backends.cuda.plan import CudaPlan, Resident

pytestmark = pytest.mark.cuda

OPTIMIZERS = [pf.SGD(0.1), pf.SGD(0.1, momentum=0.9), pf.SGD(0.1, momentum=0.9, nesterov=True), pf.Adam(0.01)]
ACTIVATIONS = [name for name, f in pf.activations.ACTIVATIONS.items() if not f.rowwise]
PAIRS = [
    (loss.name, name)
    for loss in pf.losses.LOSSES.values()
    for name, f in pf.activations.ACTIVATIONS.items()
    if f.slope_from == "output" and (loss.outputs is None or name in loss.outputs)
]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [*((each, "float32") for each in OPTIMIZERS), (OPTIMIZERS[-1], "float64")],
    ids=repr,
)
def test_training_follows_the_reference(cuda, fused, optimizer, dtype):
    """Shuffled, with weights, the last batch short."""
    network, data = ("tanh", "identity", "mse", dtype), problem("mse", 11, dtype)
    weight = np.linspace(0, 2, 11).astype(dtype)
    settings = {"epochs": 3, "batch_size": 4, "optimizer": optimizer, "sample_weight": weight}
    ours, reference = (trained(cuda, way, network, data, **settings) for way in (fused, None))
    agree(*ours, *reference, 9)
    for slot, exact in zip(ours[0]._memory.slots, reference[0]._memory.slots, strict=True):
        np.testing.assert_allclose(slot, exact, rtol=0, atol=1e3 * np.finfo(dtype).eps * abs(exact).max())
    again, history = trained(cuda, fused, network, data, **settings)
    assert again.params.tobytes() == ours[0].params.tobytes()
    assert history.loss == ours[1].loss


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("hidden", ACTIVATIONS)
def test_every_hidden_activation_trains(cuda, fused, hidden):
    network, data = (hidden, "identity", "mse", "float32"), problem("mse", 5, "float32")
    settings = {"epochs": 1, "batch_size": 3, "optimizer": pf.SGD(0.05)}
    agree(*(each for way in (fused, None) for each in trained(cuda, way, network, data, **settings)), 2)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("loss", "output"), PAIRS)
def test_every_loss_trains(cuda, fused, loss, output):
    network, data = ("tanh", output, loss, "float32"), problem(loss, 5, "float32")
    settings = {"epochs": 1, "batch_size": 3, "optimizer": pf.SGD(0.05)}
    agree(*(each for way in (fused, None) for each in trained(cuda, way, network, data, **settings)), 2)


@pytest.mark.parametrize("fused", [True, False])
def test_labels_train_as_one_hot_rows(cuda, fused):
    x, labels = problem("mse", 7, "float32")[0], np.arange(7) % 3
    network = ("tanh", "softmax", "cross_entropy", "float32")
    settings = {"epochs": 2, "batch_size": 3, "optimizer": pf.Adam(0.01)}
    ours = trained(cuda, fused, network, (x, labels), **settings)
    agree(*ours, *trained(cuda, None, network, (x, labels), **settings), 6)
    rows_of_one = np.eye(3, dtype="float32")[labels]
    agree(*ours, *trained(cuda, fused, network, (x, rows_of_one), **settings), 6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("hidden", ["tanh", "relu"])
def test_special_numbers_pass_through_training(cuda, fused, special, hidden):
    x, y = problem("mse", 5, "float32")
    x[1, 2] = special
    settings = {"epochs": 1, "batch_size": 5, "optimizer": pf.SGD(0.05), "shuffle": False}
    network = (hidden, "identity", "mse", "float32")
    (ours, history), (exact, expected) = (
        trained(cuda, way, network, (x, y), **settings) for way in (fused, None)
    )
    np.testing.assert_array_equal(np.isfinite(ours.params), np.isfinite(exact.params))
    np.testing.assert_array_equal(np.isnan(ours.params), np.isnan(exact.params))
    np.testing.assert_array_equal(np.isnan(history.loss), np.isnan(expected.loss))


def test_one_thread_at_a_time(cuda, monkeypatch):
    x, y = problem("mse", 5, "float32")
    done = []

    def work():
        with pf.use_backend(cuda):
            done.append(pf.dense_forward(x, np.ones((4, 3), "f"), np.ones(3, "f")))

    other = Thread(target=work)

    def epoch(run, numbers):
        other.start()
        other.join(0.2)
        assert not done

    monkeypatch.setattr(Resident, "_run_fused", epoch)
    pf.MLP([4, 3]).fit(x, y, batch_size=2, epochs=1)
    other.join()
    assert len(done) == 1


def test_loss_and_gradient(cuda):
    for output, loss in (("identity", "mse"), ("softmax", "cross_entropy")):
        x, y = problem(loss, 7, "float64")
        net = pf.MLP([4, 6, 3], "gelu", output, loss=loss, dtype="float64", seed=1)
        value, gradient = net.loss_and_gradient(x, y)
        with pf.use_backend("numpy"):
            exact, derivative = net.loss_and_gradient(x, y)
        assert abs(value - exact) < 1e-14
        np.testing.assert_allclose(gradient, derivative, rtol=0, atol=1e-14)


def test_long_inputs_are_predicted_in_parts(cuda, monkeypatch):
    monkeypatch.setattr(plan, "_MOST_ROWS", 4)
    x = problem("mse", 11, "float32")[0]
    net = pf.MLP([4, 6, 3], "tanh", "softmax", seed=1)
    ours = net.predict(x)
    with pf.use_backend("numpy"):
        np.testing.assert_allclose(ours, net.predict(x), rtol=0, atol=1e-6)


def test_narrow_networks_are_recognised():
    def suits(sizes, batch, dtype="float32"):
        return narrow.suits(pf.MLP(sizes, dtype=dtype)._spec, 2, batch)

    assert suits([4, 6, 3], 11)
    assert not suits([4, narrow.WIDEST + 1, 3], 11)
    assert not suits([4, 6, 3], 10**5)  # the batch does not fit
    assert not suits([784, 128, 10], 64)  # nor the parameters
    storage = narrow.Storage(pf.MLP([4, 6, 3], "gelu")._spec, 2, 5)
    assert storage.size == 4 * (3 * (5 * 7 + 7 * 3) + 5 * ((5 + 7 + 4) + (6 + 3) + 6))


def test_rowwise_activations_have_kernels():
    assert set(rows.ROWWISE) == {name for name, f in pf.activations.ACTIVATIONS.items() if f.rowwise}


@pytest.mark.parametrize("tile", [products.SMALL, products.LARGE, products._SIMULATED])
def test_tiles_divide(tile):
    assert tile is products._SIMULATED or tile.threads % 32 == 0
    assert tile.threads <= 256
    for length in (tile.rows, tile.columns, tile.depth):
        assert length & (length - 1) == 0
        assert length == tile.depth or length * tile.depth % tile.threads == 0
    assert tile.threads * tile.thread_rows * tile.thread_columns == tile.rows * tile.columns


def test_the_plan_says_what_it_is(cuda):
    assert isinstance(pf.MLP([4, 3])._plan(), CudaPlan)
    net = pf.MLP([4, 3])
    x, y = problem("mse", 3, "float32")
    state = net._optimizer_state(pf.Adam())
    with net._plan().training(net.params, x, y, None, 2, state) as run:
        assert isinstance(run, Resident)
        assert run.fused
