//! Saw-teeth: places where a series gives back a good part of what it gained.
//!
//! A tooth is a gain followed by a drop of at least [`PART`] of it. Both must exceed a threshold above the
//! noise, so noise has no teeth. Small teeth on a great climb or step are no saw-tooth: the drops together
//! must be [`PART`] of the gains together.

use super::stats::{Point, median};

/// The least part of a gain whose loss makes a tooth. A collector or the kernel's reclaim usually takes most
/// of it; noise and single frees take a little. At 0.3 a climb with teeth keeps at most 70% of what it gains,
/// and the valleys tell whether it keeps that.
const PART: f64 = 0.3;

/// At least one tooth.
pub(super) struct Teeth {
    teeth: Vec<Tooth>,
}

struct Tooth {
    peak: Point,
    valley: Point,
}

impl Teeth {
    /// The teeth of `points`, which are in order of time, with gains and drops of at least `least`; `None`
    /// where the series is no saw-tooth. They are found on `smooth`, the same points without spikes, so that
    /// a spike is no tooth, and measured on `points`, because smoothing blunts them.
    pub(super) fn of(points: &[Point], smooth: &[Point], least: f64) -> Option<Teeth> {
        let value = |i: usize| smooth[i].1 as f64;
        let mut teeth = Vec::new();
        let mut gained = 0.0;
        let (mut valley, mut peak) = (0, 0);
        let mut low: Option<usize> = None;
        for i in 0..smooth.len() {
            match low {
                None if value(i) > value(peak) => peak = i,
                None => {
                    let (gain, drop) = (value(peak) - value(valley), value(peak) - value(i));
                    if gain >= least && drop >= least.max(PART * gain) {
                        gained += gain;
                        low = Some(i);
                    } else if value(i) < value(valley) {
                        // Nothing gained so far: a fall, or the noise before a gain.
                        (valley, peak) = (i, i);
                    }
                }
                Some(lowest) if value(i) < value(lowest) => low = Some(i),
                Some(lowest) if value(i) - value(lowest) >= least => {
                    teeth.push((peak, lowest));
                    (valley, peak, low) = (lowest, i, None);
                }
                Some(_) => {}
            }
        }
        match low {
            Some(lowest) => teeth.push((peak, lowest)),
            None if smooth.is_empty() => {}
            None => gained += value(peak) - value(valley),
        }
        let dropped: f64 = teeth.iter().map(|&(peak, low)| value(peak) - value(low)).sum();
        let measured = |&(peak, low): &(usize, usize)| Tooth {
            peak: around(points, peak).iter().copied().max_by_key(|p| p.1).unwrap_or_default(),
            valley: around(points, low).iter().copied().min_by_key(|p| p.1).unwrap_or_default(),
        };
        (!teeth.is_empty() && dropped >= PART * gained)
            .then(|| Teeth { teeth: teeth.iter().map(measured).collect() })
    }

    pub(super) fn drops(&self) -> usize {
        self.teeth.len()
    }

    /// The median drop.
    pub(super) fn amplitude(&self) -> f64 {
        median(&mut self.teeth.iter().map(Tooth::drop).collect::<Vec<_>>())
    }

    /// The median time between peaks.
    pub(super) fn period(&self) -> Option<u64> {
        let mut apart: Vec<f64> =
            self.teeth.windows(2).map(|pair| (pair[1].peak.0 - pair[0].peak.0) as f64).collect();
        (!apart.is_empty()).then(|| median(&mut apart) as u64)
    }

    /// The lowest point after each drop. The start of the series is none: it may lie anywhere on a tooth.
    pub(super) fn valleys(&self) -> Vec<Point> {
        self.teeth.iter().map(|tooth| tooth.valley).collect()
    }
}

impl Tooth {
    fn drop(&self) -> f64 {
        self.peak.1 as f64 - self.valley.1 as f64
    }
}

/// The point at `i` and its neighbours: as far as a median of three moves a peak.
fn around(points: &[Point], i: usize) -> &[Point] {
    &points[i.saturating_sub(1)..points.len().min(i + 2)]
}
