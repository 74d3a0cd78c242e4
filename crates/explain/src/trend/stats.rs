//! Rank statistics: Theil-Sen slope, Mann-Kendall test, Kendall's tau-b.
//!
//! Ranks, because memory counters have steps, spikes and ties, and least squares believes every one of them.
//! Inputs are integers, so there is no NaN to order; differences are taken exactly before anything becomes a
//! float. Invariants: nothing panics or overflows whatever the points and their order; time is O(n log n) and
//! memory O(n) beyond [`MOST_PAIRED`] points. Checked against SciPy by tests/golden/trend.py.

use std::cmp::Ordering;

/// A sample: when, and how much. Any unit; results are in `y` units per `x` unit.
pub type Point = (i64, i64);

/// Theil-Sen forms every pair of points: from more than this many, each run of neighbours is first replaced
/// by its medians. 512 points make 130,816 slopes, 1 MiB and 5 ms; 10,000 would make 400 MB.
///
/// Medians of runs, not every n-th point: picking points from a saw-tooth near its period yields a slow
/// rise that is not there.
pub const MOST_PAIRED: usize = 512;

/// The 97.5% quantile of the normal distribution: two-sided 95%.
const Z95: f64 = 1.959_963_984_540_054;

/// A Theil-Sen slope with its 95% confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TheilSen {
    /// The median of the slopes of all pairs of points that differ in `x`.
    pub slope: f64,
    /// The interval's lower and upper end by Sen (1968), equation 2.6; `None` where ties in both
    /// coordinates leave the estimate no variance to judge by.
    pub interval: Option<(f64, f64)>,
}

/// The slope of `points` as `scipy.stats.theilslopes(y, x, 0.95)` has it; `None` unless two differ in `x`.
pub fn theil_sen(points: &[Point]) -> Option<TheilSen> {
    let points = thinned(points);
    let n = points.len();
    let mut slopes = Vec::with_capacity(n * n.saturating_sub(1) / 2);
    for (i, a) in points.iter().enumerate() {
        slopes.extend(points[..i].iter().filter(|b| a.0 != b.0).map(|b| (a.1 - b.1) / (a.0 - b.0)));
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let last = slopes.len().checked_sub(1)?;
    let slope = (slopes[last / 2] + slopes[last.div_ceil(2)]) / 2.0;

    let (mut xs, mut ys): (Vec<f64>, Vec<f64>) = points.into_iter().unzip();
    xs.sort_unstable_by(f64::total_cmp);
    ys.sort_unstable_by(f64::total_cmp);
    let variance = (full(n as f64) - Ties::of(&xs).full - Ties::of(&ys).full) / 18.0;
    let interval = (variance >= 0.0).then(|| {
        let (pairs, spread) = (slopes.len() as f64, Z95 * variance.sqrt());
        // SciPy rounds halves to even here, and so the indices agree with it. Casts saturate at 0.
        let low = ((pairs - spread) / 2.0).round_ties_even() - 1.0;
        let high = ((pairs + spread) / 2.0).round_ties_even();
        (slopes[low as usize], slopes[(high as usize).min(last)])
    });
    Some(TheilSen { slope, interval })
}

/// `points` relative to the first in time, in order of time, at most [`MOST_PAIRED`].
fn thinned(points: &[Point]) -> Vec<(f64, f64)> {
    let mut points = points.to_vec();
    points.sort_unstable();
    let Some(&first) = points.first() else { return Vec::new() };
    let relative = |p: &Point| (difference(p.0, first.0), difference(p.1, first.1));
    if points.len() <= MOST_PAIRED {
        return points.iter().map(relative).collect();
    }
    runs(&points, MOST_PAIRED)
        .map(|run| {
            let (mut xs, mut ys): (Vec<f64>, Vec<f64>) = run.iter().map(relative).unzip();
            (median(&mut xs), median(&mut ys))
        })
        .collect()
}

fn difference(a: i64, b: i64) -> f64 {
    (i128::from(a) - i128::from(b)) as f64
}

/// `items` cut into `count` runs of neighbours whose lengths differ by at most one.
pub(super) fn runs<T>(items: &[T], count: usize) -> impl Iterator<Item = &[T]> {
    (0..count).map(move |i| &items[i * items.len() / count..(i + 1) * items.len() / count])
}

/// The median; the mean of the middle two of an even number; 0 of none.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    (values[last / 2] + values[last.div_ceil(2)]) / 2.0
}

/// How the order of `y` follows the order of `x`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kendall {
    /// Pairs in the same order minus pairs in opposite order; ties count for neither.
    pub s: i64,
    /// Variance of `s` if there were no relation, corrected for ties in both coordinates.
    pub variance: f64,
    /// Tau-b, -1 to 1; 0 where one coordinate is constant.
    pub tau_b: f64,
}

impl Kendall {
    /// `s` in standard deviations, with the continuity correction; 0 where everything is tied.
    pub fn z(&self) -> f64 {
        let towards_zero = self.s - self.s.signum();
        if self.variance > 0.0 { towards_zero as f64 / self.variance.sqrt() } else { 0.0 }
    }

    /// Two-sided p of `z` by the normal distribution. It takes the samples for independent, which samples of
    /// memory hardly are: small is necessary for a trend, not sufficient.
    pub fn p(&self) -> f64 {
        erfc(self.z().abs() / std::f64::consts::SQRT_2)
    }
}

/// Kendall's statistic of `points`, in O(n log n) by Knight's method; with times as `x` this is the
/// Mann-Kendall test. `None` for fewer than 4 points, of which no order is improbable (3 that rise: p = 1/3).
pub fn kendall(points: &[Point]) -> Option<Kendall> {
    if points.len() < 4 {
        return None;
    }
    let mut points = points.to_vec();
    points.sort_unstable();
    let joint = Ties::of(&points);
    let xs = Ties::of(&points.iter().map(|p| p.0).collect::<Vec<_>>());
    let mut ys: Vec<i64> = points.iter().map(|p| p.1).collect();
    let against = inversions(&mut ys);
    let ys = Ties::of(&ys);

    let n = points.len() as f64;
    let pairs = n * (n - 1.0);
    let variance = (full(n) - xs.full - ys.full) / 18.0
        + xs.two * ys.two / (2.0 * pairs)
        + xs.three * ys.three / (9.0 * pairs * (n - 2.0));
    // Counts of pairs stay integers: below 2^63 for any slice that fits in memory.
    let all = (points.len() as u64) * (points.len() as u64 - 1) / 2;
    let s = all as i64 - xs.pairs() - ys.pairs() + joint.pairs() - 2 * against as i64;
    let untied = (all as i64 - xs.pairs()) as f64 * (all as i64 - ys.pairs()) as f64;
    let tau_b = if untied > 0.0 { s as f64 / untied.sqrt() } else { 0.0 };
    Some(Kendall { s, variance: if untied > 0.0 { variance } else { 0.0 }, tau_b })
}

fn full(k: f64) -> f64 {
    k * (k - 1.0) * (2.0 * k + 5.0)
}

/// Sums over the groups of equal values, k the size of a group.
struct Ties {
    /// k(k-1)
    two: f64,
    /// k(k-1)(k-2)
    three: f64,
    /// k(k-1)(2k+5)
    full: f64,
}

impl Ties {
    fn of<T: PartialEq>(sorted: &[T]) -> Ties {
        let mut ties = Ties { two: 0.0, three: 0.0, full: 0.0 };
        for group in sorted.chunk_by(T::eq) {
            let k = group.len() as f64;
            ties.two += k * (k - 1.0);
            ties.three += k * (k - 1.0) * (k - 2.0);
            ties.full += full(k);
        }
        ties
    }

    /// Tied pairs: exact, since a float holds integers up to 2^53.
    fn pairs(&self) -> i64 {
        (self.two / 2.0) as i64
    }
}

/// Sorts `values` and counts the pairs that stood in the wrong order: a bottom-up merge sort.
fn inversions(values: &mut [i64]) -> u64 {
    let mut count = 0;
    let mut merged = Vec::with_capacity(values.len());
    let mut width = 1;
    while width < values.len() {
        for block in values.chunks_mut(2 * width) {
            let (mut left, mut right) = block.split_at(width.min(block.len()));
            merged.clear();
            while let (Some(a), Some(b)) = (left.first(), right.first()) {
                if a.cmp(b) == Ordering::Greater {
                    count += left.len() as u64;
                    merged.push(*b);
                    right = &right[1..];
                } else {
                    merged.push(*a);
                    left = &left[1..];
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
            block.copy_from_slice(&merged);
        }
        width *= 2;
    }
    count
}

/// The complementary error function for `x` of 0 and above, to 1e-12 relative: the series of erf
/// where it converges fast, Lentz's continued fraction above (Abramowitz and Stegun 7.1.6 and 7.1.14).
fn erfc(x: f64) -> f64 {
    let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let (mut term, mut sum) = (2.0 * x, 2.0 * x);
        let mut k = 1.0;
        while term > sum * f64::EPSILON {
            term *= 2.0 * x * x / (2.0 * k + 1.0);
            sum += term;
            k += 1.0;
        }
        return 1.0 - scale * sum;
    }
    let (mut fraction, mut c, mut d) = (x, x, 0.0);
    for k in 1..200 {
        let a = f64::from(k) / 2.0;
        d = 1.0 / (x + a * d);
        c = x + a / c;
        fraction *= c * d;
        if (c * d - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    scale / fraction
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn golden() -> Value {
        serde_json::from_str(include_str!("../../tests/golden/trend.json")).unwrap()
    }

    #[track_caller]
    fn close(name: &str, ours: f64, scipys: f64) {
        let apart = (ours - scipys).abs();
        assert!(apart <= scipys.abs() * 1e-12 + 1e-300, "{name}: {ours} is not SciPy's {scipys}");
    }

    #[test]
    fn slopes_are_scipys() {
        for case in golden()["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let ours = theil_sen(&points_of(case));
            assert_eq!(ours.is_none(), case["slope"].is_null(), "{name}");
            let Some(ours) = ours else { continue };
            close(name, ours.slope, case["slope"].as_f64().unwrap());
            let (low, high) = ours.interval.unwrap();
            close(name, low, case["low"].as_f64().unwrap());
            close(name, high, case["high"].as_f64().unwrap());
        }
    }

    #[test]
    fn mann_kendall_is_scipys() {
        for case in golden()["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let (ours, golden) = (kendall(&points_of(case)), &case["mann_kendall"]);
            assert_eq!(ours.is_none(), golden.is_null(), "{name}");
            let Some(ours) = ours else { continue };
            assert_eq!(ours.s, golden["s"].as_i64().unwrap(), "{name}");
            close(name, ours.variance, golden["var"].as_f64().unwrap());
            close(name, ours.z(), golden["z"].as_f64().unwrap());
            close(name, ours.p(), golden["p"].as_f64().unwrap());
            close(name, ours.tau_b, golden["tau_b"].as_f64().unwrap());
        }
    }

    fn points_of(case: &Value) -> Vec<Point> {
        let column = |name: &str| -> Vec<i64> {
            case[name].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
        };
        column("x").into_iter().zip(column("y")).collect()
    }

    #[test]
    fn tails_are_scipys() {
        for point in golden()["erfc"].as_array().unwrap() {
            let x = point["x"].as_f64().unwrap();
            close("erfc", erfc(x), point["erfc"].as_f64().unwrap());
        }
    }

    #[test]
    fn degenerate_series_have_no_statistic_or_a_neutral_one() {
        assert_eq!(theil_sen(&[]), None);
        assert_eq!(theil_sen(&[(1, 1)]), None);
        assert_eq!(theil_sen(&[(1, 1), (1, 9)]), None);
        assert_eq!(kendall(&[(0, 1), (1, 2), (2, 3)]), None);
        let constant = kendall(&[(0, 5), (1, 5), (2, 5), (3, 5)]).unwrap();
        assert_eq!((constant.s, constant.z(), constant.p(), constant.tau_b), (0, 0.0, 1.0, 0.0));
    }

    #[test]
    fn ten_thousand_points_keep_their_slope() {
        let line: Vec<Point> = (0..10_000).map(|t| (t, 1000 + 7 * t + (t * 7919) % 101)).collect();
        let fit = theil_sen(&line).unwrap();
        assert!((fit.slope - 7.0).abs() < 0.01, "{fit:?}");
        assert!(thinned(&line).len() <= MOST_PAIRED);
        assert!(kendall(&line).unwrap().tau_b > 0.99);
    }

    /// A saw-tooth of period 19 in runs of 19 or 20 points: every 19th or 20th point would beat slowly.
    #[test]
    fn thinning_makes_no_slope_of_a_saw_tooth() {
        let teeth: Vec<Point> = (0..10_000).map(|t| (t, 1000 * (t % 19))).collect();
        let fit = theil_sen(&teeth).unwrap();
        assert!((fit.slope * 10_000.0).abs() < 1000.0, "{fit:?}");
    }

    fn any_points() -> impl Strategy<Value = Vec<Point>> {
        prop_oneof![
            prop::collection::vec((any::<i64>(), any::<i64>()), 0..200),
            prop::collection::vec((0..50i64, 0..50i64), 0..560),
        ]
    }

    fn tame_points() -> impl Strategy<Value = Vec<Point>> {
        prop::collection::vec((0..1_000_000i64, -1_000_000..1_000_000i64), 4..80)
    }

    proptest! {
        #[test]
        fn nothing_panics(points in any_points()) {
            if let Some(fit) = theil_sen(&points) {
                prop_assert!(fit.slope.is_finite());
                if let Some((low, high)) = fit.interval {
                    prop_assert!(low <= fit.slope && fit.slope <= high, "{fit:?}");
                }
            }
            if let Some(rank) = kendall(&points) {
                prop_assert!((0.0..=1.0).contains(&rank.p()), "{rank:?}");
                prop_assert!(rank.tau_b.abs() <= 1.0 + 1e-12, "{rank:?}");
            }
        }

        #[test]
        fn order_of_arrival_does_not_matter(points in tame_points()) {
            let mut reversed = points.clone();
            reversed.reverse();
            prop_assert_eq!(theil_sen(&points), theil_sen(&reversed));
            prop_assert_eq!(kendall(&points), kendall(&reversed));
        }

        #[test]
        fn a_shift_changes_nothing(points in tame_points(), by in -1_000_000..1_000_000i64) {
            let shifted: Vec<Point> = points.iter().map(|p| (p.0 + by, p.1 - by)).collect();
            prop_assert_eq!(theil_sen(&points), theil_sen(&shifted));
            prop_assert_eq!(kendall(&points), kendall(&shifted));
        }

        #[test]
        fn a_power_of_two_scales_the_slope_exactly(points in tame_points()) {
            let scaled: Vec<Point> = points.iter().map(|p| (p.0, p.1 * 4096)).collect();
            prop_assert_eq!(kendall(&points), kendall(&scaled));
            let (a, b) = (theil_sen(&points), theil_sen(&scaled));
            prop_assert_eq!(a.map(|a| a.slope * 4096.0), b.map(|b| b.slope));
        }

        #[test]
        fn running_time_backwards_turns_the_sign(points in tame_points()) {
            let back: Vec<Point> = points.iter().map(|p| (-p.0, p.1)).collect();
            let (a, b) = (kendall(&points).unwrap(), kendall(&back).unwrap());
            prop_assert_eq!((a.s, a.z(), a.p()), (-b.s, -b.z(), b.p()));
            prop_assert_eq!(theil_sen(&points).map(|a| a.slope), theil_sen(&back).map(|b| -b.slope));
        }

        #[test]
        fn inversions_are_counted(values in prop::collection::vec(0..20i64, 0..100)) {
            let mut slow = 0;
            for (i, value) in values.iter().enumerate() {
                slow += values[i + 1..].iter().filter(|later| *later < value).count() as u64;
            }
            let mut sorted = values.clone();
            prop_assert_eq!(inversions(&mut sorted), slow);
            prop_assert!(sorted.is_sorted());
        }
    }
}
