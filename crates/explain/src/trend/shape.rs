//! What a series does: flat, climb, fall, saw-tooth, step, or not decided.
//!
//! The order of the questions is the design. Small changes are noise before anything else is asked; a
//! saw-tooth is looked for before a slope, because a part of one has a slope; a level end before a climb,
//! because a warm-up has one too. What is left must rise in every eighth of the time, at one pace, without
//! slowing down, and by the rank statistics, to be a climb.
//!
//! Measured on 1,000 random walks each of 31, 120 and 600 samples, which have no trend though they often end
//! far from where they began (tests.rs, `a_random_walk_is_hardly_ever_a_climb`): 2, 1 and 2 are judged
//! climbs, none a saw-tooth with climbing valleys. Mann-Kendall alone, which takes samples for independent,
//! finds a trend (p < 0.05) in 724, 872 and 948 of them.

use super::stats::{self, Point, kendall, median, runs, theil_sen};
use super::teeth::Teeth;
use super::{Quantity, Rate, Series, Slope, Undecided, Valleys, Verdict};
use ebbtide_observe::Bytes;
use std::time::Duration;

/// The fewest samples judged: two for each of the 8 parts a climb is followed through.
pub const MIN_SAMPLES: usize = 2 * BLOCKS;

/// The shortest time judged. jemalloc's decay takes 10 s (opt.dirty_decay_ms) and khugepaged rests 10 s
/// between scans (scan_sleep_millisecs): a shorter look cannot see either give back or stop.
pub const MIN_SPAN: Duration = Duration::from_secs(10);

/// A climb must go on from each of this many equal parts of the series to the next. More parts would reject
/// more walks but ask for more samples; with 8, a walk passes in 1.5% of cases (20,000 simulated walks of
/// 31 samples).
const BLOCKS: usize = 8;

/// The largest scatter of the parts' gains about their own straight line, as a share of the mean gain. At
/// 0.5 a walk that passed the test above passes this one in one case of seven, and most lines under noise
/// pass if they rise by 20 standard deviations of the noise (tests.rs, `how_faint_a_leak_is_seen`).
const MOST_SCATTER: f64 = 0.5;

/// The later gains must be at least this share of the earlier ones. 1 - exp(-t/T) watched for T or longer
/// stays below: exp(-1/2) = 0.61. Watched for less, it can hardly be told from a line.
const LEAST_LATER: f64 = 0.65;

/// Two-sided Mann-Kendall p above which nothing is called a trend. Strict, because samples are not
/// independent.
pub(super) const MOST_P: f64 = 0.001;

/// A plateau may stray from its level by this share of the change that led to it.
const PLATEAU: f64 = 0.1;

/// Noise is flat if the parts' medians stay within this share of the whole range. Of 31 samples,
/// independent noise gives 0.39 on average, a random walk 0.75 (2,000 simulated each).
const MOST_DRIFT: f64 = 0.6;

/// What `series` does, taking changes below `meaningful` for noise ([`super::MEANINGFUL`] suits a process).
///
/// Sample at intervals that vary by half: what comes and goes as regularly as the samples do looks like a
/// slow line, and no look at the samples can tell. A climb seen for less than one period of a saw-tooth is a
/// climb too; whether a collector is about to take it back only the runtime knows.
///
/// Time is O(n log n), memory O(n) and at most 1 MiB more.
pub fn judge(series: &Series, meaningful: Bytes) -> Verdict {
    let samples = series.samples().len();
    if samples < MIN_SAMPLES {
        return Verdict::Undecided(Undecided::TooFew { samples });
    }
    let span = series.span();
    if span < MIN_SPAN {
        return Verdict::Undecided(Undecided::TooShort { span });
    }
    let points = series.points();
    let smooth = without_spikes(&points);
    let within = range(&smooth);
    let least = meaningful.0 as f64;
    if within < least || within == 0.0 {
        return Verdict::Flat { within: bytes(within) };
    }
    let noise = noise(&points);
    if let Some(teeth) = Teeth::of(&points, &smooth, least.max(6.0 * noise)) {
        return saw_tooth(&teeth, least);
    }
    if let Some(step) = step(series, &smooth, least, noise) {
        return step;
    }
    match pace(&points) {
        Pace::Steady => trend(&points, least).unwrap_or(Verdict::Undecided(Undecided::Unsteady)),
        Pace::Slowing => Verdict::Undecided(Undecided::Levelling),
        Pace::None if is_noise(&points, least) => Verdict::Flat { within: bytes(within) },
        Pace::None => Verdict::Undecided(Undecided::Unsteady),
    }
}

fn saw_tooth(teeth: &Teeth, least: f64) -> Verdict {
    let amplitude = teeth.amplitude();
    let valleys = teeth.valleys();
    let within = range(&valleys);
    let valleys = match slope(&valleys) {
        _ if valleys.len() < 2 => Valleys::Unclear,
        Some(slope) if is_steady_climb(&valleys, &slope, least) => Valleys::Climb(slope),
        _ if within < least.max(0.25 * amplitude) => Valleys::Level,
        _ => Valleys::Unclear,
    };
    Verdict::SawTooth {
        drops: teeth.drops(),
        period: teeth.period().map(Duration::from_nanos),
        amplitude: bytes(amplitude),
        valleys,
    }
}

/// The p asks for six valleys at least: of five in monotone order it is 0.027, of six 0.0085.
fn is_steady_climb(valleys: &[Point], slope: &Slope, least: f64) -> bool {
    slope.p < 0.01
        && slope.low.0 > 0.0
        && slope.rate.0 * seconds(valleys) >= least
        && matches!(pace(valleys), Pace::Steady)
}

/// One change between two levels, or one that has been over for at least half of the time.
fn step(series: &Series, smooth: &[Point], least: f64, noise: f64) -> Option<Verdict> {
    let n = smooth.len();
    let level = |part: &[Point]| median(&mut part.iter().map(|p| p.1 as f64).collect::<Vec<_>>());
    // The start is brief, because a ramp may begin with the first sample.
    let (from, to) = (level(&smooth[..3]), level(&smooth[n - n / 8..]));
    let change = (to - from).abs();
    if change < least {
        return None;
    }
    let stray = (PLATEAU * change).max((4.0 * noise).min(0.25 * change));
    let before = smooth.iter().take_while(|p| (p.1 as f64 - from).abs() <= stray).count();
    let after = smooth.iter().rev().take_while(|p| (p.1 as f64 - to).abs() <= stray).count();
    let sudden = before + after >= n - n / 10 && after >= n / 8 && before >= n / 8;
    if !sudden && after < n / 2 {
        return None;
    }
    // Within the stray, the end may still go one way at an even pace: a leak after a warm-up is not level.
    let end = &smooth[n - after..];
    if matches!(pace(end), Pace::Steady) && range(end) >= least {
        return None;
    }
    let at = |i: usize| series.samples()[i].0;
    Some(Verdict::Step {
        began: at(before.saturating_sub(1)),
        ended: at(n - after),
        from: bytes(from),
        to: bytes(to),
    })
}

enum Pace {
    /// All parts rise, or all fall, by about as much each time.
    Steady,
    /// All parts rise, the later ones by much less.
    Slowing,
    /// Neither.
    None,
}

/// Whether the medians of [`BLOCKS`] equal parts (of all points, where there are fewer) go on in one
/// direction, and how.
fn pace(points: &[Point]) -> Pace {
    let gains = gains(points);
    let n = gains.len();
    if n < 4 {
        return Pace::None;
    }
    let mean = gains.iter().sum::<f64>() / n as f64;
    if !gains.iter().all(|gain| gain * mean > 0.0) {
        return Pace::None;
    }
    let sum = |part: &[f64]| part.iter().sum::<f64>();
    let (early, late) = (sum(&gains[..n / 2]), sum(&gains[n - n / 2..]));
    // A fall that slows down ends no worse than it seems, so only a climb must keep its pace.
    if mean > 0.0 && late < LEAST_LATER * early {
        return Pace::Slowing;
    }
    if scatter(&gains) <= MOST_SCATTER * mean.abs() { Pace::Steady } else { Pace::None }
}

/// How much each part's median lies above the one before.
fn gains(points: &[Point]) -> Vec<f64> {
    let medians: Vec<f64> = runs(points, points.len().min(BLOCKS))
        .map(|run| median(&mut run.iter().map(|p| p.1 as f64).collect::<Vec<_>>()))
        .collect();
    medians.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Standard deviation of `gains` about the straight line through them, so that a climb that gathers pace
/// counts as steady.
fn scatter(gains: &[f64]) -> f64 {
    let n = gains.len() as f64;
    let (middle, mean) = ((n - 1.0) / 2.0, gains.iter().sum::<f64>() / n);
    let centred = || gains.iter().enumerate().map(|(i, gain)| (i as f64 - middle, gain - mean));
    let tilt = centred().map(|(i, g)| i * g).sum::<f64>() / centred().map(|(i, _)| i * i).sum::<f64>();
    let squares: f64 = centred().map(|(i, g)| (g - tilt * i).powi(2)).sum();
    (squares / (n - 2.0)).sqrt()
}

/// A climb or fall, if the rank statistics agree with the pace.
fn trend(points: &[Point], least: f64) -> Option<Verdict> {
    let slope = slope(points)?;
    if slope.p > MOST_P || slope.rate.0.abs() * seconds(points) < least {
        return None;
    }
    if slope.low.0 > 0.0 {
        Some(Verdict::Climb(slope))
    } else if slope.high.0 < 0.0 {
        Some(Verdict::Fall(slope))
    } else {
        None
    }
}

fn slope(points: &[Point]) -> Option<Slope> {
    let fit = theil_sen(points)?;
    let (low, high) = fit.interval?;
    let per_second = |per_nanosecond: f64| Rate(per_nanosecond * 1e9);
    Some(Slope {
        rate: per_second(fit.slope),
        low: per_second(low),
        high: per_second(high),
        p: kendall(points)?.p(),
    })
}

/// Whether the parts differ by much less than the samples do.
fn is_noise(points: &[Point], least: f64) -> bool {
    let gains = gains(points);
    let mut level = 0.0;
    let (mut low, mut high) = (0.0f64, 0.0f64);
    for gain in gains {
        level += gain;
        (low, high) = (low.min(level), high.max(level));
    }
    high - low < least.max(MOST_DRIFT * range(points))
}

/// Each value replaced by the median of itself and its neighbours: a spike of one sample goes, a step stays.
fn without_spikes(points: &[Point]) -> Vec<Point> {
    let mut smooth = points.to_vec();
    for (i, three) in points.windows(3).enumerate() {
        let [a, b, c] = [three[0].1, three[1].1, three[2].1];
        smooth[i + 1].1 = a.max(b).min(a.min(b).max(c));
    }
    smooth
}

/// Standard deviation of what is independent from one sample to the next, from second differences: they are
/// zero along any straight piece, so neither a slope nor the corners of a saw-tooth count as noise.
fn noise(points: &[Point]) -> f64 {
    let value = |p: &Point| p.1 as f64;
    let mut seconds: Vec<f64> =
        points.windows(3).map(|w| (value(&w[0]) - 2.0 * value(&w[1]) + value(&w[2])).abs()).collect();
    // 1.4826 makes a median deviation a standard one; a second difference has 1 + 4 + 1 times the variance.
    1.4826 * stats::median(&mut seconds) / 6.0f64.sqrt()
}

fn range(points: &[Point]) -> f64 {
    let values = || points.iter().map(|p| p.1);
    values().max().zip(values().min()).map_or(0.0, |(max, min)| max as f64 - min as f64)
}

fn seconds(points: &[Point]) -> f64 {
    points.last().zip(points.first()).map_or(0.0, |(last, first)| (last.0 - first.0) as f64 / 1e9)
}

fn bytes(value: f64) -> Bytes {
    Bytes(value as u64)
}

impl<Q: Quantity> Series<Q> {
    /// Whether the counter only ever goes on upwards: no part below the one before, and most above it.
    /// Weaker than a climb, because counts of few things rise in steps.
    pub(super) fn rises(&self) -> bool {
        let gains = gains(&self.points());
        let up = gains.iter().filter(|gain| **gain > 0.0).count();
        gains.iter().all(|gain| *gain >= 0.0) && 2 * up > gains.len()
    }
}
