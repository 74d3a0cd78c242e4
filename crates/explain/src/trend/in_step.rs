//! Whether two counters rise together: descriptors, threads or requests with resident memory.
//!
//! Two series that each rise for their own reasons are in step too; what this adds to two climbs is the
//! amount of the one per unit of the other, and that neither rises alone. It is evidence for a leak, never
//! the proof of one.

use super::shape::{MIN_SAMPLES, MOST_P};
use super::stats::{Point, kendall, theil_sen};
use super::{Quantity, Series};

/// The least Kendall's tau-b of counters in step. Coarse counts tie often: one that rises 8 times in 64
/// samples of a line reaches 0.94. Noise with a quarter of the whole rise as its deviation leaves 0.58.
const LEAST_TAU: f64 = 0.6;

/// How two counters rise together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InStep {
    /// Kendall's tau-b, up to 1.0 where every sample that is higher in one is higher in the other.
    pub tau_b: f64,
    /// Its two-sided p, with the same reservation as [`super::Slope::p`].
    pub p: f64,
    /// The Theil-Sen slope of the first on the second: bytes per descriptor, say.
    pub per: f64,
    /// How many samples both have at the same time.
    pub samples: usize,
}

/// Whether `first` and `second` rise together: both only go upwards, and in the same order. Samples are
/// matched by their time, so take both at once. `None` where they are not in step or there are fewer than
/// [`MIN_SAMPLES`] common samples.
pub fn in_step<A: Quantity, B: Quantity>(first: &Series<A>, second: &Series<B>) -> Option<InStep> {
    let (first, second) = common(first, second);
    let samples = first.samples().len();
    if samples < MIN_SAMPLES || !first.rises() || !second.rises() {
        return None;
    }
    let pairs: Vec<Point> =
        second.points().iter().zip(first.points()).map(|(second, first)| (second.1, first.1)).collect();
    let rank = kendall(&pairs)?;
    let in_step = InStep { tau_b: rank.tau_b, p: rank.p(), per: theil_sen(&pairs)?.slope, samples };
    (in_step.tau_b >= LEAST_TAU && in_step.p <= MOST_P).then_some(in_step)
}

/// Both series cut to the times they share.
fn common<A: Quantity, B: Quantity>(first: &Series<A>, second: &Series<B>) -> (Series<A>, Series<B>) {
    let (mut a, mut b) = (first.samples(), second.samples());
    let mut both = (Vec::new(), Vec::new());
    while let (Some(x), Some(y)) = (a.first(), b.first()) {
        if x.0 == y.0 {
            both.0.push(*x);
            both.1.push(*y);
        }
        if x.0 <= y.0 {
            a = &a[1..];
        }
        if y.0 <= x.0 {
            b = &b[1..];
        }
    }
    (Series { samples: both.0 }, Series { samples: both.1 })
}
