//! What a value of a kernel setting would really do on this host: nothing, harm, or what it says.
//!
//! Used before a change is applied and for the lines of sysctl files. Figures are this host's, read now; where a file
//! sets several settings together, they are judged together.

mod limits;
mod writeback;

pub(super) use limits::own_min_free;

use ebbtide_observe::host::{Meminfo, Swap};
use ebbtide_observe::{Bytes, ReadError, Root};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a line or a variable does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It does harm here.
    Harmful,
    /// It is refused: no value of this setting.
    Invalid,
    /// It is not the name of anything, but nearly.
    Misspelt,
    /// It does nothing as things are.
    NoEffect,
    /// Something later says otherwise.
    Overridden,
    /// The kernel or program no longer has it.
    Obsolete,
    /// This kernel or program does not have it.
    Unknown,
    /// It does what it says, which is seldom what is wanted.
    Doubtful,
    /// It does what it says.
    Effective,
}

/// A verdict and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// What.
    pub verdict: Verdict,
    /// Why, with figures.
    pub says: String,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
}

impl Remark {
    pub(crate) fn new(verdict: Verdict, says: impl Into<String>) -> Remark {
        Remark { verdict, says: says.into(), instead: None }
    }

    #[must_use]
    pub(crate) fn instead(self, instead: impl Into<String>) -> Remark {
        Remark { instead: Some(instead.into()), ..self }
    }
}

/// What settings are judged by: this host as it is, and as a file or a plan would make it.
#[derive(Debug)]
pub struct Host<'r> {
    root: &'r Root,
    mem: Meminfo,
    swaps: Vec<Swap>,
    kernel: (u64, u64),
    planned: BTreeMap<String, String>,
}

impl<'r> Host<'r> {
    /// Reads what is needed of `root`. An error only without /proc/meminfo.
    pub fn read(root: &'r Root) -> Result<Host<'r>, ReadError> {
        let release = root.read_line("proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
        Ok(Host {
            root,
            mem: Meminfo::read(root)?,
            swaps: Swap::read(root).unwrap_or_default(),
            kernel: (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)),
            planned: BTreeMap::new(),
        })
    }

    /// The same host once `key` ("vm.overcommit_memory") is `value`.
    pub(crate) fn plan(&mut self, key: &str, value: &str) {
        self.planned.insert(key.to_owned(), value.to_owned());
    }

    /// The number that `key` will be; `None` where this kernel lacks it.
    fn number(&self, key: &str) -> Option<u64> {
        match self.planned.get(key) {
            Some(value) => value.trim().parse().ok(),
            None => self.root.read_number(&format!("proc/sys/{}", key.replace('.', "/"))).ok(),
        }
    }

    fn has_swap(&self) -> bool {
        !self.swaps.is_empty() || self.mem.swap_total > Bytes::ZERO
    }

    /// What `key=value` would do. The value has been validated where ebb knows the setting.
    pub fn judge(&self, key: &str, value: &str) -> Remark {
        use Verdict::{Doubtful, Effective, Harmful, NoEffect};
        let Ok(number) = value.trim().parse::<u64>() else {
            return Remark::new(Effective, "takes effect");
        };
        let remark = match key {
            "vm.overcommit_memory" => self.overcommit_mode(number),
            "vm.overcommit_ratio" | "vm.overcommit_kbytes" => self.commit_limit(key, number),
            "vm.user_reserve_kbytes" | "vm.admin_reserve_kbytes" => self.reserve(),
            "vm.min_free_kbytes" => self.min_free(number),
            "vm.watermark_scale_factor" => self.watermark(number),
            "vm.swappiness" => self.swappiness(number),
            "vm.page-cluster" if !self.has_swap() => {
                Some(Remark::new(NoEffect, "there is no swap to read ahead from"))
            }
            "vm.vfs_cache_pressure" => self.cache_pressure(number),
            "vm.max_map_count" if number < 65_530 => Some(Remark::new(
                Harmful,
                "below the kernel's own 65530: programs with many threads or mappings fail with ENOMEM",
            )),
            "vm.compaction_proactiveness" if number >= 80 => Some(Remark::new(
                Doubtful,
                "kcompactd then works nearly all the time; the default is 20, and 0 turns it off",
            )),
            "vm.zone_reclaim_mode" if number > 0 => Some(self.zone_reclaim()),
            "vm.nr_hugepages" => self.huge_pages(number),
            "vm.dirty_ratio"
            | "vm.dirty_bytes"
            | "vm.dirty_background_ratio"
            | "vm.dirty_background_bytes" => self.writeback(key, number),
            "vm.panic_on_oom" if number > 0 => Some(self.panic_on_oom(number)),
            "vm.oom_kill_allocating_task" if number > 0 => Some(Remark::new(
                Doubtful,
                "the OOM killer then kills whoever asks next, not who took the memory: any small service can be it",
            )),
            "vm.drop_caches" | "vm.compact_memory" => Some(Remark::new(
                Harmful,
                "this is no setting but an act, done once when the file is read: at boot there is nothing to drop or \
                 move, and on every reload it throws away what has to be read again",
            )),
            _ => None,
        };
        remark.unwrap_or_else(|| Remark::new(Effective, self.effect(key, number)))
    }

    fn effect(&self, key: &str, value: u64) -> String {
        let now = self.root.read_number(&format!("proc/sys/{}", key.replace('.', "/")));
        match now {
            Ok(now) if now == value => "in effect: it is so now".to_owned(),
            Ok(now) => format!("takes effect; it is {now} now"),
            Err(_) => "takes effect".to_owned(),
        }
    }

    fn swappiness(&self, value: u64) -> Option<Remark> {
        use Verdict::{Doubtful, Invalid, NoEffect};
        if value > 100 && self.kernel != (0, 0) && self.kernel < (5, 8) {
            return Some(Remark::new(Invalid, "kernels before 5.8 take 100 at most"));
        }
        if !self.has_swap() {
            return Some(Remark::new(NoEffect, "there is no swap: nothing is swapped, whatever it says"));
        }
        let says = "0 does not mean 'no swap' nor 'as late as is good': the kernel swaps only when free memory and file \
                    pages together are below the high watermark, and until then throws out pages of programs and files";
        (value == 0).then(|| Remark::new(Doubtful, says).instead("vm.swappiness = 1 to 10"))
    }

    fn zone_reclaim(&self) -> Remark {
        let nodes = self.root.list("sys/devices/system/node").unwrap_or_default();
        let node = |name: &String| {
            name.strip_prefix("node").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        match nodes.iter().filter(|name| node(name)).count() {
            0 | 1 => Remark::new(Verdict::NoEffect, "this machine has one memory node"),
            nodes => Remark::new(
                Verdict::Doubtful,
                format!(
                    "each of the {nodes} nodes reclaims its own page cache rather than use another's free memory"
                ),
            ),
        }
    }

    fn panic_on_oom(&self, value: u64) -> Remark {
        let after = match self.number("kernel.panic") {
            Some(0) | None => "and stays down, as kernel.panic is 0".to_owned(),
            Some(seconds) => format!("and restarts after {seconds} s (kernel.panic)"),
        };
        let when = if value >= 2 { "any OOM, one cgroup's included," } else { "an OOM of the machine" };
        Remark::new(
            Verdict::Harmful,
            format!("{when} panics the whole machine, {after}, where one process would be killed"),
        )
    }

    /// The vm.vfs_cache_pressure that is fair: vfs_cache_pressure_denom where the kernel has that (6.16), else 100.
    pub(super) fn fair_cache_pressure(&self) -> u64 {
        self.number("vm.vfs_cache_pressure_denom").unwrap_or(100).max(1)
    }

    fn cache_pressure(&self, value: u64) -> Option<Remark> {
        let fair = self.fair_cache_pressure();
        let times = value as f64 / fair as f64;
        let remark = match value {
            0 => Remark::new(
                Verdict::Harmful,
                "dentries and inodes are never reclaimed then, and grow until the OOM killer comes",
            ),
            _ if times > 10.0 => Remark::new(
                Verdict::Harmful,
                format!(
                    "no cap: it multiplies by {times:.0} how many dentries and inodes each reclaim looks for, more than \
                     there are, and reclaim contends for their locks; while memory is free nothing is dropped all the same"
                ),
            ),
            _ if times > 2.0 => Remark::new(
                Verdict::Doubtful,
                "drops dentries and inodes sooner than file pages, but only while memory is reclaimed: it is no cap on them",
            ),
            _ => return None,
        };
        Some(remark.instead(format!("vm.vfs_cache_pressure = {fair}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;

    /// 16 GiB, 8 GiB available, 10 GiB committed, no swap, overcommit mode 0.
    pub(super) fn machine() -> FakeRoot {
        FakeRoot::new()
            .file(
                "proc/meminfo",
                "MemTotal: 16777216 kB\nMemFree: 4194304 kB\nMemAvailable: 8388608 kB\nHugepagesize: 2048 kB\n\
                 CommitLimit: 8388608 kB\nCommitted_AS: 10485760 kB\n",
            )
            .file("proc/sys/kernel/osrelease", "6.1.0-13-amd64\n")
            .file("proc/sys/kernel/panic", "0\n")
            .file("proc/sys/vm/overcommit_memory", "0\n")
            .file("proc/sys/vm/overcommit_ratio", "50\n")
            .file("proc/sys/vm/overcommit_kbytes", "0\n")
            .file("proc/sys/vm/swappiness", "60\n")
            .file("proc/sys/vm/dirty_ratio", "20\n")
            .file("proc/sys/vm/dirty_background_ratio", "10\n")
            .dir("sys/devices/system/node/node0")
    }

    pub(super) fn verdict(fake: &FakeRoot, planned: &[(&str, &str)], key: &str, value: &str) -> Verdict {
        let root = Root::at(fake.path()).unwrap();
        let mut host = Host::read(&root).unwrap();
        planned.iter().for_each(|(key, value)| host.plan(key, value));
        let remark = host.judge(key, value);
        assert!(!remark.says.is_empty());
        remark.verdict
    }

    /// That all of `lines`, "key=value key=value", are judged so.
    pub(super) fn all(fake: &FakeRoot, expected: Verdict, lines: &str) {
        for line in lines.split(' ') {
            let (key, value) = line.split_once('=').unwrap();
            assert_eq!(verdict(fake, &[], key, value), expected, "{line}");
        }
    }

    #[test]
    fn what_values_do_here() {
        use Verdict::*;
        let fake = machine();
        all(&fake, NoEffect, "vm.swappiness=10 vm.page-cluster=0 vm.zone_reclaim_mode=1");
        all(
            &fake,
            Harmful,
            "vm.vfs_cache_pressure=0 vm.vfs_cache_pressure=100000 vm.max_map_count=1000 \
             vm.panic_on_oom=1 vm.drop_caches=3",
        );
        all(
            &fake,
            Doubtful,
            "vm.vfs_cache_pressure=500 vm.compaction_proactiveness=100 vm.oom_kill_allocating_task=1",
        );
        all(
            &fake,
            Effective,
            "vm.vfs_cache_pressure=50 vm.max_map_count=262144 vm.zone_reclaim_mode=0 vm.anything=x",
        );
        let fake =
            fake.file("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1000 0 -2\n");
        assert_eq!(verdict(&fake, &[], "vm.swappiness", "10"), Effective);
        assert_eq!(verdict(&fake, &[], "vm.swappiness", "0"), Doubtful);
        fake.set("proc/sys/kernel/osrelease", "5.4.0\n");
        assert_eq!(verdict(&fake, &[], "vm.swappiness", "150"), Invalid);
    }

    proptest! {
        #[test]
        fn never_panics(number: u64, release: String) {
            let fake = machine();
            fake.set("proc/sys/kernel/osrelease", release);
            let root = Root::at(fake.path()).unwrap();
            let host = Host::read(&root).unwrap();
            for setting in crate::tune::SETTINGS {
                let _ = host.judge(setting.name, &number.to_string());
            }
            let _ = host.judge("vm.nr_hugepages", &number.to_string());
        }
    }
}
