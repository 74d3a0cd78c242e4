//! __vm_enough_memory (mm/util.c; before 5.10 mm/mmap.c), as a fork meets it: once for each mapping that is
//! charged (`ac` in VmFlags) and copied (no `dc`).

use super::Refusal;
use ebbtide_observe::Bytes;
use ebbtide_observe::fork::ForkSample;

/// Which of the kernel's rules holds, with its figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Mode 1: everything passes.
    Always,
    /// Mode 0 since 5.2 (8c7829b04c52): each mapping alone against RAM and swap.
    Guess { total: Bytes },
    /// Mode 0 before: each mapping alone against what is free or could be freed now.
    GuessFree { free: Bytes },
    /// Mode 2: everything promised so far and the whole process again against the limit.
    Never { allowed: Bytes, committed: Bytes },
}

impl Rule {
    pub(super) fn of(sample: &ForkSample) -> Rule {
        let sysctl = |name| sample.sysctls.get(name);
        let admin = match sample.sys_admin {
            true => Bytes::ZERO,
            false => Bytes::from_kib(sysctl("vm/admin_reserve_kbytes").unwrap_or(0)),
        };
        let memory = &sample.memory;
        match sysctl("vm/overcommit_memory").unwrap_or(0) {
            1 => Rule::Always,
            2 => {
                let user = Bytes::from_kib(sysctl("vm/user_reserve_kbytes").unwrap_or(0));
                let reserve = admin + user.min(Bytes(sample.size.0 / 32));
                Rule::Never { allowed: memory.commit_limit - reserve, committed: memory.committed_as }
            }
            _ if sample.kernel >= (5, 2) => Rule::Guess { total: memory.mem_total + memory.swap_total },
            _ => {
                // NR_FILE_PAGES holds buffers and the swap cache, too.
                let file = memory.cached + memory.buffers + memory.swap_cached - memory.shmem;
                let reclaimable = memory.k_reclaimable.max(memory.s_reclaimable);
                let free = memory.mem_free + file + memory.swap_free + reclaimable;
                Rule::GuessFree { free: free - sample.reserve - admin }
            }
        }
    }

    /// Why a process is refused whose largest charged mapping is `largest` and whose charge is `charge`.
    pub(super) fn refusal(self, largest: Bytes, charge: Bytes) -> Option<Refusal> {
        let (refused, limit, reason) = match self {
            Rule::Always => return None,
            Rule::Guess { total } => {
                let reason =
                    format!("its largest mapping, {largest}, is more than RAM and swap together, {total}");
                (largest > total, "MemTotal + SwapTotal", reason)
            }
            Rule::GuessFree { free } => {
                let reason = format!("its largest mapping, {largest}, is more than can be freed now, {free}");
                (largest >= free, "free memory", reason)
            }
            Rule::Never { allowed, committed } => {
                let reason = format!(
                    "mode 2 allows {allowed} (CommitLimit less the reserves), {committed} is promised already, and the \
                     child is charged {charge} again"
                );
                (committed + charge >= allowed, "CommitLimit", reason)
            }
        };
        refused.then_some(Refusal { limit, errno: "ENOMEM", reason })
    }

    /// Why it is not refused.
    pub(super) fn allowance(self, largest: Bytes, charge: Bytes) -> String {
        match self {
            Rule::Always => "vm.overcommit_memory is 1: every request passes".to_owned(),
            Rule::Guess { total } => {
                format!("its largest mapping, {largest}, is within RAM and swap together, {total}")
            }
            Rule::GuessFree { free } => {
                format!("its largest mapping, {largest}, is within what can be freed now, {free}")
            }
            Rule::Never { allowed, committed } => {
                format!(
                    "mode 2 allows {allowed}, of which {committed} is promised; the child is charged {charge}"
                )
            }
        }
    }

    /// How far the process can grow before a fork is refused. Under mode 0 growth counts where it makes the
    /// largest mapping larger, which a heap's does.
    pub(super) fn headroom(self, largest: Bytes, charge: Bytes) -> Option<Bytes> {
        match self {
            Rule::Always => None,
            Rule::Guess { total } => Some(total - largest),
            // What it grows by is missing from what is free, and asked for again at the fork.
            Rule::GuessFree { free } => Some(Bytes((free - largest).0 / 2)),
            // Growth is charged when it happens, and again at the fork.
            Rule::Never { allowed, committed } => Some(Bytes((allowed - committed - charge).0 / 2)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::Root;
    use ebbtide_observe::host::Sysctls;
    use ebbtide_testkit::FakeRoot;

    fn sysctls(mode: u64) -> Sysctls {
        let fake = FakeRoot::new()
            .file("proc/sys/vm/overcommit_memory", mode.to_string())
            .file("proc/sys/vm/admin_reserve_kbytes", "8192\n")
            .file("proc/sys/vm/user_reserve_kbytes", "131072\n");
        Sysctls::read(&Root::at(fake.path()).unwrap())
    }

    fn sample(mode: u64, kernel: (u32, u32)) -> ForkSample {
        let mut sample = ForkSample { kernel, sysctls: sysctls(mode), ..ForkSample::default() };
        let memory = &mut sample.memory;
        (memory.mem_total, memory.swap_total) = (Bytes::from_gib(16), Bytes::from_gib(4));
        (memory.mem_free, memory.swap_free) = (Bytes::from_gib(1), Bytes::from_gib(3));
        (memory.cached, memory.shmem) = (Bytes::from_gib(6), Bytes::from_gib(2));
        memory.s_reclaimable = Bytes::from_gib(1);
        (memory.commit_limit, memory.committed_as) = (Bytes::from_gib(12), Bytes::from_gib(8));
        sample.size = Bytes::from_gib(32);
        sample
    }

    #[test]
    fn mode_0_looks_at_one_mapping_alone() {
        let rule = Rule::of(&sample(0, (5, 2)));
        let gib = Bytes::from_gib;
        assert_eq!(rule.refusal(gib(20), gib(100)), None);
        assert_eq!(rule.refusal(gib(21), gib(21)).unwrap().limit, "MemTotal + SwapTotal");
        assert_eq!(rule.headroom(gib(5), gib(5)), Some(gib(15)));
    }

    #[test]
    fn mode_0_of_old_looks_at_what_is_free() {
        // 1 free + (6 - 2) file + 3 swap + 1 slab = 9 GiB, less 1 GiB reserve and 8 MiB for admins.
        let mut sample = sample(0, (4, 19));
        sample.reserve = Bytes::from_gib(1);
        let free = Bytes::from_gib(8) - Bytes::from_mib(8);
        assert_eq!(Rule::of(&sample), Rule::GuessFree { free });
        assert!(Rule::of(&sample).refusal(free, free).is_some());
        assert!(Rule::of(&sample).refusal(free - Bytes(4096), free).is_none());
        sample.sys_admin = true;
        assert_eq!(Rule::of(&sample), Rule::GuessFree { free: Bytes::from_gib(8) });
        assert_eq!(Rule::of(&sample).headroom(Bytes::from_gib(2), Bytes::ZERO), Some(Bytes::from_gib(3)));
    }

    #[test]
    fn mode_1_refuses_nothing() {
        let rule = Rule::of(&sample(1, (6, 18)));
        assert_eq!(
            (rule.refusal(Bytes(u64::MAX), Bytes(u64::MAX)), rule.headroom(Bytes(1), Bytes(1))),
            (None, None)
        );
    }

    #[test]
    fn mode_2_counts_everything_and_keeps_reserves() {
        let mut sample = sample(2, (6, 18));
        let mib = Bytes::from_mib;
        // min(32 GiB / 32, 128 MiB) for the user, 8 MiB for admins.
        let allowed = Bytes::from_gib(12) - mib(136);
        assert_eq!(Rule::of(&sample), Rule::Never { allowed, committed: Bytes::from_gib(8) });
        let left = Bytes::from_gib(4) - mib(136);
        assert!(Rule::of(&sample).refusal(Bytes(1), left).is_some_and(|r| r.limit == "CommitLimit"));
        assert_eq!(Rule::of(&sample).refusal(left, left - mib(1)), None);
        assert_eq!(Rule::of(&sample).headroom(Bytes(1), left - mib(2)), Some(mib(1)));
        sample.sys_admin = true;
        sample.size = mib(64);
        assert_eq!(
            Rule::of(&sample),
            Rule::Never { allowed: Bytes::from_gib(12) - mib(2), committed: Bytes::from_gib(8) }
        );
    }
}
