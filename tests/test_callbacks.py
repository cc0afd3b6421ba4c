"""What happens between epochs: callbacks, the progress bar, the history and its plot."""

from __future__ import annotations

import signal
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest

import pyfastnn as pf
from pyfastnn.callbacks import ProgressBar

X = np.ones((4, 2), np.float32)
Y = np.zeros(4, np.int64)


def network() -> pf.MLP:
    return pf.MLP([2, 3], output="softmax", seed=0)


class Recorder(pf.Callback):
    """Writes down what it is called with; stops or raises at an epoch."""

    def __init__(
        self, name: str, log: list, *, stop: int = 0, error: tuple[str, BaseException] | None = None
    ):
        self.name, self.log, self.stop, self.error = name, log, stop, error

    def _write(self, event: str, what: object) -> None:
        self.log.append((self.name, event, what))
        if self.error and self.error[0] == event:
            raise self.error[1]

    def on_begin(self, network: pf.MLP, epochs: int) -> None:
        self._write("begin", epochs)

    def on_epoch(self, network: pf.MLP, history: pf.History) -> bool | None:
        self._write("epoch", len(history))
        return len(history) == self.stop

    def on_end(self, network: pf.MLP, history: pf.History) -> None:
        self._write("end", len(history))


def test_order_of_calls(backend):
    log: list = []
    network().fit(X, Y, epochs=2, callbacks=[Recorder("a", log), Recorder("b", log)])
    begin = [("a", "begin", 2), ("b", "begin", 2)]
    epochs = [(name, "epoch", epoch) for epoch in (1, 2) for name in "ab"]
    assert log == begin + epochs + [("b", "end", 2), ("a", "end", 2)]


def test_calls_without_epochs(backend):
    log: list = []
    network().fit(X, Y, epochs=0, callbacks=(Recorder(name, log) for name in "a"))
    assert log == [("a", "begin", 0), ("a", "end", 0)]


def test_callbacks_get_the_network_and_the_history(backend):
    seen = []

    class Look(pf.Callback):
        def on_epoch(self, network: pf.MLP, history: pf.History) -> None:
            seen.append((network, history, history.latest()["validation accuracy"]))

    net = network()
    history = net.fit(X, Y, epochs=2, validation_data=(X, Y), callbacks=[Look()])
    assert [entry[0] is net and entry[1] is history for entry in seen] == [True, True]
    assert [entry[2] for entry in seen] == history.validation["accuracy"]


def test_true_stops_after_all_were_called(backend):
    log: list = []
    callbacks = [Recorder("a", log, stop=3), Recorder("b", log)]
    history = network().fit(X, Y, epochs=10, callbacks=callbacks)
    assert len(history) == len(history.seconds) == 3
    assert log[-4:] == [("a", "epoch", 3), ("b", "epoch", 3), ("b", "end", 3), ("a", "end", 3)]


@pytest.mark.parametrize("error", [KeyError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("event", ["begin", "epoch", "end"])
def test_end_is_called_after_exceptions(backend, event, error):
    log: list = []
    failing = Recorder("b", log, error=(event, error))
    callbacks = [Recorder("a", log), failing, Recorder("c", log)]
    net = network()
    with pytest.raises(type(error)):
        net.fit(X, Y, epochs=2, callbacks=callbacks)
    ended = [name for name, what, _ in log if what == "end"]
    # Those that began also end, the last one first; who fails to begin has nothing to end.
    assert ended == {"begin": ["a"], "epoch": ["c", "b", "a"], "end": ["c", "b", "a"]}[event]
    assert len(net.fit(X, Y, epochs=1)) == 1


def test_a_callback_may_change_the_network(backend):
    class Reset(pf.Callback):
        def on_epoch(self, network: pf.MLP, history: pf.History) -> None:
            network.params = np.zeros_like(network.params)

    net = network()
    history = net.fit(X, Y, epochs=3, callbacks=[Reset()], optimizer=pf.SGD(0.1))
    assert not net.params.any()
    assert history.loss[1] == history.loss[2]


class Stopper(pf.Callback):
    """Raises after an epoch without having looked at the network."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_epoch(self, network: pf.MLP, history: pf.History) -> None:
        if len(history) == self.epoch:
            raise KeyboardInterrupt


def test_an_interrupted_fit_keeps_what_it_has_learnt(backend):
    whole, interrupted = network(), network()
    whole.fit(X, Y, epochs=2, batch_size=3, optimizer=pf.Adam())
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(X, Y, epochs=5, batch_size=3, optimizer=pf.Adam(), callbacks=[Stopper(2)])
    np.testing.assert_array_equal(interrupted.params, whole.params)
    # The optimizer's memory too.
    for net in whole, interrupted:
        net.fit(X, Y, epochs=2, batch_size=3, optimizer=pf.Adam())
    np.testing.assert_array_equal(interrupted.params, whole.params)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="has no timers that send signals")
@pytest.mark.parametrize("batch_size", [3, 1000])
def test_a_signal_ends_a_long_fit(backend, batch_size):
    class RingError(Exception):
        pass

    def ring(*_):
        raise RingError

    net = network()
    net.fit(X, Y, epochs=3, batch_size=batch_size)  # what is compiled now does not count
    previous = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        start = time.perf_counter()
        with pytest.raises(RingError):
            net.fit(X, Y, epochs=10**30, batch_size=batch_size)
        seconds = time.perf_counter() - start
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert seconds < 10  # of 0.2, and a slice, on a busy machine
    assert np.isfinite(net.params).all()
    if backend.name == "cpp":  # which ends with an epoch
        whole = network()
        whole.fit(X, Y, epochs=3, batch_size=batch_size)
        steps, first = -(-len(X) // batch_size), whole._memory.step
        assert net._memory.step > first
        whole.fit(X, Y, epochs=(net._memory.step - first) // steps, batch_size=batch_size)
        assert whole._memory.step == net._memory.step
        np.testing.assert_array_equal(whole.params, net.params)
        assert str(whole._rng.bit_generator.state) == str(net._rng.bit_generator.state)


def test_an_order_that_fails_loses_no_epoch(backend, monkeypatch):
    whole, interrupted = network(), network()
    whole.fit(X, Y, epochs=2, batch_size=3)
    draw, drawn = backend.order, []

    def order(rng: np.random.Generator, count: int) -> np.ndarray:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(count)
        return draw(rng, count)

    monkeypatch.setattr(backend, "order", order)
    monkeypatch.setattr(backend, "draws", lambda rng, count: False, raising=False)  # not in the core
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(X, Y, epochs=5, batch_size=3)
    np.testing.assert_array_equal(interrupted.params, whole.params)


def test_threads_may_change_between_epochs(backend):
    same, changing = network(), network()
    same.fit(X, Y, epochs=4, batch_size=3)
    before = pf.get_num_threads()

    class Changer(pf.Callback):
        def on_epoch(self, network: pf.MLP, history: pf.History) -> None:
            pf.set_num_threads(len(history))

    try:
        changing.fit(X, Y, epochs=4, batch_size=3, callbacks=[Changer()])
    finally:
        pf.set_num_threads(before)
    np.testing.assert_array_equal(changing.params, same.params)


def test_progress_bar(backend, capsys):
    network().fit(X, Y, epochs=3, progress=True, validation_data=(X, Y))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3/3" in captured.err
    for figure in ("loss=", "validation loss=", "validation accuracy="):
        assert figure in captured.err


@pytest.mark.parametrize("progress", [None, False])
def test_no_progress_bar_where_nobody_looks(backend, capsys, progress):
    assert not ProgressBar.suits_here()  # standard error is captured, and no terminal
    network().fit(X, Y, epochs=3, progress=progress)
    assert capsys.readouterr().err == ""


def test_progress_bar_closes_after_an_exception(backend, capsys):
    failing = Recorder("a", [], error=("epoch", KeyError()))
    with pytest.raises(KeyError):
        network().fit(X, Y, epochs=3, progress=True, callbacks=[failing])
    assert capsys.readouterr().err.endswith("\n")


def test_latest():
    history = pf.History()
    assert len(history) == 0
    assert history.latest() == {}
    history.loss += [3.0, 2.0]
    history.validation["loss"] = [4.0, 2.5]
    history.validation["accuracy"] = [0.5, 0.75]
    assert len(history) == 2
    assert history.latest() == {"loss": 2.0, "validation loss": 2.5, "validation accuracy": 0.75}


def test_histories_share_nothing():
    first, second = pf.History(), pf.History()
    first.loss.append(1.0)
    first.validation["loss"] = [1.0]
    assert second == pf.History()


def test_plot():
    history = pf.History([3.0, 2.0], {"loss": [4.0, 2.5], "accuracy": [0.5, 0.75]}, [0.1, 0.1])
    axes = history.plot()
    figure = axes.get_figure()
    left, right = figure.axes
    assert left is axes
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == ("epoch", "loss", "accuracy")
    lines = {line.get_label(): line for line in (*left.lines, *right.lines)}
    assert [line.get_label() for line in left.lines] == ["loss", "validation loss"]
    for name, values in {
        "loss": [3, 2],
        "validation loss": [4, 2.5],
        "validation accuracy": [0.5, 0.75],
    }.items():
        assert list(lines[name].get_xdata()) == [1, 2]
        assert list(lines[name].get_ydata()) == values
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(lines)
    assert len({line.get_color() for line in lines.values()}) == 3
    figure.canvas.draw()
    plt.close(figure)


def test_plot_into_given_axes(backend):
    figure, (left, right) = plt.subplots(1, 2)
    history = network().fit(X, Y, epochs=2)
    assert history.plot(right) is right
    assert not left.lines
    assert [line.get_label() for line in right.lines] == ["loss"]
    assert pf.History().plot(left) is left  # nothing yet, no error either
    assert len(figure.axes) == 2
    plt.close(figure)


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"^plot needs matplotlib: pip install 'pyfastnn\[plot\]'"):
        pf.History([1.0]).plot()
