//! A real HotSpot JVM: what its counters say against what it says itself.
#![allow(clippy::unwrap_used)]

use ebbtide_observe::{Bytes, Process, Root};
use ebbtide_testkit::Child;
use ebbtide_testkit::child::installed;
use std::process::Command;

/// Holds 32 MiB, collects, and says what the runtime thinks of its heap.
const PROGRAM: &str = r#"
public class Held {
    static byte[][] held = new byte[64][];
    public static void main(String[] args) throws Exception {
        for (int i = 0; i < held.length; i++) held[i] = new byte[512 << 10];
        System.gc();
        Runtime runtime = Runtime.getRuntime();
        System.out.println("@ready " + runtime.totalMemory() + " " + runtime.maxMemory());
        System.in.read();
    }
}
"#;

#[test]
fn the_heap_of_a_real_jvm() {
    if !installed("java") {
        println!("skipped: no java in the search path");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("Held.java");
    std::fs::write(&source, PROGRAM).unwrap();
    for collector in ["-XX:+UseG1GC", "-XX:+UseSerialGC"] {
        let mut java = Command::new("java");
        java.args([collector, "-Xmx256m", "-XX:TieredStopAtLevel=1"]).arg(&source);
        let child = Child::spawn(&mut java);
        let process = Process::open(&Root::live().unwrap(), child.pid()).unwrap();
        let Some(jvm) = process.jvm().unwrap() else { panic!("{collector}: no counters") };
        let (total, max) = child.said().split_once(' ').unwrap();
        let (total, max) = (Bytes(total.parse().unwrap()), Bytes(max.parse().unwrap()));
        // The runtime leaves one survivor space out, which the Serial collector has: a tenth of the young
        // generation. G1 pads its counters by a few bytes.
        let near = |a: Bytes, b: Bytes| a.0.abs_diff(b.0) <= max.0 / 25;
        assert!(near(jvm.heap.committed, total), "{collector}: {:?}, total {total}", jvm.heap);
        assert!(near(jvm.heap.max, max), "{collector}: {:?}, max {max}", jvm.heap);
        assert!(jvm.heap.used >= Bytes::from_mib(32), "{collector}: {:?}", jvm.heap);
        assert!(jvm.heap.used <= jvm.heap.committed, "{collector}: {:?}", jvm.heap);
        assert!(jvm.metaspace.used > Bytes::ZERO, "{collector}: {:?}", jvm.metaspace);
        assert!(jvm.collectors.iter().any(|collector| collector.invocations > 0), "{:?}", jvm.collectors);
        assert!(jvm.since_last_collection().is_some());
    }
}

#[test]
fn what_is_no_jvm_has_no_counters() {
    let process = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
    assert_eq!(process.jvm().unwrap(), None);
}
