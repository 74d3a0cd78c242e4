//! When to give back how much: a pure function of what a turn sees.
//!
//! Holding a page costs memory for as long as it is held; giving it back and faulting it in again costs about
//! 4 us (measured: 1.6 + 2.2 under KVM). As with hiring skis, whoever waits until holding has cost as much as
//! giving back never pays more than twice the best. The price of memory that makes both equal after half a
//! second is where it starts; where refaults turn out to cost more than a hundredth of a processor, the price
//! was wrong for this program, and the delay doubles.

/// Milliseconds between turns: a free page waits one to two of them.
pub(crate) const FIRST_DELAY: u64 = 250;
const MAX_DELAY: u64 = 1000;
const MIN_DELAY: u64 = 100;
/// Nanoseconds for giving a page back and faulting it in again.
const PAGE_COST_NS: u64 = 4000;
/// Milliseconds over which refaults are counted.
const WINDOW: u64 = 5000;
/// Pages taken in a turn up to which a program counts as quiet.
const QUIET: u64 = 64;
/// Pages kept while active, at least: 4 MiB.
const KEEP_LEAST: u64 = 1024;
/// Pages kept while active, at most: 64 MiB.
const KEEP_MOST: u64 = 16384;

/// What a turn sees. Pages, but for the times.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) now_ms: u64,
    /// Pages taken since the beginning.
    pub(crate) taken: u64,
    /// Pages refaulted since the beginning.
    pub(crate) refaulted: u64,
    /// Pages in use.
    pub(crate) used: u64,
    /// The cgroup or the host is short of memory.
    pub(crate) pressure: bool,
}

/// What to do at a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Give back all free pages, not only those that were free at the last turn.
    pub(crate) all: bool,
    /// How many resident free pages to leave.
    pub(crate) keep: u64,
    /// Empty all magazines, not only idle ones.
    pub(crate) drain_all: bool,
}

/// The controller.
#[derive(Debug)]
pub(crate) struct Pace {
    delay: u64,
    first: u64,
    last: Seen,
    window: Seen,
}

impl Pace {
    /// Begins with a delay in milliseconds, which is also where it returns to.
    pub(crate) fn new(first: u64) -> Self {
        Self { delay: first, first, last: Seen::default(), window: Seen::default() }
    }

    /// Milliseconds until the next turn.
    pub(crate) fn delay(&self) -> u64 {
        self.delay
    }

    /// One turn.
    pub(crate) fn turn(&mut self, seen: Seen) -> Plan {
        let taken = seen.taken.saturating_sub(self.last.taken);
        self.last = seen;
        if seen.pressure {
            self.delay = self.first.min(MIN_DELAY);
            self.window = seen;
            return Plan { all: true, keep: 0, drain_all: true };
        }
        self.adapt(seen);
        let keep = (seen.used / 20).clamp(KEEP_LEAST, KEEP_MOST);
        match taken {
            0 => Plan { all: true, keep: 0, drain_all: false },
            1..=QUIET => Plan { all: false, keep: 0, drain_all: false },
            _ => Plan { all: false, keep, drain_all: false },
        }
    }

    /// Doubles the delay where refaults in the last window cost more than 1% of a processor, halves it below a
    /// quarter of that.
    fn adapt(&mut self, seen: Seen) {
        let elapsed = seen.now_ms.saturating_sub(self.window.now_ms);
        let cost_ns = seen.refaulted.saturating_sub(self.window.refaulted) * PAGE_COST_NS;
        let hundredth_ns = elapsed.max(WINDOW / 2) * 1_000_000 / 100;
        if cost_ns > hundredth_ns {
            self.delay = (self.delay * 2).min(MAX_DELAY);
            self.window = seen;
        } else if elapsed >= WINDOW {
            if cost_ns * 4 < hundredth_ns {
                self.delay = (self.delay / 2).max(self.first);
            }
            self.window = seen;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(now_ms: u64, taken: u64, refaulted: u64) -> Seen {
        Seen { now_ms, taken, refaulted, used: 100_000, pressure: false }
    }

    #[test]
    fn an_idle_program_keeps_nothing() {
        let mut pace = Pace::new(FIRST_DELAY);
        assert_eq!(pace.turn(at(500, 10_000, 0)), Plan { all: false, keep: 5000, drain_all: false });
        assert_eq!(pace.turn(at(1000, 10_010, 0)), Plan { all: false, keep: 0, drain_all: false });
        assert_eq!(pace.turn(at(1500, 10_010, 0)), Plan { all: true, keep: 0, drain_all: false });
        assert_eq!(pace.delay(), FIRST_DELAY);
    }

    #[test]
    fn refaults_slow_it_down_and_calm_speeds_it_up_again() {
        let mut pace = Pace::new(FIRST_DELAY);
        let (mut now, mut refaulted) = (0, 0);
        for _ in 0..20 {
            now += pace.delay();
            refaulted += 70_000;
            pace.turn(at(now, refaulted, refaulted));
        }
        assert_eq!(pace.delay(), MAX_DELAY);
        for _ in 0..40 {
            now += pace.delay();
            pace.turn(at(now, refaulted, refaulted));
        }
        assert_eq!(pace.delay(), FIRST_DELAY);
    }

    #[test]
    fn pressure_takes_everything() {
        let mut pace = Pace::new(FIRST_DELAY);
        let plan = pace.turn(Seen { pressure: true, ..at(500, 10_000, 0) });
        assert_eq!(plan, Plan { all: true, keep: 0, drain_all: true });
    }
}
