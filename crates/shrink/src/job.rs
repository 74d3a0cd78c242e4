//! One cascade over one value, slice by slice, on the caller's thread.
//!
//! Invariant: between slices a job holds no reference into the value; the owner may do anything with it.

use crate::cascade::Cascade;
use crate::history::History;
use crate::path::{Link, Step};
use crate::walk::Walk;
use crate::{Policy, Report, Shrink, ShrinkShared};
use std::fmt;
use std::time::{Duration, Instant};

/// One cascade that is done slice by slice, for owners that want no [`Registry`](crate::Registry).
///
/// ```
/// use ebbtide_shrink::{Job, Policy};
///
/// let mut lists: Vec<Vec<u8>> = (0..1000).map(|_| Vec::with_capacity(4096)).collect();
/// let mut job = Job::new("lists", Policy::default());
/// while job.slice(&mut lists) {
///     // The value is free between two slices: serve a request.
///     lists[0].push(1);
/// }
/// assert!(job.report().returned.0 > 999 * 4000);
/// ```
#[must_use = "a job works in its slices only"]
pub struct Job {
    name: &'static str,
    walk: Walk,
    took: Duration,
    done: bool,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Job { name, walk, done, .. } = self;
        f.debug_struct("Job")
            .field("name", name)
            .field("done", done)
            .field("report", &walk.report)
            .finish_non_exhaustive()
    }
}

impl Job {
    /// A cascade that has not begun; the name is where its report's paths begin.
    pub fn new(name: &'static str, policy: Policy) -> Job {
        Job::with_history(name, policy, History::default())
    }

    pub(crate) fn with_history(name: &'static str, policy: Policy, history: History) -> Job {
        Job { name, walk: Walk::new(policy, history), took: Duration::ZERO, done: false }
    }

    /// Does one slice; whether there is more to do. It must be the same value each time, and may have changed.
    pub fn slice<T: Shrink + ?Sized>(&mut self, value: &mut T) -> bool {
        self.work(|cascade| value.shrink(cascade))
    }

    /// The same for a value that others hold, too.
    pub fn slice_shared<T: ShrinkShared + ?Sized>(&mut self, value: &T) -> bool {
        self.work(|cascade| value.shrink_shared(cascade))
    }

    fn work(&mut self, mut shrink: impl FnMut(&mut Cascade<'_>)) -> bool {
        if self.done {
            return false;
        }
        let root = Link { up: None, step: Step::Root(self.name) };
        self.walk.begin_slice();
        loop {
            shrink(&mut Cascade::root(&mut self.walk, &root));
            if self.walk.spent() {
                break;
            }
            self.done = !self.walk.next_round();
            if self.done || self.walk.pause() {
                break;
            }
        }
        self.took = self.walk.end_slice();
        !self.done
    }

    /// What it found and gave back so far.
    pub fn report(&self) -> &Report {
        &self.walk.report
    }

    /// What it found and gave back.
    pub fn into_report(self) -> Report {
        self.walk.report
    }

    /// When its policy wants the next slice, if the last one ends now.
    pub(crate) fn next(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.walk.policy.pause(self.took)).unwrap_or(now)
    }

    pub(crate) fn into_parts(self) -> (Report, History) {
        (self.walk.report, self.walk.history)
    }
}

/// Does a whole cascade now, slice after slice, and says what it gave back.
///
/// ```
/// use ebbtide_shrink::{shrink_now, Policy};
/// use std::collections::HashMap;
///
/// let mut map: HashMap<u32, String> = (0..10_000).map(|n| (n, n.to_string())).collect();
/// map.retain(|n, _| *n < 10);
/// let report = shrink_now(&mut map, &Policy::default());
/// assert!(map.capacity() < 100 && map.len() == 10);
/// assert!(report.returned.0 > 10_000 * 32);
/// ```
pub fn shrink_now<T: Shrink + ?Sized>(value: &mut T, policy: &Policy) -> Report {
    let mut job = Job::new("", *policy);
    while job.slice(value) {
        // Whoever holds a lock that was found busy may want to run.
        std::thread::yield_now();
    }
    job.into_report()
}

/// The same for a value that others hold, too.
pub fn shrink_shared_now<T: ShrinkShared + ?Sized>(value: &T, policy: &Policy) -> Report {
    let mut job = Job::new("", *policy);
    while job.slice_shared(value) {
        std::thread::yield_now();
    }
    job.into_report()
}
