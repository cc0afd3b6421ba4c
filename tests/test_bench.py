"""The short benchmark: its contenders do the same work, and its table comes out."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

import pyfastnn as pf
from pyfastnn import bench
from pyfastnn.__main__ import main
from pyfastnn.bench import PEERS, WORKLOADS, Contender, Ours, ScikitLearn, deviation, few_steps

SMALL = [name for name, workload in WORKLOADS.items() if workload.sizes[1] < 512]
# Peers that are not installed would be nothing but skipped.
KINDS = [(Ours, name) for name, status in pf.backends().items() if status == "available"] + [
    (kind, variant) for kind in PEERS.values() if find_spec(kind.module) for variant in kind.variants
]


@pytest.fixture(autouse=True)
def same_backend_afterwards():
    before = pf.get_backend()
    yield
    pf.set_backend(before)


def contender(kind: type[Contender], variant: str, workload: bench.Workload) -> Contender:
    return kind(kind.nearest(workload), variant, 1)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("kind", "variant"), KINDS)
def test_contenders_arrive_where_the_reference_does(kind, variant, name):
    tested = contender(kind, variant, WORKLOADS[name])
    error, bound = deviation(tested.workload, few_steps(tested))
    assert error <= bound


@pytest.mark.parametrize("name", SMALL)
def test_the_bound_is_not_idle(name):
    """Five percent more learning rate, or one step less, is noticed."""
    workload = WORKLOADS[name]
    faster = replace(workload.optimizer, learning_rate=1.05 * workload.optimizer.learning_rate)
    wrong = Ours(replace(workload, optimizer=faster), "numpy", 1)
    late = Ours(workload, "numpy", 1)
    late.start(workload.start)
    late.train(
        min(2 * workload.batch, workload.rows), max(1, 2 * workload.batch // workload.rows), shuffle=False
    )
    params = np.concatenate([p.ravel() for pair in late.layers() for p in pair])
    for arrived in (few_steps(wrong), params):
        error, bound = deviation(workload, arrived)
        # Adam's bound allows for gradients that are all rounding: at large batches it sees less.
        assert error > min(bound, 0.04)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_batches_are_whole(workload):
    assert workload.rows % workload.batch == 0
    assert workload.steps >= (1 if workload.name in ("online", "wide") else 10)


def test_scikit_learn_does_the_same_every_time():
    """Warm starts must neither keep the optimizer's state nor end a fit early for want of progress."""
    workload = WORKLOADS["expm"]
    tested = contender(ScikitLearn, "", workload)
    before = few_steps(tested)
    for _ in range(4):
        epochs = len(tested.model.loss_curve_)
        tested.start(workload.start)
        tested.train(workload.rows, 5, shuffle=True)
        assert len(tested.model.loss_curve_) == epochs + 5
    assert (few_steps(tested) == before).all()


def test_interleaving_asks_in_turn():
    asked = []

    def ask(name, value):
        asked.append(name)
        return [value, 3 * value, 2 * value]

    times = bench.interleave(
        {name: lambda n=name, v=value: ask(n, v) for name, value in (("a", 1), ("b", 10))}, 2
    )
    assert asked == ["a", "b", "b", "a"]
    assert times == {"a": [2, 2], "b": [20, 20]}
    assert bench.ratio(times["a"], times["b"]) == 10


def test_the_command_prints_a_table(capsys, monkeypatch):
    monkeypatch.setattr(bench, "PEERS", {"scikit-learn": ScikitLearn})
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name == "sklearn" else name)
    main(["bench", "tiny"])
    printed = capsys.readouterr().out
    assert "without scikit-learn: not installed" in printed
    assert "tiny 24-8-2, batch 200" in printed


def test_unknown_workloads_are_listed():
    with pytest.raises(ValueError, match="nielsen"):
        bench.run(["no such workload"])


def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr(bench, "PEERS", {})
    monkeypatch.setattr(bench, "few_steps", lambda contender: np.float32(0))
    with pytest.raises(RuntimeError, match="errs by"):
        bench.run(["tiny"])
