//! `gc-headroom` and `limits-exceed-box`: heaps of managed runtimes that are larger than what lives in them,
//! or allowed to be larger than what there is.

use crate::case::{Case, Need, Noise, Truth, is};
use crate::cgroup;
use crate::procfs;
use crate::programs::{self, Jvm};
use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;

const HEADROOM: Truth = is("gc-headroom").near("headroom", 15);
const EXCEEDS: Truth = is("limits-exceed-box");
const JAVA: &[Need] = &[Need::Java, Need::MemoryAtLeast(Bytes::from_gib(3))];
const JAVA_CGROUP: &[Need] =
    &[Need::Java, Need::Root, Need::MemoryCgroup, Need::MemoryAtLeast(Bytes::from_gib(1))];

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process(
        "gc-headroom/g1-minimum",
        "G1 with -Xms1g, touched by a burst, 20 MB alive",
        HEADROOM,
        |s| {
            let options = &["-XX:+UseG1GC", "-Xms1g", "-Xmx1g", "-XX:+AlwaysPreTouch"];
            headroom(s, Jvm { options, garbage: 800, live: 20, collect: true })
        },
    )
    .needs(JAVA),
    Case::process(
        "gc-headroom/parallel-burst",
        "a parallel collector's heap after a burst of 900 MB",
        HEADROOM,
        |s| {
            let options =
                &["-XX:+UseParallelGC", "-Xmx1600m", "-XX:MinHeapFreeRatio=90", "-XX:MaxHeapFreeRatio=100"];
            headroom(s, Jvm { options, garbage: 900, live: 10, collect: true })
        },
    )
    .needs(JAVA),
    Case::process(
        "gc-headroom/serial-minimum",
        "the serial collector with -Xms900m, 5 MB alive",
        HEADROOM,
        |s| {
            let options = &["-XX:+UseSerialGC", "-Xms900m", "-Xmx900m", "-XX:+AlwaysPreTouch"];
            headroom(s, Jvm { options, garbage: 300, live: 5, collect: true })
        },
    )
    .needs(JAVA)
    .noise(&[Noise::Busy]),
    Case::process(
        "limits-exceed-box/jvm-in-cgroup",
        "a JVM with -Xmx2g in a cgroup of 512 MB",
        EXCEEDS,
        |s| jvm_in_cgroup(s, "-Xmx2g", Bytes::from_mib(512)),
    )
    .needs(JAVA_CGROUP),
    Case::cgroup(
        "limits-exceed-box/cgroup-of-jvm",
        "a cgroup of 512 MB that holds a JVM with -Xmx2g",
        EXCEEDS,
        |s| jvm_in_cgroup(s, "-Xmx2g", Bytes::from_mib(512)),
    )
    .needs(JAVA_CGROUP),
    Case::process("limits-exceed-box/jvm-above-box", "a JVM whose -Xmx is twice the box", EXCEEDS, |s| {
        let most = procfs::meminfo()?.bytes("MemTotal")?.0 >> 19;
        let heap = programs::jvm(s, Jvm { options: &["-Xms64m"], ..Jvm::default() }, &[xmx(most)], None)?;
        s.target(heap.pid);
        Ok(())
    })
    .needs(&[Need::Java, Need::MemoryAtLeast(Bytes::from_gib(1))]),
    Case::host(
        "limits-exceed-box/four-jvms",
        "four JVMs with an -Xmx of 45% of the box each",
        EXCEEDS,
        |s| {
            let most = procfs::meminfo()?.bytes("MemTotal")?.scaled(0.45).0 >> 20;
            for _ in 0..4 {
                programs::jvm(s, Jvm { options: &["-Xms64m"], ..Jvm::default() }, &[xmx(most)], None)?;
            }
            s.bytes("sum_of_caps", Bytes::from_mib(4 * most));
            Ok(())
        },
    )
    .needs(&[Need::Java, Need::MemoryAtLeast(Bytes::from_gib(1))]),
    Case::process(
        "limits-exceed-box/node-in-cgroup",
        "Node.js with an old space of 4 GB in a cgroup of 512 MB",
        EXCEEDS,
        |s| {
            let memory = cgroup::memory().context("no memory controller")?;
            let group = memory.create(&mut s.journal, "node")?;
            group.limit(Bytes::from_mib(512))?;
            let pid = programs::node(s, &["--max-old-space-size=4096".to_owned()], Some((&memory, &group)))?;
            s.target(pid);
            Ok(())
        },
    )
    .needs(&[Need::Node, Need::Root, Need::MemoryCgroup]),
];

fn xmx(mib: u64) -> String {
    format!("-Xmx{mib}m")
}

/// Verifies that the JVM has committed, and holds resident, far more than it uses after a collection.
fn headroom(stage: &mut Stage, jvm: Jvm) -> Result<()> {
    let heap = programs::jvm(stage, jvm, &[], None)?;
    let rss = procfs::status(heap.pid)?.bytes("VmRSS")?;
    stage.bytes("committed", heap.committed);
    stage.bytes("used", heap.used);
    stage.bytes("rss", rss);
    // What was committed and never touched takes no memory.
    let headroom = (heap.committed - heap.used).min(rss - heap.used);
    stage.at_least("headroom", headroom, Bytes::from_mib(500))?;
    ensure!(rss >= heap.committed.scaled(0.8), "only {rss} resident of {} committed", heap.committed);
    stage.target(heap.pid);
    Ok(())
}

fn jvm_in_cgroup(stage: &mut Stage, xmx: &'static str, limit: Bytes) -> Result<()> {
    let memory = cgroup::memory().context("no memory controller")?;
    let group = memory.create(&mut stage.journal, "jvm")?;
    group.limit(limit)?;
    let jvm = Jvm { options: &["-Xms64m"], live: 30, ..Jvm::default() };
    let heap = programs::jvm(stage, jvm, &[xmx.to_owned()], Some((&memory, &group)))?;
    stage.bytes("limit", limit);
    stage.bytes("usage", group.usage()?);
    stage.target(heap.pid);
    stage.target_group(&group);
    Ok(())
}
