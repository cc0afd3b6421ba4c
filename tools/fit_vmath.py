"""Fit the polynomials of csrc/coefficients.inl (and the normal tail of pyfastnn/activations.py).

Every fit interpolates at Chebyshev nodes in 50-digit arithmetic, which is within a small factor
of the minimax error; the comment beside each array is the error found on a fine grid.

    pip install mpmath
    python tools/fit_vmath.py > csrc/coefficients.inl     # C++
    python tools/fit_vmath.py --python                    # the tuple for activations.py
"""

import sys
from collections.abc import Callable

import mpmath as mp

mp.mp.dps = 50
Function = Callable[[mp.mpf], mp.mpf]


def interpolate(f: Function, low: float, high: float, degree: int) -> list[mp.mpf]:
    """Monomial coefficients, lowest first, of the Chebyshev interpolant of f on [low, high]."""
    middle, half = (mp.mpf(low) + high) / 2, (mp.mpf(high) - low) / 2
    nodes = [middle + half * mp.cos(mp.pi * (2 * i + 1) / (2 * degree + 2)) for i in range(degree + 1)]
    vandermonde = mp.matrix([[x**j for j in range(degree + 1)] for x in nodes])
    return list(mp.lu_solve(vandermonde, mp.matrix([f(x) for x in nodes])))


def rational(
    f: Function, low: float, high: float, top: int, bottom: int
) -> tuple[list[mp.mpf], list[mp.mpf]]:
    """f ~ P/Q with Q(0) = 1, interpolated at Chebyshev nodes (P - f Q = 0 is linear)."""
    count = top + bottom + 1
    middle, half = (mp.mpf(low) + high) / 2, (mp.mpf(high) - low) / 2
    nodes = [middle + half * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]
    rows = [[x**j for j in range(top + 1)] + [-f(x) * x**j for j in range(1, bottom + 1)] for x in nodes]
    solution = list(mp.lu_solve(mp.matrix(rows), mp.matrix([f(x) for x in nodes])))
    return solution[: top + 1], [mp.mpf(1), *solution[top + 1 :]]


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


TAIL_CENTRE = mp.mpf(4)


def tail(t: mp.mpf) -> mp.mpf:
    """h of P(Z > z) = exp(-z^2/2) h(t) / (1 + z), t = (z - c) / (z + c), z >= 0."""
    z = TAIL_CENTRE * (1 + t) / (1 - t)
    return (1 + z) * mp.exp(z * z / 2) * mp.erfc(z / mp.sqrt(2)) / 2


def error(f: Function, fit: Function, low: float, high: float) -> str:
    """Largest relative error on a fine grid."""
    points = [low + (mp.mpf(high) - low) * (i + mp.mpf(1) / 3) / 2000 for i in range(2000)]
    return mp.nstr(max(abs(fit(x) / f(x) - 1) for x in points), 2)


def array(name: str, digits: int, coefficients: list[mp.mpf], note: str) -> str:
    numbers = ",\n    ".join(mp.nstr(c, digits, strip_zeros=False) for c in coefficients)
    return f"// {note}\nconstexpr double {name}[] = {{\n    {numbers}}};\n"


def polynomial(name: str, digits: int, f: Function, low: float, high: float, degree: int) -> str:
    c = interpolate(f, low, high, degree)
    return array(
        name, digits, c, f"degree {degree}, relative error {error(f, lambda x: evaluate(c, x), low, high)}"
    )


# Over z in [0, 40], where even float64 has underflowed.
TAIL_RANGE = (-1.0, float((40 - TAIL_CENTRE) / (40 + TAIL_CENTRE)))
HALF_LN2 = float(mp.log(2)) / 2 * 1.0001


def main() -> None:
    if "--python" in sys.argv:
        print(",\n    ".join(mp.nstr(c, 19) for c in interpolate(tail, *TAIL_RANGE, 22)))
        return
    print("// Written by tools/fit_vmath.py. Lowest power first.\n\nnamespace coefficients {\n")
    print("// q of exp(r) = 1 + r + r^2 q(r), |r| <= ln(2) / 2")
    print(polynomial("exp_f32", 10, exp_rest, -HALF_LN2, HALF_LN2, 4))
    print(polynomial("exp_f64", 19, exp_rest, -HALF_LN2, HALF_LN2, 9))
    print("// q of log1p(e) = 2 s + s^3 q(s^2), s = e / (2 + e), 0 <= e <= 1")
    print(polynomial("log1p_f32", 10, atanh_rest, 1e-9, 1 / 9, 4))
    print(polynomial("log1p_f64", 19, atanh_rest, 1e-9, 1 / 9, 10))
    print("// q of log(m) = 2 s + s^3 q(s^2), s = (m - 1) / (m + 1), 1/sqrt(2) <= m <= sqrt(2)")
    print(polynomial("log_f32", 10, atanh_rest, 1e-9, 0.0295, 2))
    print(polynomial("log_f64", 19, atanh_rest, 1e-9, 0.0295, 6))
    top, bottom = rational(tanh_ratio, 1e-9, 9.01**2, 6, 4)
    fit = error(tanh_ratio, lambda u: evaluate(top, u) / evaluate(bottom, u), 1e-9, 9.01**2)
    print(f"// tanh(x) = x P(x^2) / Q(x^2), |x| <= 9.01, relative error {fit}")
    print(array("tanh_top_f32", 10, top, "P"))
    print(array("tanh_bottom_f32", 10, bottom, "Q"))
    print("// h of P(Z > z) = exp(-z^2/2) h(t) / (1 + z), t = (z - 4) / (z + 4), 0 <= z <= 40")
    print(polynomial("tail_f32", 10, tail, *TAIL_RANGE, 10))
    print(polynomial("tail_f64", 19, tail, *TAIL_RANGE, 22))
    print("}  // namespace coefficients")


main()
