//! Verdicts on made-up series: what leaks, and above all what only looks like a leak.

use super::*;
use proptest::prelude::*;

const MIB: f64 = (1 << 20) as f64;

/// SplitMix64: the walks must be the same on every machine and with every version of any crate.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0.0 up to 1.0.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and deviation 1, to within 6: twelve uniform numbers.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

/// One sample a second for `seconds`, in whole pages, of a curve in MiB above a base of 300 MiB.
fn sampled(seconds: u64, mut mib: impl FnMut(f64) -> f64) -> Series {
    Series::new((0..=seconds).map(|t| {
        let bytes = ((300.0 + mib(t as f64)) * MIB) as u64;
        (Duration::from_secs(t), Bytes(bytes / 4096 * 4096))
    }))
}

fn judged(seconds: u64, mib: impl FnMut(f64) -> f64) -> Verdict {
    judge(&sampled(seconds, mib), MEANINGFUL)
}

#[track_caller]
fn assert_climbs(verdict: &Verdict, mib_per_second: f64) {
    let Verdict::Climb(slope) = verdict else { panic!("{verdict}") };
    let (low, high) = (slope.low.0 / MIB, slope.high.0 / MIB);
    assert!(low <= mib_per_second + 1e-3 && mib_per_second - 1e-3 <= high, "{verdict}");
    assert!(slope.p < 0.001);
}

#[track_caller]
fn assert_flat(verdict: &Verdict) {
    assert!(matches!(verdict, Verdict::Flat { .. }), "{verdict}");
}

#[track_caller]
fn assert_undecided(verdict: &Verdict, why: Undecided) {
    assert_eq!(*verdict, Verdict::Undecided(why), "{verdict}");
}

#[test]
fn a_linear_leak_climbs() {
    assert_climbs(&judged(30, |t| 0.5 * t), 0.5);
    assert_climbs(&judged(30, |t| 55.0 * t), 55.0);
    assert_climbs(&judged(3600, |t| 0.001 * t), 0.001);
    assert_eq!(
        judged(30, |t| 2.0 * t).to_string(),
        "climbs by 2.00 MiB/s (95%: 2.00 MiB/s to 2.00 MiB/s, p < 0.001)"
    );
}

#[test]
fn a_leak_under_noise_climbs() {
    let mut random = Random(1);
    assert_climbs(&judged(30, |t| 2.0 * t + 1.5 * random.normal()), 2.0);
    assert_climbs(&judged(600, |t| 0.1 * t + 2.0 * random.normal()), 0.1);
}

/// Of lines that rise by so many standard deviations of their noise, the share judged a climb.
#[test]
fn how_faint_a_leak_is_seen() {
    for (seconds, deviations, least) in
        [(30, 20.0, 0.85), (60, 20.0, 0.95), (60, 14.0, 0.75), (240, 8.0, 0.8)]
    {
        let mut random = Random(seconds);
        let pace = 4.0 * deviations / seconds as f64;
        let seen = (0..200)
            .filter(|_| matches!(judged(seconds, |t| pace * t + 4.0 * random.normal()), Verdict::Climb(_)))
            .count();
        println!("{deviations} deviations in {seconds} s: {seen} of 200");
        assert!(seen as f64 >= 200.0 * least, "{seen} of 200");
    }
}

#[test]
fn a_leak_climbs_past_single_spikes() {
    assert_climbs(&judged(60, |t| t + if t as u64 % 13 == 7 { 80.0 } else { 0.0 }), 1.0);
}

#[test]
fn a_leak_in_small_chunks_climbs() {
    assert_climbs(&judged(64, |t| 4.0 * (t / 4.0).floor()), 1.0);
}

#[test]
fn a_leak_that_gathers_pace_climbs() {
    assert!(matches!(judged(60, |t| 0.02 * t * t), Verdict::Climb(_)));
}

#[test]
fn a_leak_at_an_uneven_rate_climbs() {
    let mut random = Random(2);
    let mut leaked = 0.0;
    let verdict = judged(120, |_| {
        leaked += 2.0 * random.unit();
        leaked
    });
    assert!(matches!(verdict, Verdict::Climb(_)), "{verdict}");
}

#[test]
fn memory_given_back_steadily_falls() {
    let Verdict::Fall(slope) = judged(30, |t| 100.0 - 2.0 * t) else { panic!() };
    assert!((slope.rate.0 / MIB + 2.0).abs() < 0.01);
    assert!(matches!(judged(40, |t| 200.0 * (-t / 20.0).exp()), Verdict::Fall(_) | Verdict::Step { .. }));
}

#[test]
fn idle_jitter_is_flat() {
    let mut random = Random(3);
    assert_eq!(judged(30, |_| 0.0), Verdict::Flat { within: Bytes::ZERO });
    assert_flat(&judged(30, |_| random.unit() * 0.9));
    // Drift of per-CPU counters: slow, but bounded.
    assert_flat(&judged(600, |t| 0.9 * (t / 600.0)));
    // One sample caught a large buffer that was freed at once.
    assert_flat(&judged(30, |t| if t == 12.0 { 64.0 } else { 0.0 }));
}

#[test]
fn noise_far_above_a_megabyte_is_flat() {
    for seconds in [30, 60, 600] {
        let mut random = Random(seconds);
        let flat = (0..100).filter(|_| {
            let verdict = judged(seconds, |_| 20.0 * random.normal());
            assert!(!matches!(verdict, Verdict::Climb(_) | Verdict::Fall(_)), "{verdict}");
            matches!(verdict, Verdict::Flat { .. })
        });
        assert!(flat.count() >= 90);
    }
}

#[test]
fn what_is_meaningful_is_the_callers_choice() {
    let host = sampled(30, |t| 0.5 * t);
    assert_flat(&judge(&host, Bytes::from_mib(64)));
}

#[test]
fn a_warm_up_that_levels_off_is_no_climb() {
    for time_constant in [3.0, 6.0, 10.0, 20.0, 30.0, 45.0, 60.0] {
        let verdict = judged(60, |t| 200.0 * (1.0 - (-t / time_constant).exp()));
        assert!(
            matches!(verdict, Verdict::Step { .. } | Verdict::Undecided(Undecided::Levelling)),
            "{time_constant} s: {verdict}"
        );
    }
    assert_undecided(&judged(60, |t| 50.0 * (1.0 + t).ln()), Undecided::Levelling);
    assert_undecided(&judged(60, |t| 50.0 * t.sqrt()), Undecided::Levelling);
    let mut random = Random(4);
    let noisy = judged(60, |t| 200.0 * (1.0 - (-t / 15.0).exp()) + 2.0 * random.normal());
    assert!(!matches!(noisy, Verdict::Climb(_)), "{noisy}");
}

#[test]
fn a_ramp_that_ends_in_a_plateau_is_a_step() {
    for ramp in [6.0, 15.0, 28.0] {
        let Verdict::Step { began, ended, from, to } = judged(60, |t| 5.0 * t.min(ramp)) else {
            panic!("{ramp}")
        };
        assert!(began.as_secs_f64() <= 0.15 * ramp + 1.0);
        assert!((ended.as_secs_f64() - ramp).abs() <= 0.15 * ramp + 1.0);
        assert!(from < Bytes::from_mib(320) && to == Bytes::from_mib(300 + 5 * ramp as u64));
    }
    let verdict = judged(60, |t| 5.0 * t.min(45.0));
    assert!(!matches!(verdict, Verdict::Climb(_)), "{verdict}");
}

#[test]
fn one_jump_is_a_step() {
    let mut random = Random(5);
    for at in [10.0, 30.0, 50.0] {
        for by in [64.0, -64.0] {
            let verdict = judged(60, |t| random.normal() * 0.5 + if t >= at { by } else { 0.0 });
            let Verdict::Step { began, ended, .. } = verdict else { panic!("{at} {by}: {verdict}") };
            assert_eq!((began.as_secs_f64(), ended.as_secs_f64()), (at - 1.0, at));
        }
    }
}

#[test]
fn a_leak_after_a_warm_up_is_not_called_level() {
    let verdict = judged(120, |t| if t < 20.0 { 20.0 * t } else { 400.0 + 0.2 * (t - 20.0) });
    assert!(matches!(verdict, Verdict::Undecided(_)), "{verdict}");
}

#[test]
fn a_plateau_may_wobble() {
    let verdict = judged(120, |t| if t < 20.0 { 5.0 * t } else { 100.0 + 6.0 * (t / 7.0).sin() });
    assert!(matches!(verdict, Verdict::Step { .. }), "{verdict}");
}

#[test]
fn a_vector_that_doubles_is_no_climb() {
    for seconds in 20..=130 {
        // 4 MiB, doubled whenever it is full; one MiB is pushed each second.
        let verdict =
            judged(seconds, |t| (1 << 20 << 2) as f64 / MIB * (t / 4.0).max(1.0).log2().ceil().exp2());
        assert!(!matches!(verdict, Verdict::Climb(_)), "{seconds} s: {verdict}");
    }
}

/// A collector: what is allocated at 10 MiB/s comes back when it is `amplitude`; `kept` of it stays.
fn collected(periods: f64, kept: f64, noise: f64, seed: u64) -> Verdict {
    let (seconds, mut random) = (120, Random(seed));
    let period = seconds as f64 / periods;
    judged(seconds, |t| {
        let (full, part) = ((t / period).floor(), t % period);
        100.0 * (kept * full + part / period) + noise * random.normal()
    })
}

#[test]
fn a_saw_tooth_is_never_a_climb() {
    for periods in [1.2, 1.5, 1.9, 2.5, 3.0, 5.5, 10.0, 15.0] {
        for (noise, seed) in [(0.0, 0), (1.0, 6), (4.0, 7)] {
            let verdict = collected(periods, 0.0, noise, seed);
            let Verdict::SawTooth { drops, period, amplitude, ref valleys } = verdict else {
                panic!("{periods} periods, noise {noise}: {verdict}")
            };
            assert_eq!(drops, periods as usize, "{periods}: {verdict}");
            assert!(amplitude > Bytes::from_mib(85) && amplitude < Bytes::from_mib(115), "{verdict}");
            assert!(!matches!(valleys, Valleys::Climb(_)), "{verdict}");
            if let Some(period) = period {
                assert!((period.as_secs_f64() - 120.0 / periods).abs() <= 2.0 + noise, "{verdict}");
            }
        }
    }
}

/// With a sample every second to the nanosecond, a tooth a second is a slow line: so the intervals vary.
#[test]
fn teeth_faster_than_irregular_samples_are_no_climb() {
    let mut random = Random(13);
    for periods in 10..1000 {
        let mut at = 0.0;
        let series = Series::new((0..=120).map(|_| {
            at += 0.5 + random.unit();
            let tooth = at * (f64::from(periods) + 0.4) / 120.0 % 1.0;
            (Duration::from_secs_f64(at), Bytes((400.0 * tooth * MIB) as u64))
        }));
        let verdict = judge(&series, MEANINGFUL);
        assert!(!matches!(verdict, Verdict::Climb(_)), "{periods}: {verdict}");
    }
}

#[test]
fn a_tooth_that_keeps_half_is_never_a_climb() {
    for periods in [1.2, 1.5, 1.9, 2.5, 3.0] {
        let verdict = collected(periods, 0.5, 1.0, 8);
        assert!(!matches!(verdict, Verdict::Climb(_)), "{periods}: {verdict}");
    }
}

#[test]
fn climbing_valleys_are_told() {
    let verdict = collected(10.0, 0.3, 1.0, 9);
    let Verdict::SawTooth { valleys: Valleys::Climb(slope), .. } = verdict else { panic!("{verdict}") };
    assert!((slope.rate.0 / MIB - 2.5).abs() < 0.3, "{verdict}");

    let Verdict::SawTooth { valleys, .. } = collected(10.0, 0.0, 1.0, 10) else { panic!() };
    assert_eq!(valleys, Valleys::Level);
    let Verdict::SawTooth { valleys, .. } = collected(3.0, 0.3, 1.0, 11) else { panic!() };
    assert_eq!(valleys, Valleys::Unclear);
}

#[test]
fn a_load_that_comes_and_goes_is_a_saw_tooth() {
    for periods in [1.0, 2.0, 4.0] {
        let verdict = judged(120, |t| 50.0 * (1.0 - (periods * t / 120.0 * std::f64::consts::TAU).cos()));
        assert!(matches!(verdict, Verdict::SawTooth { .. }), "{periods}: {verdict}");
    }
}

#[test]
fn too_little_is_not_judged() {
    assert_undecided(&judged(14, |t| t), Undecided::TooFew { samples: 15 });
    assert_undecided(&judge(&Series::new([]), MEANINGFUL), Undecided::TooFew { samples: 0 });
    let burst = (0..100).map(|i| (Duration::from_millis(i), Bytes::from_mib(i)));
    assert_undecided(
        &judge(&Series::new(burst), MEANINGFUL),
        Undecided::TooShort { span: Duration::from_millis(99) },
    );
}

#[test]
fn samples_come_in_any_order_and_more_than_once() {
    let at = |t: u64, mib: u64| (Duration::from_secs(t), Bytes::from_mib(mib));
    let series = Series::new([at(2, 9), at(1, 5), at(2, 7), at(0, 3)]);
    assert_eq!(series.samples(), [at(0, 3), at(1, 5), at(2, 7)]);
    assert_eq!(series.span(), Duration::from_secs(2));
}

#[test]
fn ten_thousand_samples_are_judged() {
    let mut random = Random(12);
    assert_climbs(&judged(10_000, |t| 0.01 * t + random.normal()), 0.01);
}

struct Rates {
    climbs: usize,
    climbing_valleys: usize,
    mann_kendall: usize,
}

/// 1,000 walks of `samples` steps of 1 MiB's deviation.
fn walks(samples: u64) -> Rates {
    let mut rates = Rates { climbs: 0, climbing_valleys: 0, mann_kendall: 0 };
    for seed in 0..1000 {
        let mut random = Random(seed);
        let mut level = 0.0;
        let walk = sampled(samples - 1, |_| {
            level += random.normal();
            level
        });
        match judge(&walk, MEANINGFUL) {
            Verdict::Climb(_) => rates.climbs += 1,
            Verdict::SawTooth { valleys: Valleys::Climb(_), .. } => rates.climbing_valleys += 1,
            _ => {}
        }
        let p = stats::kendall(&walk.points()).unwrap().p();
        rates.mann_kendall += usize::from(p < 0.05);
    }
    rates
}

#[test]
fn a_random_walk_is_hardly_ever_a_climb() {
    for samples in [31, 120, 600] {
        let Rates { climbs, climbing_valleys, mann_kendall } = walks(samples);
        println!(
            "{samples}: {climbs} climbs, {climbing_valleys} climbing valleys, {mann_kendall} by p < 0.05"
        );
        assert!(climbs <= 5 && climbing_valleys <= 5, "{climbs} {climbing_valleys}");
        assert!(mann_kendall > 500, "{mann_kendall}");
    }
}

#[test]
fn descriptors_rise_in_step_with_a_leak() {
    let rss = sampled(60, |t| 5.5 * t);
    let fds = Series::new((0..=60).map(|t| (Duration::from_secs(t), 20 + t / 10 * 10)));
    let found = in_step(&rss, &fds).unwrap();
    assert_eq!(found.samples, 61);
    assert!(found.tau_b > 0.9 && found.p < 0.001);
    assert!((found.per / MIB - 5.5).abs() < 0.5, "{found:?}");
}

#[test]
fn what_stands_still_or_falls_is_in_step_with_nothing() {
    let rss = sampled(60, |t| 5.5 * t);
    let count = |of: fn(u64) -> u64| Series::new((0..=60).map(|t| (Duration::from_secs(t), of(t))));
    assert_eq!(in_step(&rss, &count(|_| 20)), None);
    assert_eq!(in_step(&rss, &count(|t| 100 - t)), None);
    assert_eq!(in_step(&rss, &count(|t| 20 + t % 10)), None);
    assert_eq!(in_step(&rss, &count(|t| 20 + t / 31)), None);
    assert_eq!(in_step(&sampled(60, |_| 0.0), &count(|t| t)), None);
    // Up together, but then memory came back and the descriptors did not.
    assert_eq!(in_step(&sampled(60, |t| t.min(100.0 - t)), &count(|t| t)), None);
}

#[test]
fn a_loose_connection_is_none() {
    let mut random = Random(14);
    let rss = sampled(600, |t| t + 250.0 + 150.0 * random.normal());
    assert!(rss.rises());
    let requests = Series::new((0..=600).map(|t| (Duration::from_secs(t), t)));
    assert_eq!(in_step(&rss, &requests), None);
}

/// Both wander, neither rises: ranks alone would often find them in step.
#[test]
fn two_random_walks_are_hardly_ever_in_step() {
    let mut found = (0, 0);
    for seed in 0..1000 {
        let mut random = Random(seed);
        let mut walk = || {
            let mut level = 0.0;
            sampled(119, |_| {
                level += random.normal();
                level
            })
        };
        let (a, b) = (walk(), walk());
        let pairs: Vec<_> = a.points().iter().zip(b.points()).map(|(a, b)| (a.1, b.1)).collect();
        found.0 += usize::from(in_step(&a, &b).is_some());
        found.1 += usize::from(stats::kendall(&pairs).unwrap().p() < 0.05);
    }
    println!("{} in step, {} by p < 0.05", found.0, found.1);
    assert!(found.0 <= 5 && found.1 > 500, "{found:?}");
}

#[test]
fn only_common_times_count() {
    let rss = sampled(60, |t| 5.5 * t);
    let every = |seconds: u64| Series::new((0..=60 / seconds).map(|i| (Duration::from_secs(i * seconds), i)));
    assert_eq!(in_step(&rss, &every(2)).unwrap().samples, 31);
    assert_eq!(in_step(&rss, &every(5)), None);
}

fn any_series() -> impl Strategy<Value = Series> {
    let sample = prop_oneof![(any::<u64>(), any::<u64>()), (0..60_000_000_000u64, 0..1u64 << 30)];
    prop::collection::vec(sample, 0..300)
        .prop_map(|s| Series::new(s.into_iter().map(|(at, b)| (Duration::from_nanos(at), Bytes(b)))))
}

proptest! {
    #[test]
    fn nothing_panics(series in any_series(), other in any_series(), meaningful: u64) {
        let _ = judge(&series, Bytes(meaningful)).to_string();
        let _ = judge(&series, Bytes::ZERO).to_string();
        let _ = (in_step(&series, &other), in_step(&series, &series));
    }

    #[test]
    fn a_shift_in_time_changes_no_verdict(series in any_series(), by in 0..1u64 << 40) {
        let shifted = series.samples().iter().map(|s| (s.0 + Duration::from_nanos(by), s.1));
        let (a, b) = (judge(&series, MEANINGFUL), judge(&Series::new(shifted), MEANINGFUL));
        prop_assert_eq!(std::mem::discriminant(&a), std::mem::discriminant(&b));
    }

    #[test]
    fn a_shift_in_bytes_changes_no_verdict(
        values in prop::collection::vec(0..1u64 << 30, 16..100),
        by in 0..1u64 << 40,
    ) {
        let series =
            |by| Series::new((0..).zip(&values).map(|(t, v)| (Duration::from_secs(t), Bytes(v + by))));
        let (a, b) = (judge(&series(0), MEANINGFUL), judge(&series(by), MEANINGFUL));
        prop_assert_eq!(std::mem::discriminant(&a), std::mem::discriminant(&b));
    }

    /// A climb is never called a fall, nor the other way round, whatever the noise on it.
    #[test]
    fn time_run_backwards_turns_a_climb(pace in 0.2..20.0f64, noise in 0.0..10.0f64, seed: u64) {
        let mut random = Random(seed);
        let up: Vec<f64> = (0..=60).map(|t| pace * f64::from(t) + noise * random.normal()).collect();
        let down = judged(60, |t| up[60 - t as usize]);
        let up = judged(60, |t| up[t as usize]);
        prop_assert!(!matches!(up, Verdict::Fall(_)), "{}", up);
        prop_assert!(!matches!(down, Verdict::Climb(_)), "{}", down);
        if pace > noise {
            prop_assert!(matches!(up, Verdict::Climb(_)), "{}", up);
            prop_assert!(matches!(down, Verdict::Fall(_)), "{}", down);
        }
    }
}
