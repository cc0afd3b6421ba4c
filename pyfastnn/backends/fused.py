"""The training loop in compiled code: products, forward and backward, whole epochs.

It knows no names: a network is a table of sizes, places in the workspace and addresses of compiled
formulas, so that each function is compiled once a dtype, whatever the network.
"""

from __future__ import annotations

import numpy as np

from .compiling import entry, jit
from .loops import TILE_ROWS, TILE_VECTORS, call, call_listed, call_product, copy, lanes, moved, pointer, tile

# Columns of the table, one row a layer: sizes; where its weights begin in the parameters, and a, d
# and what the slope is computed from in the workspace; addresses of the activation's formulas.
INPUTS, OUTPUTS, WEIGHTS, A, D, S, VALUE, DELTA = range(8)

# Of the list of what belongs to the whole network: places in the workspace; the rows it has room for;
# addresses of the product and of the formulas at the output, where no delta (0) is due for a matched
# loss; by what the loss is divided besides the sum of the weights.
X, Y, COUNTS, TURNED, ZEROS, CAPACITY, PRODUCT, TOTAL, GRADIENT, OUTPUT_DELTA, WEIGHTING, TERMS = range(12)

# The workspace begins with a one, and a number for formulas.
ONE, NUMBER = 0, 1


def product(rows, columns, depth, a, a_row, a_step, b, start, start_row, c):
    """c (rows, columns) = start + a b, as ``loops.tile``; the rows of b and c follow each other.

    Called by its address, so that it is compiled once and not again inside of every caller.
    """
    blocks = (rows + TILE_ROWS - 1) // TILE_ROWS
    across = TILE_VECTORS * lanes(c)
    for column in range(0, columns, across):
        row = 0
        for block in range(blocks):
            height = rows // blocks + (block < rows % blocks)
            tile(
                height,
                columns - column,
                depth,
                moved(a, row * a_row),
                a_row,
                a_step,
                moved(b, column),
                moved(start, row * start_row + column),
                start_row,
                moved(c, row * columns + column),
                columns,
            )
            row += height
    return 0.0


@jit
def transpose(w, rows, columns, out):
    """out (columns, rows) = w^T."""
    for j in range(columns):
        for i in range(rows):
            out[j * rows + i] = w[i * columns + j]


@jit
def product_transposed(multiply, rows, columns, depth, a, b, turned, zeros, c):
    """c (rows, columns) = a b^T, with room for b^T."""
    transpose(b, columns, depth, turned)
    call_product(multiply, rows, columns, depth, a, depth, 1, turned, zeros, 0, c)


@jit
def gradients(multiply, rows, inputs, outputs, x, d, one, start, start_row, dw, db):
    """dw = start + x^T d and db = start + sum of d; start is dw itself, or zeros, which do not move on."""
    call_product(multiply, inputs, outputs, rows, x, 1, inputs, d, start, start_row, dw)
    start_b = moved(start, start_row * inputs)
    call_product(multiply, 1, outputs, rows, one, 0, 0, d, start_b, 0, db)


@jit
def run_forward(table, multiply, params, x, rows, work, last):
    """The network at x (rows, inputs); ``last`` receives the outputs."""
    for i in range(len(table)):
        inputs, outputs = table[i, INPUTS], table[i, OUTPUTS]
        w = moved(params, table[i, WEIGHTS])
        a = moved(work, table[i, A])
        if i == len(table) - 1:
            a = last
        b = moved(w, inputs * outputs)
        call_product(multiply, rows, outputs, inputs, x, inputs, 1, w, b, 0, a)
        if table[i, S] != table[i, A]:
            copy(moved(work, table[i, S]), a, rows * outputs)
        call(table[i, VALUE], (a,), work, rows, outputs)
        x = a


@jit
def backpropagate(table, whole, params, gradient, x, y, rows, scale, work, more):
    """The sum of the weighted losses of some rows; their share of the gradient, added where ``more``."""
    multiply, last = whole[PRODUCT], len(table) - 1
    outputs = table[last, OUTPUTS]
    a, d = moved(work, table[last, A]), moved(work, table[last, D])
    counts, zeros, number = moved(work, whole[COUNTS]), moved(work, whole[ZEROS]), moved(work, NUMBER)
    run_forward(table, multiply, params, x, rows, work, a)
    loss = call(whole[TOTAL], (a, y, counts), work, rows, outputs)
    call(whole[GRADIENT], (d, a, y), work, rows, outputs)
    if whole[OUTPUT_DELTA]:
        call(whole[OUTPUT_DELTA], (d, a), work, rows, outputs)
    number[0] = scale
    call(whole[WEIGHTING], (d, counts), number, rows, outputs)
    for i in range(last, -1, -1):
        inputs, outputs = table[i, INPUTS], table[i, OUTPUTS]
        below = x
        if i:
            below = moved(work, table[i - 1, A])
        d = moved(work, table[i, D])
        dw = moved(gradient, table[i, WEIGHTS])
        start = zeros
        if more:
            start = dw
        db = moved(dw, inputs * outputs)
        gradients(multiply, rows, inputs, outputs, below, d, work, start, more * outputs, dw, db)
        if i:
            w, turned = moved(params, table[i, WEIGHTS]), moved(work, whole[TURNED])
            d_below = moved(work, table[i - 1, D])
            product_transposed(multiply, rows, inputs, outputs, d, w, turned, zeros, d_below)
            call(table[i - 1, DELTA], (d_below, moved(work, table[i - 1, S])), work, rows, inputs)
    return loss


@jit
def take_targets(whole, outputs, labels, targets, order, first, rows, work):
    """Rows of targets; of labels, rows with a one."""
    y = moved(work, whole[Y])
    for i in range(rows):
        if len(labels):
            copy(moved(y, i * outputs), moved(work, whole[ZEROS]), outputs)
            y[i * outputs + labels[order[first + i]]] = 1
        else:
            copy(moved(y, i * outputs), pointer(targets, order[first + i] * outputs), outputs)


@jit
def take_counts(whole, outputs, weight, order, first, rows, work):
    """For each row, its weight in every column."""
    counts = moved(work, whole[COUNTS])
    for i in range(rows):
        count = work[ONE]
        if len(weight):
            count = weight[order[first + i]]
        for j in range(outputs):
            counts[i * outputs + j] = count


@jit
def run_batch(table, whole, params, gradient, x, labels, targets, weight, order, first, last, work):
    """The loss of the batch x[order[first:last]] and the sum of its weights; and the gradient."""
    inputs, outputs = table[0, INPUTS], table[-1, OUTPUTS]
    size = float(last - first)
    if len(weight):
        size = 0.0
        for i in range(first, last):
            size += weight[order[i]]
    scale = 0.0
    if size:
        scale = 1 / (size * whole[TERMS])
    loss = 0.0
    x_rows = moved(work, whole[X])
    for start in range(first, last, whole[CAPACITY]):
        rows = min(whole[CAPACITY], last - start)
        for i in range(rows):
            copy(moved(x_rows, i * inputs), pointer(x, order[start + i] * inputs), inputs)
        take_targets(whole, outputs, labels, targets, order, start, rows, work)
        take_counts(whole, outputs, weight, order, start, rows, work)
        more = int(start > first)
        y = moved(work, whole[Y])
        loss += backpropagate(table, whole, params, gradient, x_rows, y, rows, scale, work, more)
    return loss * scale, size


@entry("table list flat flat flat list flat flat list flat")
def loss_and_gradient(table, whole, params, gradient, x, labels, targets, weight, order, work):
    """The loss of x[order], and its gradient."""
    p, g, s = pointer(params, 0), pointer(gradient, 0), pointer(work, 0)
    return run_batch(table, whole, p, g, x, labels, targets, weight, order, 0, len(order), s)[0]


@entry("table list flat flat flat list flat flat list int int list flat flat")
def train_epoch(
    table, whole, params, gradient, x, labels, targets, weight, order, batch, rule, operands, numbers, work
):
    """An epoch over x[order] in batches; the mean loss on the way.

    ``rule`` is the address of the optimizer's formula, ``operands`` the addresses of the arrays it takes,
    ``numbers`` those of one step after the other.
    """
    p, g, s = pointer(params, 0), pointer(gradient, 0), pointer(work, 0)
    steps = (len(order) + batch - 1) // batch
    total = weights = 0.0
    for step in range(steps):
        first, last = step * batch, min((step + 1) * batch, len(order))
        loss, size = run_batch(table, whole, p, g, x, labels, targets, weight, order, first, last, s)
        total += size * loss
        weights += size
        given = pointer(numbers, step * (len(numbers) // steps))
        call_listed(rule, pointer(operands, 0), given, 1, len(params))
    return total / weights


@entry("table list flat flat flat flat")
def forward(table, whole, params, x, out, work):
    """out = the network at x."""
    inputs, outputs = table[0, INPUTS], table[-1, OUTPUTS]
    samples = len(x) // inputs
    for start in range(0, samples, whole[CAPACITY]):
        rows = min(whole[CAPACITY], samples - start)
        run_forward(
            table,
            whole[PRODUCT],
            pointer(params, 0),
            pointer(x, start * inputs),
            rows,
            pointer(work, 0),
            pointer(out, start * outputs),
        )


@entry("int list flat int")
def update(rule, operands, numbers, count):
    """The optimizer's formula at an address, over arrays at the addresses in operands."""
    call_listed(rule, pointer(operands, 0), pointer(numbers, 0), 1, count)


@entry("int flat flat flat flat int int")
def apply(formula, first, second, third, numbers, rows, columns):
    """The formula at an address, over three arrays or the first of them; its total."""
    operands = pointer(first, 0), pointer(second, 0), pointer(third, 0)
    return call(formula, operands, pointer(numbers, 0), rows, columns)


@entry("int int flat flat flat int int flat flat")
def layer(multiply, value, x, w, b, rows, inputs, z, out):
    """out = f(x w + b); z, if not empty, receives x w + b."""
    outputs = len(b)
    p, q, start, a = pointer(x, 0), pointer(w, 0), pointer(b, 0), pointer(out, 0)
    call_product(multiply, rows, outputs, inputs, p, inputs, 1, q, start, 0, a)
    if len(z):
        copy(pointer(z, 0), a, len(z))
    call(value, (a,), a, rows, outputs)


@entry("int flat flat int int int flat flat")
def weight_gradients(multiply, x, d, rows, inputs, outputs, dw, db):
    """dw = x^T d, db = sum of d."""
    start = np.zeros(1 + outputs, x.dtype)
    start[0] = 1
    p, q, one, zeros = pointer(x, 0), pointer(d, 0), pointer(start, 0), pointer(start, 1)
    gradients(multiply, rows, inputs, outputs, p, q, one, zeros, 0, pointer(dw, 0), pointer(db, 0))


@entry("int flat flat int int int flat")
def input_gradient(multiply, d, w, rows, inputs, outputs, out):
    """out = d w^T."""
    turned, zeros = np.empty(inputs * outputs, w.dtype), np.zeros(inputs, w.dtype)
    p, q, room = pointer(d, 0), pointer(w, 0), pointer(turned, 0)
    product_transposed(multiply, rows, inputs, outputs, p, q, room, pointer(zeros, 0), pointer(out, 0))
