//! Whether a trigger's event is a true one.
//!
//! The kernel seeds a new unprivileged trigger with the total of another aggregator (`psi_trigger_create`: always
//! `PSI_POLL`, also where `PSI_AVGS` is compared with it; 6.4 up to 6.18 at least). Where no privileged trigger was ever
//! armed that is 0, so the first stall after arming, however short, looks as long as all stalls since boot and fires; and
//! its echo may fire in the next window again. So `total=` must have grown by the threshold itself, since at least one
//! window ago. The same is asked of every trigger: it costs one read for each event, of which there is one in a window.

use crate::psi::{Psi, Trigger};
use std::time::{Duration, Instant};

/// How a trigger's total stood at two earlier moments, of which the older is at least a window before the last look.
#[derive(Debug)]
pub(crate) struct Proof {
    trigger: Trigger,
    older: Duration,
    newer: (Instant, Duration),
}

impl Proof {
    /// `psi` was read before the trigger was armed.
    pub(crate) fn new(trigger: Trigger, psi: &Psi, now: Instant) -> Proof {
        let total = trigger.of(psi).total;
        Proof { trigger, older: total, newer: (now, total) }
    }

    /// The trigger fired, and `psi` is what can be read now.
    pub(crate) fn holds(&mut self, psi: &Psi, now: Instant) -> bool {
        let total = self.trigger.of(psi).total;
        let (at, newer) = self.newer;
        if now.duration_since(at) >= self.trigger.window {
            (self.older, self.newer) = (newer, (now, total));
        }
        total.saturating_sub(self.older) >= self.trigger.stall
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psi::{Stall, Who};

    fn psi(millis: u64) -> Psi {
        let stall = Stall { avg10: 0, total: Duration::from_millis(millis) };
        Psi { some: stall, full: Stall::default() }
    }

    /// What the kernel fires wrongly: a stall of 1 ms after 10 s of stalls that were before.
    #[test]
    fn stalls_of_before_prove_nothing() {
        let trigger =
            Trigger { who: Who::Some, stall: Duration::from_millis(200), window: Duration::from_secs(2) };
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut proof = Proof::new(trigger, &psi(10_000), start);
        assert!(!proof.holds(&psi(10_001), after(60_000)), "the false first event");
        assert!(!proof.holds(&psi(10_100), after(62_000)), "and its echo");
        // 200 ms, of which half was before the event that was refused.
        assert!(proof.holds(&psi(10_201), after(63_000)));
        assert!(proof.holds(&psi(10_402), after(70_000)));
        assert!(!proof.holds(&psi(10_402), after(80_000)));
    }

    #[test]
    fn a_total_that_sinks_proves_nothing() {
        let trigger =
            Trigger { who: Who::Full, stall: Duration::from_millis(1), window: Duration::from_secs(1) };
        let mut proof = Proof::new(trigger, &psi(500), Instant::now());
        assert!(!proof.holds(&psi(3), Instant::now()));
    }
}
