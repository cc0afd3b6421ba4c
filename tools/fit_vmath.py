"""Fit the polynomials of the elementary functions, in C++ and Python, and of the normal distribution.

In 50-digit arithmetic. Polynomials interpolate at Chebyshev nodes, which is within a small factor of
the minimax error; the rational function is minimax. The comment beside each array is the error found
on a fine grid.

    pip install mpmath
    python tools/fit_vmath.py > csrc/coefficients.inl                               # C++
    python tools/fit_vmath.py --python > pyfastnn/backends/coefficients.py          # the same numbers
    python tools/fit_vmath.py --tail                                                # for activations.py
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import mpmath as mp

mp.mp.dps = 50
Function = Callable[[mp.mpf], mp.mpf]


def interpolate(f: Function, low: float, high: float, degree: int) -> list[mp.mpf]:
    """Monomial coefficients, lowest first, of the Chebyshev interpolant of f on [low, high]."""
    middle, half = (mp.mpf(low) + high) / 2, (mp.mpf(high) - low) / 2
    nodes = [middle + half * mp.cos(mp.pi * (2 * i + 1) / (2 * degree + 2)) for i in range(degree + 1)]
    vandermonde = mp.matrix([[x**j for j in range(degree + 1)] for x in nodes])
    return list(mp.lu_solve(vandermonde, mp.matrix([f(x) for x in nodes])))


def minimax(f: Function, high: float, top: int, bottom: int) -> tuple[list[mp.mpf], list[mp.mpf]]:
    """f(x^2) ~ P(x^2) / Q(x^2) of least relative error for 0 < x <= high, Q monic, by Remez's algorithm.

    A leading coefficient of one is an addition where the others are multiply-adds.
    """
    count = top + bottom + 2
    grid = [(high * mp.mpf(i) / 3000) ** 2 for i in range(1, 3001)]
    values = [f(u) for u in grid]
    nodes = [int(2999 * (1 - mp.cos(mp.pi * i / (count - 1))) / 2) for i in range(count)]
    q, e = [mp.mpf(0)] * bottom + [mp.mpf(1)], mp.mpf(0)
    for _ in range(8):
        for _ in range(8):  # by Newton's method, P = f Q (1 +- e) at the nodes
            rows, right = [], []
            for sign, u, y in ((1 - 2 * (i % 2), grid[n], values[n]) for i, n in enumerate(nodes)):
                goal = y * (1 + sign * e)
                rows.append([u**j for j in range(top + 1)] + [-goal * u**j for j in range(bottom)])
                rows[-1].append(-sign * y * evaluate(q, u))
                right.append(goal * u**bottom)
            solution = list(mp.lu_solve(mp.matrix(rows), mp.matrix(right)))
            p, q, e = solution[: top + 1], [*solution[top + 1 : -1], mp.mpf(1)], e + solution[-1]
        errors = [evaluate(p, u) / evaluate(q, u) / y - 1 for u, y in zip(grid, values, strict=True)]
        # The largest error of every run of one sign.
        sizes, positive = [abs(error) for error in errors], [error > 0 for error in errors]
        nodes = [max(run, key=sizes.__getitem__) for _, run in groupby(range(3000), positive.__getitem__)]
        assert len(nodes) == count
    return p, q


def evaluate(coefficients: list[mp.mpf], x: mp.mpf) -> mp.mpf:
    return mp.polyval(coefficients[::-1], x)


def exp_rest(r: mp.mpf) -> mp.mpf:
    """q of exp(r) = 1 + r + r^2 q(r)."""
    return (mp.expm1(r) - r) / r**2 if abs(r) > mp.mpf("1e-20") else mp.mpf(1) / 2


def atanh_rest(u: mp.mpf) -> mp.mpf:
    """q of 2 atanh(s) = 2 s + s^3 q(s^2), with u = s^2."""
    s = mp.sqrt(u)
    return 2 * (mp.atanh(s) - s) / s**3


def tanh_ratio(u: mp.mpf) -> mp.mpf:
    """tanh(x) / x with u = x^2."""
    x = mp.sqrt(u)
    return mp.tanh(x) / x


def inverse_root_rest(e: mp.mpf) -> mp.mpf:
    """q of 1 / sqrt(1 - e) = 1 + e q(e)."""
    return (1 / mp.sqrt(1 - e) - 1) / e if abs(e) > mp.mpf("1e-20") else mp.mpf(1) / 2


TAIL_CENTRE = mp.mpf(4)


def tail(t: mp.mpf) -> mp.mpf:
    """h of P(Z > z) = exp(-z^2/2) h(t) / (1 + z), t = (z - c) / (z + c), z >= 0."""
    z = TAIL_CENTRE * (1 + t) / (1 - t)
    return (1 + z) * mp.exp(z * z / 2) * mp.erfc(z / mp.sqrt(2)) / 2


def error(f: Function, fit: Function, low: float, high: float) -> str:
    """Largest relative error on a fine grid."""
    points = [low + (mp.mpf(high) - low) * (i + mp.mpf(1) / 3) / 2000 for i in range(2000)]
    return mp.nstr(max(abs(fit(x) / f(x) - 1) for x in points), 2)


@dataclass
class Fit:
    """Coefficients, lowest power first, and what they are good for."""

    name: str
    bits: int
    note: str
    coefficients: list[mp.mpf]

    def numbers(self, separator: str) -> str:
        digits = 10 if self.bits == 32 else 19
        return separator.join(mp.nstr(c, digits, strip_zeros=False) for c in self.coefficients)


def polynomial(name: str, bits: int, f: Function, low: float, high: float, degree: int) -> Fit:
    c = interpolate(f, low, high, degree)
    note = f"degree {degree}, relative error {error(f, lambda x: evaluate(c, x), low, high)}"
    return Fit(name, bits, note, c)


# Over z in [0, 40], where even float64 has underflowed.
TAIL_RANGE = (-1.0, float((40 - TAIL_CENTRE) / (40 + TAIL_CENTRE)))
HALF_LN2 = float(mp.log(2)) / 2 * 1.0001


def sections() -> Iterator[tuple[str, list[Fit]]]:
    """What each group of fits is for, and the fits."""
    yield (
        "q of exp(r) = 1 + r + r^2 q(r), |r| <= ln(2) / 2",
        [polynomial("exp", bits, exp_rest, -HALF_LN2, HALF_LN2, n) for bits, n in ((32, 4), (64, 9))],
    )
    yield (
        "q of log1p(e) = 2 s + s^3 q(s^2), s = e / (2 + e), 0 <= e <= 1",
        [polynomial("log1p", bits, atanh_rest, 1e-9, 1 / 9, n) for bits, n in ((32, 4), (64, 10))],
    )
    yield (
        "q of log(m) = 2 s + s^3 q(s^2), s = (m - 1) / (m + 1), 1/sqrt(2) <= m <= sqrt(2)",
        [polynomial("log", bits, atanh_rest, 1e-9, 0.0295, n) for bits, n in ((32, 2), (64, 6))],
    )
    top, bottom = minimax(tanh_ratio, 9.01, 4, 4)
    fit = error(tanh_ratio, lambda u: evaluate(top, u) / evaluate(bottom, u), 1e-9, 9.01**2)
    yield (
        f"tanh(x) = x P(x^2) / Q(x^2), |x| <= 9.01, relative error {fit}",
        [Fit("tanh_top", 32, "P", top), Fit("tanh_bottom", 32, "Q", bottom)],
    )
    yield (
        "h of P(Z > z) = exp(-z^2/2) h(t) / (1 + z), t = (z - 4) / (z + 4), 0 <= z <= 40",
        [polynomial("tail", bits, tail, *TAIL_RANGE, n) for bits, n in ((32, 10), (64, 22))],
    )
    yield (
        "q of 1/sqrt(1 - e) = 1 + e q(e), |e| <= 0.0692",
        [polynomial("inverse_root", 32, inverse_root_rest, -0.0692, 0.0692, 3)],
    )


def cpp() -> None:
    print("// Written by tools/fit_vmath.py. Lowest power first.\n\nnamespace coefficients {\n")
    for purpose, fits in sections():
        print(f"// {purpose}")
        for fit in fits:
            numbers = fit.numbers(",\n    ")
            print(f"// {fit.note}\nconstexpr double {fit.name}_f{fit.bits}[] = {{\n    {numbers}}};\n")
    print("}  // namespace coefficients")


def python() -> None:
    """By name, then by the bits of the dtype."""
    # The normal distribution is part of activations.py, log1p is made from log there, roots are C++ only.
    elsewhere = "tail", "log1p", "inverse_root"
    print('"""Coefficients of elementary functions, lowest power first. Written by tools/fit_vmath.py."""')
    for purpose, fits in sections():
        if fits[0].name in elsewhere:
            continue
        print(f"\n# {purpose}")
        for name in sorted({fit.name for fit in fits}):
            print(f"{name.upper()} = {{")
            for fit in fits:
                if fit.name == name:
                    numbers = fit.numbers(",\n        ")
                    print(f"    # {fit.note}\n    {fit.bits}: (\n        {numbers},\n    ),")
            print("}")


def main() -> None:
    if "--tail" in sys.argv:
        print(",\n    ".join(mp.nstr(c, 19) for c in interpolate(tail, *TAIL_RANGE, 22)))
    elif "--python" in sys.argv:
        python()
    else:
        cpp()


main()
