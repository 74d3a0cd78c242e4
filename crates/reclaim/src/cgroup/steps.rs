//! Reclaim in bounded steps, and when to stop: the loop, over anything that looks like a group, so that it is tested on
//! groups that stall, refault, give nothing or never answer.
//!
//! Invariants: the sum of what is asked for is at most the goal; between two steps the group runs undisturbed for as
//! long as [`Steps::rest`] takes, so its pressure tells of it; swap is looked at before each step.

use ebbtide_observe::{Bytes, Pages};
use std::time::Duration;

/// Asked for at once (as Koordinator does: a larger one cannot be stopped for seconds).
const STEP: Bytes = Bytes::from_mib(32);

/// Asked for at once where it may go to swap, and how much of that there must be for it: pages leave memory only at the
/// next step after they are written, and meanwhile the kernel sends more (6.1, a slow disk: 64 MiB asked for in steps of
/// 16 took 130 MiB of swap, and the whole of 160 where what waits for the next step was taken for room).
const SWAP_STEP: Bytes = Bytes::from_mib(4);
pub(super) const SWAP_FOR_A_STEP: Bytes = Bytes::from_mib(48);

/// From this share of the time on in which some task waited for memory, or for a disk more than before, reclaim hurts.
/// For a moment only: agents that probe for ever, as senpai, take a thousandth.
pub(super) const PRESSURE: f64 = 0.1;

/// A group at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// When, on any clock.
    pub(super) at: Duration,
    /// Charged.
    pub(super) current: Bytes,
    /// For how long, since ever, some task waited for memory; `None` without PSI.
    pub(super) memory: Option<Duration>,
    /// The same for disks.
    pub(super) io: Option<Duration>,
    /// Pages read back soon after they had been taken, since ever.
    pub(super) refaults: Pages,
    /// What may still go to swap.
    pub(super) swap_room: Bytes,
}

/// How the kernel answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    /// EAGAIN: less than was asked for; that is usual.
    Partly,
    /// It has not answered in time, and works on.
    StillAtIt,
    Failed(String),
}

/// What steps are taken on.
pub(super) trait Steps {
    fn look(&mut self) -> Result<Look, String>;
    fn ask(&mut self, bytes: Bytes) -> Answer;
    /// Lets the group run for a moment.
    fn rest(&mut self);
}

/// Takes steps until `predicted` was asked for or the group is at `floor`; says why it stopped before. `anon`: whether
/// anonymous memory may go to swap.
pub(super) fn run(group: &mut impl Steps, predicted: Bytes, floor: Bytes, anon: bool) -> Result<(), String> {
    let quiet = group.look()?;
    group.rest();
    let mut before = group.look()?;
    let usual = share(quiet.io, before.io, &quiet, &before);
    if let Some(share) = share(quiet.memory, before.memory, &quiet, &before).filter(|&share| share > PRESSURE)
    {
        return Err(format!(
            "its tasks wait for memory {} of the time already; nothing was taken",
            percent(share)
        ));
    }
    let mut left = predicted;
    while left > Bytes::ZERO && before.current > floor {
        let most = if anon { SWAP_STEP } else { STEP };
        let step = left.min(most).min(before.current - floor);
        if anon && before.swap_room < SWAP_FOR_A_STEP {
            return Err("swap is nearly full".to_owned());
        }
        let answer = group.ask(step);
        group.rest();
        let after = group.look()?;
        stop(&answer, step, &before, &after, usual)?;
        left -= step;
        before = after;
    }
    Ok(())
}

/// An error where the step between the two looks was the last.
fn stop(answer: &Answer, step: Bytes, before: &Look, after: &Look, usual: Option<f64>) -> Result<(), String> {
    let returned = before.current - after.current;
    match answer {
        Answer::StillAtIt => {
            return Err("the kernel still works at a step; what it has returned so far is counted".to_owned());
        }
        Answer::Failed(why) => return Err(why.clone()),
        Answer::Partly if returned < step.scaled(0.1) => {
            return Err("the kernel finds nothing more to take (EAGAIN)".to_owned());
        }
        Answer::Partly | Answer::Done => {}
    }
    if let Some(share) = share(before.memory, after.memory, before, after).filter(|&share| share > PRESSURE) {
        return Err(format!("its tasks waited for memory {} of the time", percent(share)));
    }
    if let (Some(share), Some(usual)) = (share(before.io, after.io, before, after), usual)
        && share - usual > PRESSURE
    {
        return Err(format!(
            "its tasks waited for disks {} of the time, {} before",
            percent(share),
            percent(usual)
        ));
    }
    let back = Pages(after.refaults.0.saturating_sub(before.refaults.0)).bytes();
    if back >= Bytes::from_mib(1) && back > step.scaled(0.5) {
        return Err(format!("{back} of the last {step} were read back at once: it uses them"));
    }
    Ok(())
}

/// The share of the time between two looks.
fn share(from: Option<Duration>, to: Option<Duration>, before: &Look, after: &Look) -> Option<f64> {
    let time = after.at.saturating_sub(before.at).as_secs_f64();
    (time > 0.0).then_some(to?.saturating_sub(from?).as_secs_f64() / time)
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group that takes a second for a step, and what is wrong with it.
    #[derive(Default)]
    struct Model {
        now: Look,
        asked: Vec<Bytes>,
        memory_waits: u64,
        io_waits: u64,
        /// Only from this step on.
        from: usize,
        refaults: u64,
        least: Bytes,
        answer: Option<Answer>,
    }

    impl Model {
        fn of(mib: u64) -> Model {
            let wait = Some(Duration::ZERO);
            let now = Look { current: Bytes::from_mib(mib), memory: wait, io: wait, ..Look::default() };
            Model { now, ..Model::default() }
        }

        fn run(&mut self, predicted: u64, floor: u64, anon: bool) -> Result<(), String> {
            run(self, Bytes::from_mib(predicted), Bytes::from_mib(floor), anon)
        }

        fn asked(&self) -> Bytes {
            self.asked.iter().copied().sum()
        }
    }

    impl Steps for Model {
        fn look(&mut self) -> Result<Look, String> {
            Ok(self.now)
        }

        fn ask(&mut self, bytes: Bytes) -> Answer {
            assert!(bytes <= STEP && bytes > Bytes::ZERO);
            self.asked.push(bytes);
            let taken = bytes.min(self.now.current - self.least);
            self.now.current -= taken;
            self.now.swap_room -= taken;
            self.now.refaults += Pages(self.refaults);
            match &self.answer {
                Some(answer) => answer.clone(),
                None if taken < bytes => Answer::Partly,
                None => Answer::Done,
            }
        }

        fn rest(&mut self) {
            self.now.at += Duration::from_secs(1);
            if self.asked.len() >= self.from {
                let add = |wait: &mut Option<Duration>, ms| {
                    *wait = wait.map(|wait| wait + Duration::from_millis(ms));
                };
                add(&mut self.now.memory, self.memory_waits);
                add(&mut self.now.io, self.io_waits);
            }
        }
    }

    #[test]
    fn to_the_goal_and_no_further() {
        let mut group = Model::of(1000);
        assert_eq!(group.run(100, 900, false), Ok(()));
        assert_eq!(group.asked, [32, 32, 32, 4].map(Bytes::from_mib));
        let mut group = Model::of(1000);
        assert_eq!(group.run(500, 990, false), Ok(()));
        assert_eq!(group.asked(), Bytes::from_mib(10));
        let mut group = Model::of(10);
        assert_eq!(group.run(5, 20, false), Ok(()));
        assert!(group.asked.is_empty());
    }

    #[test]
    fn pressure_stops_it() {
        let mut group = Model { memory_waits: 150, from: 2, ..Model::of(1000) };
        assert!(group.run(500, 0, false).unwrap_err().contains("for memory 15%"));
        assert_eq!(group.asked.len(), 2);
        let mut group = Model { memory_waits: 150, ..Model::of(1000) };
        assert!(group.run(500, 0, false).unwrap_err().contains("already"));
        assert!(group.asked.is_empty());
        let mut group = Model { io_waits: 200, from: 3, ..Model::of(1000) };
        assert!(group.run(500, 0, false).unwrap_err().contains("for disks 20%"));
        assert_eq!(group.asked.len(), 3);
        // It has always waited for disks.
        let mut group = Model { io_waits: 200, ..Model::of(1000) };
        assert_eq!(group.run(500, 0, false), Ok(()));
    }

    #[test]
    fn pages_that_are_read_back_stop_it() {
        let refaults = Bytes::from_mib(20).0 / ebbtide_observe::page_size().0;
        let mut group = Model { refaults, ..Model::of(1000) };
        assert!(group.run(500, 0, false).unwrap_err().contains("read back"));
        assert_eq!(group.asked.len(), 1);
    }

    #[test]
    fn part_of_a_step_is_a_success_nothing_is_the_end() {
        let mut group = Model { least: Bytes::from_mib(940), ..Model::of(1000) };
        assert!(group.run(500, 0, false).unwrap_err().contains("EAGAIN"));
        assert_eq!((group.asked.len(), group.now.current), (3, Bytes::from_mib(940)));
    }

    #[test]
    fn swap_is_never_filled() {
        let mut group = Model::of(1000);
        group.now.swap_room = SWAP_FOR_A_STEP + SWAP_STEP;
        assert!(group.run(500, 0, true).unwrap_err().contains("swap"));
        assert_eq!(group.asked, [SWAP_STEP; 2]);
    }

    #[test]
    fn what_does_not_answer_or_fails_is_the_end() {
        for answer in [Answer::StillAtIt, Answer::Failed("EIO".to_owned())] {
            let mut group = Model { answer: Some(answer), ..Model::of(1000) };
            assert!(group.run(500, 0, false).is_err());
            assert_eq!(group.asked.len(), 1);
        }
    }

    #[test]
    fn without_pressure_figures_the_rest_holds() {
        let mut group = Model { memory_waits: 999, ..Model::of(1000) };
        (group.now.memory, group.now.io) = (None, None);
        assert_eq!(group.run(64, 0, false), Ok(()));
    }
}
