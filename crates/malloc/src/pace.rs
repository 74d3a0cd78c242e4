//! When to give back how much: a pure function of what a turn sees.
//!
//! Holding a page costs memory for as long as it is held; giving it back and faulting it in again costs about
//! 4 us (measured: 1.6 + 2.2 under KVM). As with hiring skis, whoever waits until holding has cost as much as
//! giving back never pays more than twice the best. How long that is depends on the price of memory, which
//! starts low; where refaults turn out to cost more than half a hundredth of a processor, the price was wrong for
//! this program, and its *patience*, counted in turns, doubles. (Half, so that they stay below a hundredth.)
//! Patience is long while the program is active. When it takes nothing it is half as long, at most
//! [`IDLE_PATIENCE`] turns: an idle program gives everything back at once if that has cost little so far, and
//! within two seconds at the latest.

/// Milliseconds between turns.
pub(crate) const FIRST_DELAY: u64 = 100;
/// Turns between two purges of an active program, at most.
const MAX_PATIENCE: u32 = 32;
/// Turns without a page taken after which everything is given back, at most. With 2, a load that came once a second
/// spent 7% of a processor on refaults (`cargo xtask bench malloc steady`).
const IDLE_PATIENCE: u32 = 12;
/// Nanoseconds for giving a page back and faulting it in again.
const PAGE_COST_NS: u64 = 4000;
/// Milliseconds over which refaults are counted before the patience is halved: each time it turns out to have been too
/// short costs a heap's worth of refaults.
const WINDOW: u64 = 20_000;
/// Milliseconds over which they are counted at least before it is doubled.
const SHORT_WINDOW: u64 = 2500;
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
pub(crate) enum Plan {
    /// Give no pages back.
    Wait,
    /// Give back the free pages that were free at the last purge too, but leave so many resident ones.
    Stale(u64),
    /// Give back all free pages.
    All,
    /// That, and what lies in the magazines of threads that use them.
    Everything,
}

/// The controller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    delay: u64,
    patience: u32,
    /// Turns since pages were last given back.
    waited: u32,
    /// Turns without a page taken.
    idle: u32,
    /// Pages were given back since the patience was doubled: what is faulted in again teaches something new.
    gave: bool,
    last: Seen,
    window: Seen,
}

impl Pace {
    /// Begins, with so many milliseconds between turns.
    pub(crate) fn new(delay: u64) -> Self {
        let (last, window) = (Seen::default(), Seen::default());
        Self { delay, patience: 1, waited: 0, idle: 0, gave: false, last, window }
    }

    /// Milliseconds until the next turn.
    pub(crate) fn delay(&self) -> u64 {
        self.delay
    }

    /// One turn.
    pub(crate) fn turn(&mut self, seen: Seen) -> Plan {
        let taken = seen.taken.saturating_sub(self.last.taken);
        self.last = seen;
        self.waited += 1;
        self.idle = if taken == 0 { self.idle + 1 } else { 0 };
        if seen.pressure {
            self.patience = 1;
            self.window = seen;
            self.waited = 0;
            return Plan::Everything;
        }
        self.adapt(seen);
        let soon = (self.patience / 2).clamp(1, IDLE_PATIENCE);
        let keep = (seen.used / 20).clamp(KEEP_LEAST, KEEP_MOST);
        let plan = match taken {
            0 if self.idle >= soon => Plan::All,
            1..=QUIET if self.waited >= soon => Plan::Stale(0),
            _ if taken > QUIET && self.waited >= self.patience => Plan::Stale(keep),
            _ => Plan::Wait,
        };
        if plan != Plan::Wait {
            self.waited = 0;
            if !self.gave {
                (self.gave, self.window) = (true, seen);
            }
        }
        plan
    }

    /// Doubles the patience where refaults in the last window cost more than 0.5% of a processor, once for what was
    /// given back at a time; halves it below a quarter of that.
    fn adapt(&mut self, seen: Seen) {
        let elapsed = seen.now_ms.saturating_sub(self.window.now_ms);
        let cost_ns = seen.refaulted.saturating_sub(self.window.refaulted) * PAGE_COST_NS;
        let allowed_ns = elapsed.max(SHORT_WINDOW) * 1_000_000 / 200;
        if cost_ns > allowed_ns && self.gave {
            self.gave = false;
            self.patience = (self.patience * 2).min(MAX_PATIENCE);
            self.window = seen;
        } else if elapsed >= WINDOW {
            if cost_ns * 4 < allowed_ns {
                self.patience = (self.patience / 2).max(1);
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
        assert_eq!(pace.turn(at(100, 10_000, 0)), Plan::Stale(5000));
        assert_eq!(pace.turn(at(200, 10_010, 0)), Plan::Stale(0));
        assert_eq!(pace.turn(at(300, 10_010, 0)), Plan::All);
    }

    #[test]
    fn refaults_make_it_patient_and_calm_makes_it_quick_again() {
        let mut pace = Pace::new(FIRST_DELAY);
        let (mut now, mut refaulted) = (0, 0);
        for _ in 0..80 {
            now += FIRST_DELAY;
            refaulted += 70_000;
            pace.turn(at(now, refaulted, refaulted));
        }
        assert_eq!(pace.patience, MAX_PATIENCE);
        for turn in 1..=IDLE_PATIENCE {
            now += FIRST_DELAY;
            let plan = pace.turn(at(now, refaulted, refaulted));
            assert_eq!(plan == Plan::All, turn == IDLE_PATIENCE, "even so, idle is idle");
        }
        for _ in 0..1200 {
            now += FIRST_DELAY;
            pace.turn(at(now, refaulted, refaulted));
        }
        assert_eq!(pace.patience, 1);
    }

    #[test]
    fn an_active_program_with_costly_refaults_is_left_alone_for_long() {
        let mut pace = Pace::new(FIRST_DELAY);
        let mut purges = 0;
        for turn in 1..=640 {
            // Each purge is followed by a costly refault.
            let plan = pace.turn(at(turn * FIRST_DELAY, turn * 10_000, purges * 20_000));
            purges += u64::from(plan != Plan::Wait);
        }
        assert!(purges < 100, "{purges}");
    }

    #[test]
    fn pressure_takes_everything() {
        let mut pace = Pace::new(FIRST_DELAY);
        assert_eq!(pace.turn(Seen { pressure: true, ..at(500, 10_000, 0) }), Plan::Everything);
    }
}
