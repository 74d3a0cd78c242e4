"""Writes trend.json: what SciPy says about small integer series, for the tests of src/trend/stats.rs.

    pip install scipy && python3 trend.py > trend.json

SciPy has no Mann-Kendall test, so S is counted pair by pair here, its variance is Kendall's with ties in
both variables, and p is the normal tail with the continuity correction; scipy.stats.kendalltau, which has
the same S and variance but no correction, must agree with all of that or the script stops.
"""

import json
import math
import random

import scipy
from scipy import special, stats


def ties(values, weight):
    return sum(weight(n) for n in (values.count(v) for v in set(values)))


def mann_kendall(x, y):
    n = len(x)
    sign = lambda a: (a > 0) - (a < 0)
    s = sum(sign(x[j] - x[i]) * sign(y[j] - y[i]) for i in range(n) for j in range(i + 1, n))
    pairs = n * (n - 1)
    full = lambda v: ties(v, lambda k: k * (k - 1) * (2 * k + 5))
    two = lambda v: ties(v, lambda k: k * (k - 1))
    three = lambda v: ties(v, lambda k: k * (k - 1) * (k - 2))
    var = (pairs * (2 * n + 5) - full(x) - full(y)) / 18
    var += two(x) * two(y) / (2 * pairs) + three(x) * three(y) / (9 * pairs * (n - 2))
    z = (s - sign(s)) / math.sqrt(var) if var > 0 else 0.0
    tau = 0.0
    if var > 0:
        scipys = stats.kendalltau(x, y, method="asymptotic")
        tau = scipys.statistic
        count = (pairs - two(x)) / 2, (pairs - two(y)) / 2
        assert math.isclose(tau * math.sqrt(count[0] * count[1]), s, abs_tol=1e-6)
        assert math.isclose(scipys.pvalue, 2 * stats.norm.sf(abs(s) / math.sqrt(var)), rel_tol=1e-9)
    return {"s": s, "var": var, "z": z, "p": 2 * stats.norm.sf(abs(z)), "tau_b": tau}


def case(name, x, y):
    theil = stats.theilslopes(y, x, 0.95) if len(set(x)) > 1 else None
    clean = lambda v: None if v is None or math.isnan(v) else v
    return {
        "name": name,
        "x": x,
        "y": y,
        "slope": clean(theil and theil.slope),
        "low": clean(theil and theil.low_slope),
        "high": clean(theil and theil.high_slope),
        "mann_kendall": mann_kendall(x, y) if len(x) >= 4 else None,
    }


def cases():
    rng = random.Random(20240817)
    page = 4096
    seconds = list(range(31))
    yield case("two points", [0, 5], [10, 20])
    yield case("three points", [0, 1, 3], [7, 5, 9])
    yield case("four rising", [0, 1, 2, 3], [1, 2, 3, 4])
    yield case("four equal", [0, 1, 2, 3], [9, 9, 9, 9])
    yield case("all at one time", [4] * 6, [3, 1, 2, 9, 5, 5])
    yield case("constant", seconds, [364 << 20] * 31)
    yield case("exact line", seconds, [1000 * page + 256 * page * t for t in seconds])
    yield case("falling", seconds, [9000 * page - 7 * page * t * t for t in seconds])
    for spread in (10, 300, 3000):
        y = [90000 * page + 100 * page * t + page * round(rng.gauss(0, spread)) for t in seconds]
        yield case(f"leak with noise of {spread} pages", seconds, y)
    yield case("jitter of few values", seconds, [page * rng.randrange(4) for _ in seconds])
    yield case("staircase", seconds, [page * (16 << (t // 6)) for t in seconds])
    x = sorted(rng.randrange(20) for _ in range(40))
    yield case("duplicates in time and value", x, [rng.randrange(8) + t // 5 for t in x])
    yield case("mostly ties", x, [int(rng.random() < 0.1) for _ in x])
    x = sorted(rng.sample(range(100000), 60))
    walk = [0]
    for _ in x[1:]:
        walk.append(walk[-1] + page * rng.randrange(-5, 6))
    yield case("random walk, uneven times", x, walk)
    x = list(range(0, 800, 2))
    yield case("400 points of a saw-tooth", x, [page * (t % 97) + t for t in x])


erfc = [{"x": i / 8, "erfc": special.erfc(i / 8)} for i in range(0, 210, 3)]
golden = {"scipy": scipy.__version__, "erfc": erfc, "cases": list(cases())}
text = json.dumps(golden)
print(text.replace('{"name"', '\n{"name"').replace('"cases"', '\n"cases"'))
