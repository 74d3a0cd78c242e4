//! Which settings to change on this host, from what was found on it; nothing from folklore.
//!
//! Pure: findings and figures in, advice out. A rule fires on a finding or on a figure that says that the present value
//! does harm now; a healthy host gets no advice. What was found and no setting helps is said too.

mod reclaim;

use super::judge::{Host, Verdict};
use super::{Setting, judge};
use ebbtide_explain::rules::commit_setting;
use ebbtide_explain::{Cause, Finding};
use ebbtide_observe::host::HostSample;
use ebbtide_observe::process::Name;
use ebbtide_observe::{Bytes, Root};
use serde::Serialize;

/// What advice is made from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Where the settings are read.
    pub root: &'a Root,
    /// The host's own files.
    pub sample: &'a HostSample,
    /// What the host report found.
    pub findings: &'a [Finding],
    /// Processes whose huge pages hold nothing, with the finding about each.
    pub bloated: &'a [(u32, Name, Finding)],
    /// Processes with many mappings, and how many.
    pub mappings: &'a [(u32, Name, u64)],
}

/// A setting to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// Which.
    pub setting: &'static str,
    /// What it is.
    pub present: String,
    /// What it should be.
    pub proposed: String,
    /// The finding that this follows from, by its cause.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "id")]
    pub cause: Option<Cause>,
    /// That finding, or what was seen, with its figures.
    pub why: String,
    /// What can go wrong.
    pub danger: &'static str,
    /// What applies it for an hour.
    pub command: String,
}

fn id<S: serde::Serializer>(cause: &Option<Cause>, serializer: S) -> Result<S::Ok, S::Error> {
    cause.map(Cause::id).serialize(serializer)
}

/// All advice for a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Advised {
    /// What to change.
    pub advice: Vec<Advice>,
    /// What was found, and no setting helps.
    pub notes: Vec<String>,
}

impl Facts<'_> {
    /// What setting `name` is; `None` where this kernel lacks it.
    fn present(&self, name: &str) -> Option<String> {
        Setting::known(name).ok()?.read(self.root).ok()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.present(name)?.parse().ok()
    }

    fn found(&self, cause: Cause) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.cause == cause)
    }

    /// Advice to make `name` be `proposed`; none where it is so, or this kernel lacks it.
    fn change(
        &self,
        name: &str,
        proposed: impl ToString,
        cause: Option<Cause>,
        why: impl Into<String>,
    ) -> Option<Advice> {
        let setting = Setting::known(name).ok()?;
        let (present, proposed) = (setting.read(self.root).ok()?, proposed.to_string());
        (present != proposed).then(|| Advice {
            setting: setting.name,
            command: format!("ebb tune {name}={proposed} --apply --for 1h"),
            present,
            proposed,
            cause,
            why: why.into(),
            danger: setting.danger,
        })
    }
}

/// What to change on the host of `facts`.
pub fn advise(facts: &Facts) -> Advised {
    let rules: [fn(&Facts) -> Vec<Advice>; 8] = [
        harmful_now,
        overcommit,
        mappings,
        fragmentation,
        huge_pages,
        reclaim::watermarks,
        reclaim::swappiness,
        reclaim::writeback,
    ];
    let mut advised = Advised::default();
    for advice in rules.iter().flat_map(|rule| rule(facts)).chain(reclaim::dentries(facts)) {
        if !advised.advice.iter().any(|known| known.setting == advice.setting) {
            advised.advice.push(advice);
        }
    }
    if let Some(finding) = facts.found(Cause::SlabReclaimable)
        && !advised.advice.iter().any(|advice| advice.setting == "vm.vfs_cache_pressure")
    {
        advised.notes.push(format!(
            "{} No setting caps it: vm.vfs_cache_pressure only multiplies what reclaim looks at once memory is short. See \
             who makes it: ebb dentries --who 5s",
            finding.summary
        ));
    }
    advised
}

/// Present values that do harm here, whoever set them.
fn harmful_now(facts: &Facts) -> Vec<Advice> {
    let Ok(host) = Host::read(facts.root) else { return Vec::new() };
    let own = judge::own_min_free(facts.sample.meminfo.mem_total).to_string();
    let defaults = [
        ("vm.vfs_cache_pressure", "100"),
        ("vm.max_map_count", "65530"),
        ("vm.min_free_kbytes", own.as_str()),
    ];
    let advice = |(name, default): (&str, &str)| {
        let remark = host.judge(name, &facts.present(name)?);
        let harmful = remark.verdict == Verdict::Harmful;
        harmful.then(|| facts.change(name, default, None, format!("as it is now: {}", remark.says)))?
    };
    defaults.into_iter().filter_map(advice).collect()
}

/// Books that refuse memory which is there.
fn overcommit(facts: &Facts) -> Vec<Advice> {
    let Some(finding) = facts.found(Cause::OvercommitRefusal) else { return Vec::new() };
    let (mem, cause) = (&facts.sample.meminfo, Some(Cause::OvercommitRefusal));
    if facts.number("vm.overcommit_memory") != Some(2) {
        return facts.change("vm.overcommit_memory", 1, cause, &finding.summary).into_iter().collect();
    }
    // A quarter more than what is promised now, and what the refused fork would take.
    let fork = finding.levers.iter().any(|lever| lever.id == "overcommit-mode");
    let wanted = mem.committed_as.scaled(1.25) + if fork { finding.bytes } else { Bytes::ZERO };
    let (setting, value) = commit_setting(mem, facts.number("vm.overcommit_kbytes"), wanted);
    facts.change(setting, value, cause, &finding.summary).into_iter().collect()
}

/// From this share of the limit on there is little time left.
const NEARLY: f64 = 0.8;

fn mappings(facts: &Facts) -> Vec<Advice> {
    let Some(most) = facts.number("vm.max_map_count") else { return Vec::new() };
    let near = |&&(_, _, count): &&(u32, Name, u64)| count as f64 >= most as f64 * NEARLY;
    let Some((pid, name, count)) = facts.mappings.iter().filter(near).max_by_key(|(_, _, count)| count)
    else {
        return Vec::new();
    };
    let why = format!("{name} (pid {pid}) has {count} mappings of {most}: the next ones fail with ENOMEM");
    let proposed = count.saturating_mul(2).next_power_of_two().clamp(262_144, i32::MAX as u64);
    facts.change("vm.max_map_count", proposed, Some(Cause::OtherLimit), why).into_iter().collect()
}

fn fragmentation(facts: &Facts) -> Vec<Advice> {
    let Some(finding) = facts.found(Cause::PhysicalFragmentation) else { return Vec::new() };
    let cause = Some(Cause::PhysicalFragmentation);
    let proposed = match facts.number("vm.compaction_proactiveness") {
        Some(0..20) => 20,
        Some(20..50) => 50,
        _ => return Vec::new(),
    };
    facts.change("vm.compaction_proactiveness", proposed, cause, &finding.summary).into_iter().collect()
}

fn huge_pages(facts: &Facts) -> Vec<Advice> {
    let Some((pid, name, finding)) = facts.bloated.iter().max_by_key(|(_, _, finding)| finding.bytes) else {
        return Vec::new();
    };
    let (cause, why) = (Some(Cause::ThpBloat), format!("{name} (pid {pid}): {}", finding.summary));
    let filled = facts.change("khugepaged.max_ptes_none", 0, cause, &why);
    let everybody = facts.present("thp.enabled").is_some_and(|enabled| enabled == "always");
    let given = everybody.then(|| facts.change("thp.enabled", "madvise", cause, &why)).flatten();
    filled.into_iter().chain(given).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::host::{Meminfo, Stall, Swap};
    use ebbtide_testkit::FakeRoot;

    pub(super) fn machine() -> FakeRoot {
        let values = [
            ("vfs_cache_pressure", "100"),
            ("overcommit_memory", "0"),
            ("overcommit_ratio", "50"),
            ("overcommit_kbytes", "0"),
            ("min_free_kbytes", "67584"),
            ("watermark_scale_factor", "10"),
            ("compaction_proactiveness", "20"),
            ("max_map_count", "65530"),
            ("swappiness", "60"),
            ("dirty_ratio", "20"),
            ("dirty_bytes", "0"),
            ("dirty_background_ratio", "10"),
            ("dirty_background_bytes", "0"),
        ];
        let fake = FakeRoot::new()
            .file("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
            .file("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n")
            .file("sys/kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never\n")
            .file("sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none", "511\n");
        values
            .iter()
            .fold(fake, |fake, (name, value)| fake.file(format!("proc/sys/vm/{name}"), format!("{value}\n")))
    }

    pub(super) fn sample() -> HostSample {
        let meminfo = Meminfo {
            mem_total: Bytes::from_gib(16),
            mem_available: Bytes::from_gib(8),
            committed_as: Bytes::from_gib(10),
            commit_limit: Bytes::from_gib(8),
            ..Meminfo::default()
        };
        HostSample { meminfo, ..HostSample::default() }
    }

    /// "setting=value" of each advice; none of them does harm itself.
    pub(super) fn given(
        fake: &FakeRoot,
        sample: &HostSample,
        findings: &[Finding],
        bloated: &[(u32, Name, Finding)],
        mappings: &[(u32, Name, u64)],
    ) -> Vec<String> {
        let root = Root::at(fake.path()).unwrap();
        let advised = advise(&Facts { root: &root, sample, findings, bloated, mappings });
        for advice in &advised.advice {
            let proposed = Setting::known(advice.setting).unwrap().value(&advice.proposed).unwrap();
            let verdict = Host::read(&root).unwrap().judge(advice.setting, &proposed).verdict;
            assert!(!matches!(verdict, Verdict::Harmful | Verdict::Invalid), "{advice:?}");
            assert!(!advice.why.is_empty());
        }
        let mut all: Vec<String> =
            advised.advice.iter().map(|advice| format!("{}={}", advice.setting, advice.proposed)).collect();
        all.extend(advised.notes.iter().map(|_| "note".to_owned()));
        all
    }

    fn finding(cause: Cause) -> Finding {
        Finding::new(cause, Bytes::from_gib(1), 0.9, "what was found, with figures.")
    }

    #[test]
    fn a_healthy_host_gets_no_advice() {
        assert_eq!(given(&machine(), &sample(), &[], &[], &[(1, Name::new(b"x"), 300)]), [""; 0]);
    }

    #[test]
    fn books() {
        let fake = machine();
        let refusal = || [finding(Cause::OvercommitRefusal)];
        assert_eq!(given(&fake, &sample(), &refusal(), &[], &[]), ["vm.overcommit_memory=1"]);
        fake.set("proc/sys/vm/overcommit_memory", "2\n");
        // 12.5 of 16 GiB.
        assert_eq!(given(&fake, &sample(), &refusal(), &[], &[]), ["vm.overcommit_ratio=79"]);
        fake.set("proc/sys/vm/overcommit_kbytes", "8388608\n");
        assert_eq!(given(&fake, &sample(), &refusal(), &[], &[]), ["vm.overcommit_kbytes=13107200"]);
    }

    #[test]
    fn pages() {
        let fake = machine();
        let fragmented = [finding(Cause::PhysicalFragmentation)];
        assert_eq!(given(&fake, &sample(), &fragmented, &[], &[]), ["vm.compaction_proactiveness=50"]);
        fake.set("proc/sys/vm/compaction_proactiveness", "60\n");
        assert_eq!(given(&fake, &sample(), &fragmented, &[], &[]), [""; 0]);
        let bloat = [(7, Name::new(b"go"), finding(Cause::ThpBloat))];
        let both = ["khugepaged.max_ptes_none=0", "thp.enabled=madvise"];
        assert_eq!(given(&fake, &sample(), &[], &bloat, &[]), both);
        let many = [(7, Name::new(b"es"), 60_000)];
        assert_eq!(given(&fake, &sample(), &[], &[], &many), ["vm.max_map_count=262144"]);
    }

    #[test]
    fn what_does_harm_now() {
        let fake = machine();
        fake.set("proc/sys/vm/vfs_cache_pressure", "100000\n");
        fake.set("proc/sys/vm/min_free_kbytes", "4194304\n");
        assert_eq!(
            given(&fake, &sample(), &[], &[], &[]),
            ["vm.vfs_cache_pressure=100", "vm.min_free_kbytes=16384"]
        );
    }

    #[test]
    fn slabs() {
        let fake = machine();
        let slab = [finding(Cause::SlabReclaimable)];
        assert_eq!(given(&fake, &sample(), &slab, &[], &[]), ["note"]);
        fake.set("proc/sys/vm/vfs_cache_pressure", "50\n");
        assert_eq!(given(&fake, &sample(), &slab, &[], &[]), ["vm.vfs_cache_pressure=100"]);
    }

    #[test]
    fn stalls_with_memory_to_spare() {
        let (fake, mut sample) = (machine(), sample());
        let stall = Stall { avg60: 3.0, ..Stall::default() };
        sample.pressure = Some(ebbtide_observe::host::Pressure { some: stall, ..Default::default() });
        assert_eq!(given(&fake, &sample, &[], &[], &[]), [""; 0], "nobody had to reclaim by himself");
        (sample.vmstat.pgsteal_direct, sample.vmstat.pgsteal_kswapd) = (500_000, 500_000);
        assert_eq!(given(&fake, &sample, &[], &[], &[]), ["vm.watermark_scale_factor=50"]);
        sample.meminfo.mem_available = Bytes::from_gib(1);
        assert_eq!(given(&fake, &sample, &[], &[], &[]), [""; 0], "too little memory is no setting's fault");
    }

    #[test]
    fn swap_that_is_not_used() {
        let (fake, mut sample) = (machine(), sample());
        let fake =
            fake.file("proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 4194304 0 5\n");
        let swap = |path: &str| Swap {
            path: path.into(),
            kind: "partition".into(),
            size: Bytes::from_gib(4),
            used: Bytes::ZERO,
        };
        sample.swaps = vec![swap("/dev/sda2")];
        sample.meminfo.swap_total = Bytes::from_gib(4);
        sample.meminfo.swap_free = Bytes::from_gib(4);
        sample.meminfo.mem_available = Bytes::from_gib(1);
        assert_eq!(given(&fake, &sample, &[], &[], &[]), [""; 0]);
        fake.set("proc/sys/vm/swappiness", "0\n");
        assert_eq!(given(&fake, &sample, &[], &[], &[]), ["vm.swappiness=60"]);
        sample.swaps = vec![swap("/dev/zram0")];
        assert_eq!(given(&fake, &sample, &[], &[], &[]), ["vm.swappiness=100"]);
    }

    #[test]
    fn gigabytes_unwritten() {
        let (fake, mut sample) = (machine(), sample());
        sample.meminfo.dirty = Bytes::from_gib(2);
        assert_eq!(
            given(&fake, &sample, &[], &[], &[]),
            ["vm.dirty_background_bytes=268435456", "vm.dirty_bytes=1073741824"]
        );
        fake.set("proc/sys/vm/dirty_bytes", "4294967296\n");
        fake.set("proc/sys/vm/dirty_ratio", "0\n");
        assert_eq!(given(&fake, &sample, &[], &[], &[]), [""; 0], "somebody has chosen already");
    }
}
