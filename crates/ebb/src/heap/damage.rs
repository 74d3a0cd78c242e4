//! Damage that lasts. A thread that is stopped in the middle of malloc leaves lists half linked: on LuaJIT and CPython
//! programs that do nothing but allocate, 2 of 30 stops. So a process that looks damaged runs on for a little while and
//! is stopped again, and damage is what every look found at the same spot.
//!
//! Invariant: what was found once and not again is not hidden, but said of its heap.

use super::{NoLook, Seen};
use ebbtide_heaps::{Heap, Kind};
use std::time::Duration;

/// How long it runs before each further look: less than a moment of a busy processor, then more.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(2), Duration::from_millis(10), Duration::from_millis(50)];

const PASSING: &str =
    "it looked damaged at one moment and not at others: a thread stood still in the middle of a change";

/// Where a heap is damaged, and how.
type Spot = (Kind, u64, String);

/// `seen`, or what `again` sees after it, with the damage that all looks found.
pub(super) fn lasting(mut seen: Seen, mut again: impl FnMut() -> Result<Seen, NoLook>) -> Seen {
    let mut lasting: Vec<Spot> = spots(&seen).collect();
    for pause in PAUSES {
        if spots(&seen).next().is_none() {
            break;
        }
        std::thread::sleep(pause);
        // It ended, or stops no more: what was seen stays.
        let Ok(next) = again() else { break };
        let stop = seen.stop.max(next.stop);
        seen = Seen { stop, ..next };
        let found: Vec<Spot> = spots(&seen).collect();
        lasting.retain(|spot| found.contains(spot));
    }
    for heap in &mut seen.look.heaps {
        let before = heap.corruptions.len();
        let kind = heap.kind;
        heap.corruptions.retain(|damage| {
            lasting.iter().any(|spot| (spot.0, spot.1, &spot.2) == (kind, damage.address, &damage.what))
        });
        if heap.corruptions.len() < before {
            heap.notes.push(PASSING.to_owned());
        }
    }
    seen
}

fn spots(seen: &Seen) -> impl Iterator<Item = Spot> {
    let of = |heap: &Heap| {
        let kind = heap.kind;
        let spots = heap.corruptions.iter().map(move |damage| (kind, damage.address, damage.what.clone()));
        spots.collect::<Vec<_>>()
    };
    seen.look.heaps.iter().flat_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_heaps::{Corruption, Look, LookError};
    use ebbtide_observe::process::Name;
    use std::time::SystemTime;

    fn look(damaged: &[u64], stop: u64) -> Seen {
        let damage = |&address| Corruption { address, what: "no list".to_owned() };
        let corruptions = damaged.iter().map(damage).collect();
        let look = Look { heaps: vec![Heap { corruptions, ..Heap::new(Kind::LuaJit) }], ..Look::default() };
        let stop = Some(Duration::from_millis(stop));
        Seen { pid: 1, name: Name::default(), rss: None, look, stop, at: SystemTime::UNIX_EPOCH }
    }

    /// What is said after these looks, the longest stop, whether it is noted, and how many of them were needed.
    fn after(looks: &[&[u64]]) -> (Vec<u64>, u64, bool, usize) {
        let mut looks: Vec<Seen> = looks.iter().zip(1..).map(|(damaged, stop)| look(damaged, stop)).collect();
        looks.reverse();
        let all = looks.len();
        let first = looks.pop().unwrap();
        let ended = || NoLook::Look(LookError::Memory(ebbtide_heaps::Fault::Ended));
        let seen = lasting(first, || looks.pop().ok_or_else(ended));
        let heap = &seen.look.heaps[0];
        let addresses = heap.corruptions.iter().map(|damage| damage.address).collect();
        let stop = seen.stop.unwrap().as_millis() as u64;
        (addresses, stop, !heap.notes.is_empty(), all - looks.len())
    }

    #[test]
    fn damage_is_what_all_looks_find() {
        assert_eq!(after(&[&[], &[1]]), (vec![], 1, false, 1), "nothing to look at again");
        assert_eq!(after(&[&[1], &[], &[1]]), (vec![], 2, false, 2));
        assert_eq!(after(&[&[1], &[2], &[]]), (vec![], 3, false, 3));
        assert_eq!(after(&[&[1, 2], &[1], &[3, 1], &[1], &[]]), (vec![1], 4, false, 4));
        assert_eq!(after(&[&[1], &[2], &[3], &[4]]), (vec![], 4, true, 4), "always another");
        assert_eq!(after(&[&[1, 2], &[2, 3]]), (vec![2], 2, true, 2), "it has ended since");
    }
}
