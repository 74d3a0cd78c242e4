//! What a cascade found and gave back, by place in the tree and by type.
//!
//! Invariants: bounded whatever the tree ([`MOST_PLACES`], [`MOST_SPOTS`], and the lengths in `path`); recording
//! never fails: where memory is refused or a bound is reached, bytes are counted in the totals only.

use crate::Bytes;
use crate::path::{Link, Show};
use std::time::Duration;

/// Most kinds of places in a report.
pub const MOST_PLACES: usize = 256;
/// Most single buffers named in a report.
pub const MOST_SPOTS: usize = 16;

/// Room for a spot's path, so that the next one fits over it.
const USUAL_PATH: usize = 120;

/// What one cascade, or many together ([`Report::add`]), found and gave back.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// Cascades in this report: 1, or how many were added up.
    pub cascades: u64,
    /// Bytes of all buffers beyond what their elements need, as found by the first walk; what was locked then is not
    /// in it.
    pub slack: Bytes,
    /// Bytes given back to the allocator.
    pub returned: Bytes,
    /// Buffers looked at, by the first walk.
    pub sites: usize,
    /// Buffers cut.
    pub cut: usize,
    /// Times the allocator refused a smaller buffer: that buffer is as it was.
    pub refused: usize,
    /// Locks that were held by others at every try.
    pub busy: usize,
    /// Buffers left alone because they were cut lately ([`Policy::rest`](crate::Policy::rest)).
    pub resting: usize,
    /// Buffers left alone because the smaller one exceeds [`Policy::transient`](crate::Policy::transient).
    pub too_large_to_copy: usize,
    /// Values deeper in the tree than [`DEEPEST`](crate::DEEPEST) steps, which were not looked at.
    pub too_deep: usize,
    /// The largest second buffer that existed for a moment, or heap that was compared as one.
    pub transient: Bytes,
    /// Slices it took.
    pub slices: u64,
    /// Time in all slices together.
    pub time: Duration,
    /// Time of the longest slice.
    pub longest_slice: Duration,
    /// By place and type, keys left out; no more than [`MOST_PLACES`].
    pub places: Vec<Place>,
    /// The buffers that gave back most, with their keys, largest first; no more than [`MOST_SPOTS`].
    pub spots: Vec<Spot>,
}

/// All buffers at places that differ only in keys and indices.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// Such as `server.vhosts[*].queues[*].unacked`.
    pub path: String,
    /// Such as `Vec`.
    pub kind: &'static str,
    /// Buffers worth cutting, as found by the first walk.
    pub found: usize,
    /// What these could give back.
    pub slack: Bytes,
    /// Buffers cut.
    pub cut: usize,
    /// Bytes given back.
    pub returned: Bytes,
    id: u64,
}

/// One buffer that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spot {
    /// Such as `server.vhosts["/"].queues["a"].unacked`; control characters are escaped.
    pub path: String,
    /// Such as `Vec`.
    pub kind: &'static str,
    /// Bytes given back.
    pub returned: Bytes,
}

impl Report {
    /// Bytes given back, and buffers cut, by type: most first.
    ///
    /// ```
    /// # use ebbtide_shrink::{shrink_now, Policy};
    /// let mut lists = vec![Vec::<u64>::with_capacity(1000), Vec::with_capacity(1000)];
    /// let report = shrink_now(&mut lists, &Policy::default());
    /// let (kind, cut, bytes) = report.by_type()[0];
    /// assert_eq!((kind, cut, bytes.0), ("Vec", 2, 16_000));
    /// ```
    pub fn by_type(&self) -> Vec<(&'static str, usize, Bytes)> {
        let mut kinds: Vec<(&'static str, usize, Bytes)> = Vec::new();
        for place in self.places.iter().filter(|place| place.cut > 0) {
            match kinds.iter_mut().find(|kind| kind.0 == place.kind) {
                Some(kind) => *kind = (kind.0, kind.1 + place.cut, kind.2 + place.returned),
                None => kinds.push((place.kind, place.cut, place.returned)),
            }
        }
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.2));
        kinds
    }

    /// Adds another cascade's report to this one: counts and times are summed, the longest slice and the largest
    /// spots kept.
    pub fn add(&mut self, other: &Report) {
        self.cascades += other.cascades;
        self.slack += other.slack;
        self.returned += other.returned;
        self.sites += other.sites;
        self.cut += other.cut;
        self.refused += other.refused;
        self.busy += other.busy;
        self.resting += other.resting;
        self.too_large_to_copy += other.too_large_to_copy;
        self.too_deep += other.too_deep;
        self.transient = self.transient.max(other.transient);
        self.slices += other.slices;
        self.time += other.time;
        self.longest_slice = self.longest_slice.max(other.longest_slice);
        for place in &other.places {
            match self.places.binary_search_by_key(&place.id, |p| p.id) {
                Ok(at) => {
                    let mine = &mut self.places[at];
                    mine.found += place.found;
                    mine.slack += place.slack;
                    mine.cut += place.cut;
                    mine.returned += place.returned;
                }
                Err(at) if self.places.len() < MOST_PLACES && self.places.try_reserve(1).is_ok() => {
                    if let Some(path) = copy(&place.path) {
                        self.places.insert(at, Place { path, ..*place });
                    }
                }
                Err(_) => {}
            }
        }
        for spot in &other.spots {
            self.spot(spot.kind, spot.returned, |path| {
                path.try_reserve(spot.path.len()).map(|()| path.push_str(&spot.path)).is_ok()
            });
        }
    }

    /// A buffer that the first walk found worth cutting.
    pub(crate) fn found(&mut self, link: &Link<'_>, kind: &'static str, gain: Bytes) {
        if let Some(place) = self.place(link, kind) {
            place.found += 1;
            place.slack += gain;
        }
    }

    /// A buffer that was cut.
    pub(crate) fn gave(&mut self, link: &Link<'_>, kind: &'static str, returned: Bytes, show: Show) {
        self.cut += 1;
        self.returned += returned;
        if let Some(place) = self.place(link, kind) {
            place.cut += 1;
            place.returned += returned;
        }
        self.spot(kind, returned, |path| link.text(path, show));
    }

    /// The row of this place and type, made if there is room and memory for it.
    fn place(&mut self, link: &Link<'_>, kind: &'static str) -> Option<&mut Place> {
        // One place can hold several types, as an enum does: the type is part of the id.
        let id =
            kind.bytes().fold(link.fingerprint(Show::Star), |id, byte| id.rotate_left(5) ^ u64::from(byte));
        let at = match self.places.binary_search_by_key(&id, |place| place.id) {
            Ok(at) => at,
            Err(at) => {
                if self.places.len() >= MOST_PLACES || self.places.try_reserve(1).is_err() {
                    return None;
                }
                let mut path = String::new();
                if !link.text(&mut path, Show::Star) {
                    return None;
                }
                let slack = Bytes::ZERO;
                let place = Place { path, kind, found: 0, slack, cut: 0, returned: Bytes::ZERO, id };
                self.places.insert(at, place);
                at
            }
        };
        self.places.get_mut(at)
    }

    /// Takes a spot among the largest, if it is one of them.
    ///
    /// The text is written over that of the one that falls out: after many blocks were freed glibc sorts up to 10,000
    /// of them at each call for memory, which takes 2.5 ms.
    fn spot(&mut self, kind: &'static str, returned: Bytes, write: impl FnOnce(&mut String) -> bool) {
        let at = self.spots.partition_point(|spot| spot.returned >= returned);
        if at >= MOST_SPOTS || (self.spots.len() < MOST_SPOTS && self.spots.try_reserve(1).is_err()) {
            return;
        }
        let last = if self.spots.len() == MOST_SPOTS { self.spots.pop() } else { None };
        let mut path = last.map(|spot| spot.path).unwrap_or_default();
        if room(&mut path) && write(&mut path) {
            self.spots.insert(at, Spot { path, kind, returned });
        }
    }
}

/// Whether there is memory for a path of the usual length in place of what is there.
fn room(path: &mut String) -> bool {
    path.clear();
    path.try_reserve_exact(USUAL_PATH).is_ok()
}

/// A copy, if there is memory for it.
fn copy(text: &str) -> Option<String> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).ok()?;
    copy.push_str(text);
    Some(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Step;

    #[test]
    fn it_is_bounded_and_keeps_the_largest() {
        let mut report = Report::default();
        let root = Link { up: None, step: Step::Root("r") };
        for n in 0..10_000_usize {
            let link = Link { up: Some(&root), step: Step::Index(n) };
            report.gave(&link, "Vec", Bytes(n), Show::Keys);
        }
        assert_eq!((report.places.len(), report.places[0].path.as_str()), (1, "r[*]"));
        assert_eq!(report.spots.len(), MOST_SPOTS);
        assert_eq!((report.spots[0].path.as_str(), report.spots[0].returned), ("r[9999]", Bytes(9999)));
        assert!(report.spots.is_sorted_by_key(|spot| std::cmp::Reverse(spot.returned)));
        let names: Vec<&'static str> = (0..1000).map(|n| &*n.to_string().leak()).collect();
        for name in names {
            report.gave(&Link { up: Some(&root), step: Step::Field(name) }, "Vec", Bytes(1), Show::Keys);
        }
        assert_eq!((report.places.len(), report.cut), (MOST_PLACES, 11_000));
    }

    #[test]
    fn reports_add_up() {
        let root = Link { up: None, step: Step::Root("r") };
        let one = |kind, bytes| {
            let mut report = Report { cascades: 1, ..Report::default() };
            report.found(&root, kind, Bytes(bytes));
            report.gave(&root, kind, Bytes(bytes), Show::Keys);
            report
        };
        let mut sum = one("Vec", 10);
        sum.add(&one("Vec", 20));
        sum.add(&one("HashMap", 5));
        assert_eq!((sum.cascades, sum.returned), (3, Bytes(35)));
        assert_eq!(sum.by_type(), [("Vec", 2, Bytes(30)), ("HashMap", 1, Bytes(5))]);
        let spots: Vec<usize> = sum.spots.iter().map(|spot| spot.returned.0).collect();
        assert_eq!(spots, [20, 10, 5]);
    }
}
