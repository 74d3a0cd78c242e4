//! v2: memory.reclaim. Each write reclaims in the writer's name until so much is had, or gives up with EAGAIN; it has
//! been seen to block, so a thread writes.

use super::plan::Plan;
use super::steps::{self, Answer, Look, Steps};
use super::{Goal, Group};
use crate::knob::Knob;
use crate::refused::{LeverError, Refusal, Right};
use crate::report::{Lever, Report};
use crate::slow::{RCU, Terms, patiently, settled};
use crate::swap::Swap;
use ebbtide_observe::cgroup::CgroupSample;
use ebbtide_observe::host::{Pressure, Stall};
use ebbtide_observe::{Bytes, Pages, Root};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

/// The group runs for so long between two steps: long enough to show what it misses.
const REST: Duration = Duration::from_millis(100);

const COST: &str = "files are read from disk again, anonymous memory from swap, when they are used";

pub(super) fn reclaim(group: &Group, goal: Goal, terms: &mut Terms) -> Result<Report, LeverError> {
    let began = Instant::now();
    let before = group.current()?;
    let swap = swap(group)?;
    let sample = group.sample()?;
    let plan = Plan::new(&sample, before, swap.room, goal);
    let mut notes = vec![plan.parts(), plan.why_this_floor(goal)];
    notes.extend(plan.why_anon_stays(swap));
    if plan.anon > Bytes::ZERO && Swap::is_in_ram(group.root) {
        notes.push("swap is in RAM here (zram): the host gets back less than leaves the group".to_owned());
    }
    if sample.pressure.is_none() {
        notes.push("no memory.pressure (PSI) here: only what is read back tells that it hurts".to_owned());
    }
    let on = format!("what is charged to {}", group.path.display());
    let mut lever = Lever::planned("memory-reclaim", on, plan.predicted, COST);
    if !terms.dry_run && plan.predicted > Bytes::ZERO {
        let anon = plan.anon > Bytes::ZERO;
        let mut live = Live::new(group, began, before, swap.total > Bytes::ZERO && !anon, terms)?;
        lever.short = steps::run(&mut live, plan.predicted, plan.floor, anon).err();
        // What is on its way to swap is charged until it is written.
        lever.returned = Some(before - settled(RCU, || group.current().unwrap_or(before)));
        if live.asked_too_much {
            notes.push(
                "this kernel cannot be told to leave anonymous memory alone (about 6.9): some may be in swap now"
                    .to_owned(),
            );
        }
    }
    Ok(Report::of(vec![lever], notes, began))
}

/// The host's swap, as far as this group and those above it may use it.
fn swap(group: &Group) -> Result<Swap, LeverError> {
    let mut swap = Swap::read(group.root)?;
    for path in group.path.ancestors() {
        let Ok(above) = group.hierarchy.sample(path) else { continue };
        if let Some(limit) = above.swap_limit {
            swap.room = swap.room.min(limit - above.swap.unwrap_or_default());
        }
    }
    Ok(swap)
}

/// A group of the running kernel.
struct Live<'a, 't> {
    group: &'a Group<'a>,
    dir: Root,
    file: File,
    began: Instant,
    before: Bytes,
    /// Whether anonymous memory is to be left alone although there is swap: the kernel is told so, if it can be.
    spare_anon: bool,
    /// It could not be told.
    asked_too_much: bool,
    terms: &'a mut Terms<'t>,
}

impl<'a, 't> Live<'a, 't> {
    fn new(
        group: &'a Group<'a>,
        began: Instant,
        before: Bytes,
        spare_anon: bool,
        terms: &'a mut Terms<'t>,
    ) -> Result<Live<'a, 't>, LeverError> {
        let path = group.file("memory.reclaim");
        let file = Knob::at(path.clone(), Right::DacOverride)?.into_file();
        let dir = Root::at(path.parent().unwrap_or(&path))?;
        let mut live = Live { group, dir, file, began, before, spare_anon, asked_too_much: false, terms };
        // Asking for nothing takes nothing, and tells whether the word is known.
        if spare_anon && live.file.write_all(b"0 swappiness=0").is_err() {
            live.spare_anon = false;
            live.asked_too_much = true;
            if Swap::read(group.root)?.room == Bytes::ZERO {
                let why = "swap is nearly full, and this kernel (before about 6.9) cannot be told to leave anonymous \
                    memory alone";
                return Err(LeverError::Impossible(format!("{}: {why}", group.path.display())));
            }
        }
        Ok(live)
    }

    fn stalls(stall: Option<Pressure>) -> Option<Duration> {
        stall.map(|Pressure { some: Stall { total_us, .. }, .. }| Duration::from_micros(total_us))
    }
}

impl Steps for Live<'_, '_> {
    fn look(&mut self) -> Result<Look, String> {
        let sample: CgroupSample = self.group.sample().map_err(|error| error.to_string())?;
        let current = sample.current.unwrap_or_default();
        let refaults = sample.stat.refaults_file.unwrap_or(0) + sample.stat.refaults_anon.unwrap_or(0);
        Ok(Look {
            at: self.began.elapsed(),
            current,
            memory: Self::stalls(sample.pressure),
            io: Self::stalls(Pressure::read(&self.dir, "io.pressure").ok()),
            refaults: Pages(refaults),
            swap_room: swap(self.group).map_err(|error| error.to_string())?.room,
        })
    }

    fn ask(&mut self, bytes: Bytes) -> Answer {
        let text = if self.spare_anon { format!("{} swappiness=0", bytes.0) } else { bytes.0.to_string() };
        let mut file = match self.file.try_clone() {
            Ok(file) => file,
            Err(error) => return Answer::Failed(error.to_string()),
        };
        let (group, before, began) = (self.group, self.before, self.began);
        let watch = &mut *self.terms.watch;
        let mut tick = |_| watch(began.elapsed(), before - group.current().unwrap_or(before));
        match patiently(self.terms.patience, &mut tick, move || file.write_all(text.as_bytes())) {
            None => Answer::StillAtIt,
            Some(Ok(())) => Answer::Done,
            Some(Err(error)) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => Answer::Partly,
            Some(Err(error)) => {
                let path = group.file("memory.reclaim");
                Answer::Failed(Refusal::io(path, &error, &[Right::DacOverride]).to_string())
            }
        }
    }

    fn rest(&mut self) {
        std::thread::sleep(REST);
        let returned = self.before - self.group.current().unwrap_or(self.before);
        (self.terms.watch)(self.began.elapsed(), returned);
    }
}
