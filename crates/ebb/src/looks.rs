//! Looks into the heaps of many processes: the largest first, on two threads, until a time is up.
//!
//! Invariants: no look goes on beyond the deadline by more than one question to the kernel; none takes more than half
//! of the time that is left, so that a huge process leaves some for the others; every process is in one of the counts.
//! Reading faults no page in and stops nothing, so it is done without being asked for.

use crate::cli;
use ebbtide_explain::rules::Inside;
use ebbtide_heaps::{Fault, Files, Heap, Kind, Look, LookError};
use ebbtide_observe::process::{Memory, ProcSample, Process};
use ebbtide_observe::{Bytes, ReadError, Root, Unread, unless_root};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// More threads than this would be noticed by who works here.
const THREADS: usize = 2;

/// A process with less anonymous memory than this has too little to give back.
const FLOOR: Bytes = Bytes::from_mib(1);

/// Looks that would have to be shorter are not begun: the least that there is to read takes 1 to 4 ms.
const SHORTEST: Duration = Duration::from_millis(5);

/// How long to look.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Budget {
    /// Look into the heaps of the largest processes, for so long at most
    #[arg(long, value_name = "TIME", value_parser = cli::duration, default_value = "1s")]
    heaps: Duration,
    /// Look into no heap
    #[arg(long, conflicts_with = "heaps")]
    no_heaps: bool,
}

impl Budget {
    /// For reports in which heaps play no part.
    pub(crate) const NONE: Budget = Budget { heaps: Duration::ZERO, no_heaps: true };

    /// Whether to look at all.
    pub(crate) fn is_some(self) -> bool {
        !self.no_heaps
    }
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { heaps: Duration::from_secs(1), no_heaps: false }
    }
}

/// What was seen, and of how many processes nothing was.
#[derive(Debug, Default)]
pub(crate) struct Looks<'p> {
    /// By pid.
    seen: Vec<Inside<'p>>,
    /// Why something was not looked into that is worth it, and how many.
    missed: BTreeMap<String, usize>,
    /// Too small, ended since, or such that not even its size may be read.
    passed_over: usize,
}

/// What became of one look.
enum Outcome {
    Seen(Vec<Heap>),
    Missed(String),
    Ended,
}

impl<'p> Looks<'p> {
    /// Looks into `processes`.
    pub(crate) fn into(root: &Root, processes: &[&'p ProcSample], budget: Budget) -> Looks<'p> {
        let mut looks = Looks::default();
        if !budget.is_some() || !root.is_live() {
            return looks;
        }
        let deadline = Instant::now() + budget.heaps;
        let anonymous = |p: &ProcSample| match p.memory {
            Memory::Read(counters) => counters.anonymous,
            Memory::None | Memory::Denied => Bytes::ZERO,
        };
        let mut worth: Vec<&ProcSample> =
            processes.iter().copied().filter(|p| anonymous(p) >= FLOOR).collect();
        worth.sort_by_key(|p| std::cmp::Reverse(anonymous(p)));
        let files = Files::default();
        let next = AtomicUsize::new(0);
        let some = || {
            let mut outcomes = Vec::new();
            while let Some(process) = worth.get(next.fetch_add(1, Ordering::Relaxed)) {
                outcomes.push((*process, look(root, process, &files, budget, deadline)));
            }
            outcomes
        };
        let threads = THREADS.min(worth.len());
        let outcomes = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(some)).collect();
            let mut all = some();
            // A thread that panicked has said why; what it looked into counts as ended.
            others.into_iter().for_each(|other| all.extend(other.join().unwrap_or_default()));
            all
        });
        for (process, outcome) in outcomes {
            match outcome {
                Outcome::Seen(heaps) => looks.seen.push(Inside { process, heaps }),
                Outcome::Missed(why) => *looks.missed.entry(why).or_default() += 1,
                Outcome::Ended => {}
            }
        }
        looks.passed_over = processes.len() - looks.seen.len() - looks.missed.values().sum::<usize>();
        looks.seen.sort_by_key(|inside| inside.process.pid);
        looks
    }

    /// What was seen, by pid.
    pub(crate) fn seen(&self) -> &[Inside<'p>] {
        &self.seen
    }

    /// What was seen inside process `pid`.
    pub(crate) fn of(&self, pid: u32) -> Option<&Inside<'p>> {
        self.seen.binary_search_by_key(&pid, |inside| inside.process.pid).ok().map(|at| &self.seen[at])
    }

    /// Of how many processes nothing was seen.
    pub(crate) fn unseen(&self) -> usize {
        self.passed_over + self.missed.values().sum::<usize>()
    }

    /// What is missing, and what would help.
    pub(crate) fn unread(&self) -> Vec<Unread> {
        let missed = |(why, &count): (&String, &usize)| {
            let processes = if count == 1 { "process" } else { "processes" };
            Unread { what: format!("the heaps of {count} {processes}"), why: why.clone() }
        };
        self.missed.iter().map(missed).collect()
    }
}

/// Looks into one process, until `deadline` at most.
fn look(root: &Root, sample: &ProcSample, files: &Files, budget: Budget, deadline: Instant) -> Outcome {
    let seconds = budget.heaps.as_secs_f64();
    let late = || format!("not within {seconds} s; --heaps {}s takes longer", (seconds * 10.0).ceil());
    let time = deadline.saturating_duration_since(Instant::now()) / 2;
    if time < SHORTEST {
        return Outcome::Missed(late());
    }
    let Ok(process) = Process::open(root, sample.pid) else { return Outcome::Ended };
    let look = Look::within(&process, time, files);
    // Its pid may have been given to another one.
    match process.stat() {
        Ok(stat) if stat.start_time == sample.stat.start_time => {}
        _ => return Outcome::Ended,
    }
    match look {
        Ok(look) => {
            let known = look.heaps.into_iter().filter(|heap| heap.kind != Kind::Unknown);
            // Its addresses may be thousands of ranges, and nobody asks for them any more.
            Outcome::Seen(known.map(|heap| Heap { claims: Vec::new(), ..heap }).collect())
        }
        Err(LookError::Memory(Fault::Ended) | LookError::Read(ReadError::Vanished { .. })) => Outcome::Ended,
        Err(LookError::Memory(Fault::Overdue)) => Outcome::Missed(late()),
        Err(LookError::Memory(Fault::Denied(_)) | LookError::Read(ReadError::Denied { .. })) => {
            Outcome::Missed(unless_root("permission denied"))
        }
        Err(error) => Outcome::Missed(error.to_string()),
    }
}
