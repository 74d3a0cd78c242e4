//! jemallocs that work while they are read, and damaged ones.

use super::{Build, Shaped, adds_up};
use ebbtide_heaps::{Area, Fault, Heap, Image, Live, MemorySource, PageState, ReadSeek, jemalloc};
use ebbtide_observe::Bytes;
use proptest::prelude::*;
use std::ops::Range;

/// Threads that allocate, free, come and go: each walk ends with figures that add up, and sees no damage.
#[test]
fn a_process_that_works_meanwhile() {
    for build in [Build::host(), Build::release("bullseye"), Build::release("trixie")].into_iter().flatten() {
        let mut busy = Shaped::start(&build, "busy", "");
        busy.0.give_way();
        busy.0.ask("shape");
        let process = busy.process();
        let (rounds, mut rereads, mut unresolved, mut mapped) = (10, 0, Bytes(0), Bytes(0));
        for round in 0..rounds {
            let live = Live::new(&process, false).unwrap();
            let heaps = jemalloc::find(&live).unwrap();
            let [heap] = heaps.as_slice() else { panic!("round {round}: {heaps:?}") };
            adds_up(heap);
            assert_eq!(heap.corruptions, [], "round {round}");
            assert!(heap.figures.live > Bytes(256 << 10), "round {round}: {heap:?}");
            rereads += heap.certainty.reread;
            unresolved += heap.certainty.unresolved;
            mapped += heap.figures.mapped;
        }
        let share = unresolved.share_of(mapped);
        println!("{build:?}: {rounds} walks, {rereads} spots read again, {:.2}% unresolved", 100.0 * share);
        assert!(share < 0.25, "{share}");
    }
}

#[test]
fn a_process_that_ends_meanwhile() {
    let Some(build) = Build::host() else { return };
    let mut ended = 0;
    for round in 0..20_u64 {
        let mut shaped = Shaped::start(&build, "tiny", "");
        shaped.make();
        let process = shaped.process();
        let Ok(live) = Live::new(&process, false) else { continue };
        let killer = std::thread::spawn(move || {
            for _ in 0..round * 20_000 {
                std::hint::spin_loop();
            }
            drop(shaped);
        });
        match jemalloc::find(&live) {
            Ok(heaps) => heaps.iter().for_each(adds_up),
            Err(Fault::Ended) => ended += 1,
            Err(fault) => panic!("{fault}"),
        }
        killer.join().unwrap();
    }
    println!("{ended} of 20 ended under the walk");
}

/// A picture that is not said to stand still.
struct Running(Image);

impl MemorySource for Running {
    fn areas(&self) -> &[Area] {
        self.0.areas()
    }

    fn read_ranges(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, Fault> {
        self.0.read_ranges(ranges, buf)
    }

    fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault> {
        self.0.pages(range, each)
    }

    fn file(&self, area: &Area) -> Result<Box<dyn ReadSeek>, Fault> {
        self.0.file(area)
    }

    fn is_still(&self) -> bool {
        false
    }
}

/// A picture of the program, and its words that are not zero, with their addresses.
fn picture(build: &Build) -> (Image, Vec<(u64, u64)>) {
    let mut shaped = Shaped::start(build, "tiny", "");
    shaped.make();
    let process = shaped.process();
    let live = Live::new(&process, true).unwrap();
    let image = Image::of(&live, |area| area.perms.write && !area.path.starts_with(b"[stack")).unwrap();
    let mut words = Vec::new();
    for area in image.areas() {
        let mut runs = Vec::new();
        image.pages(area.range.clone(), &mut |run, _| runs.push(run)).unwrap();
        for run in runs {
            let mut bytes = vec![0; (run.end - run.start) as usize];
            image.read_ranges(std::slice::from_ref(&run), &mut bytes).unwrap();
            let all = (run.start..).step_by(8).zip(bytes.as_chunks::<8>().0);
            words
                .extend(all.map(|(at, word)| (at, u64::from_le_bytes(*word))).filter(|(_, word)| *word != 0));
        }
    }
    (image, words)
}

/// A damaged word: its place among those of the picture, and what is there instead.
fn damage() -> impl Strategy<Value = (prop::sample::Index, Damage)> {
    let damage = prop_oneof![
        any::<prop::sample::Index>().prop_map(Damage::Other),
        (0..64_u32).prop_map(|bit| Damage::Flip(1 << bit)),
        prop_oneof![Just(0), Just(u64::MAX), Just(1 << 63), any::<u64>(), 0..4096_u64]
            .prop_map(Damage::Value),
    ];
    (any::<prop::sample::Index>(), damage)
}

#[derive(Debug, Clone)]
enum Damage {
    /// Another word of the picture.
    Other(prop::sample::Index),
    Flip(u64),
    Value(u64),
}

/// Whatever is damaged: nothing panics, figures add up, and no byte counts that is not mapped.
#[test]
fn damaged_pictures() {
    for build in [Build::host(), Build::release("bullseye"), Build::release("trixie")].into_iter().flatten() {
        let (image, words) = picture(&build);
        let all: u64 = image.areas().iter().map(|area| area.range.end - area.range.start).sum();
        let check = |heaps: Vec<Heap>| {
            for heap in &heaps {
                adds_up(heap);
                assert!(heap.figures.mapped <= Bytes(all), "{heap:?}");
                assert!(heap.figures.resident <= heap.figures.mapped, "{heap:?}");
                assert!(heap.figures.returnable + heap.figures.pinned_free <= heap.figures.free, "{heap:?}");
            }
            heaps.len()
        };
        assert_eq!(check(jemalloc::find(&image).unwrap()), 1);
        let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(80) };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let cases = (prop::collection::vec(damage(), 1..200), any::<bool>());
        let outcome = runner.run(&cases, |(damages, runs)| {
            let mut image = image.clone();
            for (place, damage) in damages {
                let &(at, word) = place.get(&words);
                let word = match damage {
                    Damage::Other(other) => other.get(&words).1,
                    Damage::Flip(bit) => word ^ bit,
                    Damage::Value(value) => value,
                };
                image.patch(at, &word.to_le_bytes());
            }
            if runs {
                check(jemalloc::find(&Running(image)).unwrap());
            } else {
                check(jemalloc::find(&image).unwrap());
            }
            Ok(())
        });
        outcome.unwrap();
    }
}
