//! Will fork() succeed, and what will it cost? The kernel's own checks, applied to a sample.
//!
//! In the order of copy_process (kernel/fork.c, 6.18), the first that fails being the answer: RLIMIT_NPROC
//! (EAGAIN), threads-max (EAGAIN), the overcommit rule for each mapping (dup_mmap, ENOMEM), pid_max (EAGAIN),
//! pids.max of every cgroup above (EAGAIN). vm.max_map_count is not asked: a fork copies as many mappings as
//! there were. Memory itself is no condition: pages are charged when they are written later.

mod overcommit;

use ebbtide_observe::Bytes;
use ebbtide_observe::fork::ForkSample;
use serde::Serialize;

/// A limit that a fork can meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The limit's name as the kernel has it: "CommitLimit", "RLIMIT_NPROC", "pids.max".
    pub limit: &'static str,
    /// "ENOMEM" or "EAGAIN".
    pub errno: &'static str,
    /// What is compared with what.
    pub reason: String,
}

/// Whether a fork would succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It would, because of this.
    Succeeds(String),
    /// The kernel would refuse it.
    Refused(Refusal),
    /// What could be read does not decide it: why.
    Unknown(String),
}

/// What a fork would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// Whether it would succeed.
    pub outcome: Outcome,
    /// What the overcommit rule counts of the process.
    pub charge: Bytes,
    /// How far it can still grow before a fork is refused; `None`: no overcommit rule will refuse one. Under
    /// mode 0 this is the growth of its largest mapping.
    pub headroom: Option<Bytes>,
}

/// Applies the kernel's checks to `sample`.
pub fn predict(sample: &ForkSample) -> Prediction {
    let charge = sample.charge.map_or(sample.at_most, |c| c.total);
    let largest = sample.charge.map_or(sample.at_most, |c| c.largest);
    let rule = overcommit::Rule::of(sample);
    let memory = rule.refusal(largest, charge);
    let counts_before = [nproc(sample), threads(sample)].into_iter().flatten().next();
    let counts_after = [pid_max(sample), pids(sample)].into_iter().flatten().next();
    let headroom = rule.headroom(largest, charge);
    let outcome = match (counts_before, memory, counts_after) {
        (Some(count), _, _) => Outcome::Refused(count),
        // Without smaps the charge is only known to be no more than this: a refusal is not certain.
        (None, Some(refusal), _) if sample.charge.is_none() => {
            let reason = refusal.reason;
            Outcome::Unknown(format!(
                "its mappings could not be read; if all its private memory is charged, {reason}"
            ))
        }
        (None, Some(refusal), _) => Outcome::Refused(refusal),
        (None, None, Some(count)) => Outcome::Refused(count),
        (None, None, None) => Outcome::Succeeds(rule.allowance(largest, charge)),
    };
    Prediction { outcome, charge, headroom }
}

fn again(limit: &'static str, reason: String) -> Option<Refusal> {
    Some(Refusal { limit, errno: "EAGAIN", reason })
}

/// is_rlimit_overlimit: the child is counted already when it is asked, so the limit itself may be reached.
fn nproc(sample: &ForkSample) -> Option<Refusal> {
    let tasks = sample.user_tasks.as_ref()?;
    let max = tasks.max.filter(|&max| tasks.current >= max)?;
    again("RLIMIT_NPROC", format!("its user has {} tasks, and RLIMIT_NPROC is {max}", tasks.current))
}

fn threads(sample: &ForkSample) -> Option<Refusal> {
    let tasks = sample.tasks.as_ref()?;
    let max = tasks.max.filter(|&max| tasks.current >= max)?;
    again(
        "kernel.threads-max",
        format!("the host has {} tasks, and kernel.threads-max is {max}", tasks.current),
    )
}

/// alloc_pid takes ids from 300 (RESERVED_PIDS, once it has wrapped around) up to pid_max; every task has one.
fn pid_max(sample: &ForkSample) -> Option<Refusal> {
    const RESERVED: u64 = 300;
    let tasks = sample.tasks.as_ref()?;
    let max = sample.sysctls.get("kernel/pid_max").filter(|&max| tasks.current + RESERVED >= max)?;
    again("kernel.pid_max", format!("the host has {} tasks, and kernel.pid_max is {max}", tasks.current))
}

fn pids(sample: &ForkSample) -> Option<Refusal> {
    let (path, pids) =
        sample.pids.iter().find(|(_, pids)| pids.max.is_some_and(|max| pids.current >= max))?;
    let max = pids.max.unwrap_or_default();
    again(
        "pids.max",
        format!("cgroup {} has {} tasks, and its pids.max is {max}", path.display(), pids.current),
    )
}

/// How copy-on-write grows: measured shares of pages written by then.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Growth {
    /// Bytes written for the first time in the first second.
    pub per_second: f64,
    /// What it levels off at: the process writes to no more than this; infinite if no levelling off was seen.
    pub plateau: f64,
}

impl Growth {
    /// The growth through two measurements, the later twice as long after the beginning as the earlier: bytes
    /// written `half` and `full` after `seconds` / 2 and `seconds`.
    ///
    /// Pages written at random are new ones ever more seldom: after t there are P (1 - e^(-t/T)) of them. Two
    /// points that far apart give P and T in closed form.
    pub fn through(half: f64, full: f64, seconds: f64) -> Growth {
        let ratio = full / half;
        // Twice as much in twice the time: no plateau yet. The other way round: no growth at all any more.
        if half <= 0.0 || ratio >= 1.98 {
            return Growth { per_second: full / seconds, plateau: f64::INFINITY };
        }
        let left = (ratio - 1.0).max(1e-6);
        let plateau = half / (1.0 - left);
        let t = -seconds / 2.0 / left.ln();
        Growth { per_second: plateau * (1.0 - (-1.0 / t).exp()), plateau: plateau.max(full) }
    }

    /// Seconds until `room` bytes are copied; `None` if that never comes.
    pub fn seconds_until(&self, room: Bytes) -> Option<f64> {
        let room = room.0 as f64;
        if self.per_second <= 0.0 || room >= self.plateau {
            return None;
        }
        if self.plateau.is_infinite() {
            return Some(room / self.per_second);
        }
        let t = -1.0 / (1.0 - (self.per_second / self.plateau).min(0.999_999)).ln();
        Some(-t * (1.0 - room / self.plateau).ln())
    }
}

/// What copy-on-write runs into first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    /// "memory limit of cgroup /a" or "the host's memory".
    pub limit: String,
    /// The limit.
    pub bytes: Bytes,
    /// What is left below it, counting what the kernel drops first.
    pub room: Bytes,
}

/// The tightest of the host's memory and the limits of the process's cgroups.
pub fn ceiling(sample: &ForkSample) -> Ceiling {
    let memory = &sample.memory;
    let host = Ceiling {
        limit: "the host's memory".to_owned(),
        bytes: memory.mem_total + memory.swap_total,
        room: memory.mem_available + memory.swap_free,
    };
    let groups = sample.groups.iter().filter_map(|group| {
        let bytes = group.limit?;
        let limit = format!("the memory limit of cgroup {}", group.path.display());
        Some(Ceiling { limit, bytes, room: bytes - (group.current - group.droppable) })
    });
    groups.fold(host, |tightest, next| if next.room < tightest.room { next } else { tightest })
}

/// Resident memory that a fork shares and writing would copy: all of it at worst.
pub fn worst_case(sample: &ForkSample) -> Bytes {
    sample.copied.as_ref().map_or(sample.rss_anon, |copied| copied.base_pages + copied.huge_pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::cgroup::Pids;
    use ebbtide_observe::fork::{Count, MemoryGroup};
    use ebbtide_observe::process::detail::Charge;

    fn sample() -> ForkSample {
        let mut sample = ForkSample { kernel: (6, 1), ..ForkSample::default() };
        sample.memory.mem_total = Bytes::from_gib(24);
        sample.memory.mem_available = Bytes::from_gib(10);
        sample.charge =
            Some(Charge { total: Bytes::from_gib(40), largest: Bytes::from_gib(20), largest_start: 0 });
        sample
    }

    fn limit(sample: &ForkSample) -> Option<&'static str> {
        match predict(sample).outcome {
            Outcome::Succeeds(_) => None,
            Outcome::Refused(refusal) => Some(refusal.limit),
            Outcome::Unknown(reason) => panic!("{reason}"),
        }
    }

    #[test]
    fn counts_are_asked_in_the_kernels_order() {
        let mut sample = sample();
        assert_eq!(limit(&sample), None);
        let full = |max| Count { current: 10, max: Some(max) };
        sample.pids = vec![
            ("/a/b".into(), Pids { current: 3, max: None }),
            ("/a".into(), Pids { current: 10, max: Some(10) }),
        ];
        assert_eq!(limit(&sample), Some("pids.max"));
        let Outcome::Refused(refusal) = predict(&sample).outcome else { panic!("it is refused") };
        assert!(refusal.reason.contains("cgroup /a has 10") && refusal.errno == "EAGAIN");
        sample.charge = sample.charge.map(|c| Charge { largest: Bytes::from_gib(25), ..c });
        assert_eq!(limit(&sample), Some("MemTotal + SwapTotal"));
        sample.tasks = Some(full(10));
        assert_eq!(limit(&sample), Some("kernel.threads-max"));
        sample.user_tasks = Some(full(10));
        assert_eq!(limit(&sample), Some("RLIMIT_NPROC"));
        sample.user_tasks = Some(full(11));
        assert_eq!(limit(&sample), Some("kernel.threads-max"));
    }

    #[test]
    fn without_smaps_only_a_yes_is_certain() {
        let mut sample = sample();
        sample.charge = None;
        sample.at_most = Bytes::from_gib(23);
        assert_eq!(limit(&sample), None);
        sample.at_most = Bytes::from_gib(25);
        assert!(matches!(predict(&sample).outcome, Outcome::Unknown(_)));
    }

    #[test]
    fn the_tightest_ceiling_counts() {
        let mut sample = sample();
        assert_eq!(ceiling(&sample).room, Bytes::from_gib(10));
        let group = |path: &str, gib, limit: Option<u64>| MemoryGroup {
            path: path.into(),
            current: Bytes::from_gib(gib),
            limit: limit.map(Bytes::from_gib),
            droppable: Bytes::from_gib(1),
        };
        sample.groups = vec![group("/a/b", 3, None), group("/a", 3, Some(4)), group("/", 9, Some(20))];
        let tightest = ceiling(&sample);
        assert_eq!((&*tightest.limit, tightest.room), ("the memory limit of cgroup /a", Bytes::from_gib(2)));
    }

    #[test]
    fn growth_levels_off_where_the_measurements_do() {
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
        // P = 100, T = 1 s, after 1 and 2 s.
        let written = |t: f64| 100.0 * (1.0 - (-t).exp());
        let growth = Growth::through(written(1.0), written(2.0), 2.0);
        assert!(close(growth.plateau, 100.0) && close(growth.per_second, written(1.0)), "{growth:?}");
        assert!(close(growth.seconds_until(Bytes(50)).unwrap(), 2f64.ln()));
        assert_eq!(growth.seconds_until(Bytes(101)), None);
        let steady = Growth::through(10.0, 20.0, 2.0);
        assert!(close(steady.seconds_until(Bytes(1000)).unwrap(), 100.0));
        assert_eq!(Growth::through(0.0, 0.0, 2.0).seconds_until(Bytes(1)), None);
        // Always the same pages: all written early, none later.
        let hot = Growth::through(30.0, 30.0, 2.0);
        assert!(close(hot.plateau, 30.0) && hot.seconds_until(Bytes(40)).is_none());
    }
}
