//! v1: memory.force_empty, which takes all it can, swap included, and cannot be told how much.

use super::plan::Plan;
use super::{Goal, Group};
use crate::knob::Knob;
use crate::refused::{LeverError, Refusal, Right};
use crate::report::{Lever, Report};
use crate::slow::{Terms, patiently};
use crate::swap::Swap;
use ebbtide_observe::Bytes;
use std::io::Write;
use std::time::Instant;

const COST: &str = "it takes all it can and cannot be told how much: every file of the group is read from disk again, its \
    anonymous memory comes back from swap";

pub(super) fn reclaim(group: &Group, goal: Goal, terms: &mut Terms) -> Result<Report, LeverError> {
    let began = Instant::now();
    let before = group.current()?;
    if goal != Goal::Caches {
        let why = "this cgroup is of version 1, whose memory.force_empty takes all it can: leave --bytes and --floor out";
        return Err(LeverError::Impossible(why.to_owned()));
    }
    let swap = Swap::read(group.root)?;
    let sample = group.sample()?;
    let anon = sample.stat.inactive_anon.unwrap_or_default() + sample.stat.active_anon.unwrap_or_default();
    if swap.total > Bytes::ZERO && swap.room < anon {
        return Err(LeverError::Impossible(format!(
            "{}: memory.force_empty would push {anon} of anonymous memory to swap, which has room for {}: write 0 to the \
             group's memory.swappiness and swapoff, or let it be",
            group.path.display(),
            swap.room
        )));
    }
    let plan = Plan::new(&sample, before, swap.room, Goal::Floor(Bytes::ZERO));
    let mut lever = Lever::planned(
        "force-empty",
        format!("what is charged to {}", group.path.display()),
        plan.predicted,
        COST,
    );
    if !terms.dry_run {
        let path = group.file("memory.force_empty");
        let mut file = Knob::at(path.clone(), Right::DacOverride)?.into_file();
        let watch = &mut *terms.watch;
        let mut tick = |elapsed| watch(elapsed, before - group.current().unwrap_or(before));
        match patiently(terms.patience, &mut tick, move || file.write_all(b"0")) {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(Refusal::io(path, &error, &[Right::DacOverride]).into()),
            None => {
                lever.short =
                    Some("the kernel took longer than the time given for it (--patience)".to_owned())
            }
        }
        lever.returned = Some(before - group.current()?);
    }
    let notes = std::iter::once(plan.parts()).chain(plan.why_anon_stays(swap)).collect();
    Ok(Report::of(vec![lever], notes, began))
}
