//! The look over whole processes: real programs of many runtimes, whose memory is all accounted for and named by
//! what it is.
#![allow(clippy::unwrap_used)]

use ebbtide_heaps::{Fault, Files, Heap, Kind, Look, LookError};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_sys::freeze::{FreezeError, Frozen};
use ebbtide_testkit::Child;
use ebbtide_testkit::child::{installed, is_root};
use std::process::Command;
use std::time::Duration;

/// `program` with `args`, once it says that it is ready; `None`, said aloud, where it is not installed.
fn start(program: &str, args: &[&str]) -> Option<Child> {
    if !installed(program) {
        println!("skipped: {program} is not installed");
        return None;
    }
    Some(Child::spawn(Command::new(program).args(args)))
}

/// The resident bytes of the heap with `name`, from the first of some looks that is whole.
fn resident(child: &Child, name: &str) -> Option<Bytes> {
    let mut why = String::new();
    for _ in 0..50 {
        match look(child, name) {
            Ok(found) => return found,
            Err(wrong) => why = wrong,
        }
    }
    panic!("in every look: {why}");
}

/// Looks into `child` while it stands still, and checks that all its private anonymous memory is in one place. An error
/// is what may be so for a moment: a page that the kernel is moving is not there for pagemap, but counts in smaps; a JVM
/// (G1) gives up parts of its heap in the background, after it has counted them.
fn look(child: &Child, name: &str) -> Result<Option<Bytes>, String> {
    let process = Process::open(&Root::live().unwrap(), child.pid()).unwrap();
    let mut tries = (0..20).map(|_| Frozen::stop(child.pid()));
    let frozen = tries.find(|tried| !matches!(tried, Err(FreezeError::Stuck(_)))).unwrap();
    let frozen = match frozen {
        Err(FreezeError::Denied) if !is_root() => {
            println!("skipped: tracing a child is forbidden here");
            return Ok(None);
        }
        frozen => frozen.unwrap(),
    };
    let look = Look::into(&process, true).unwrap();
    let (mut private, mut all) = (Bytes::ZERO, Bytes::ZERO);
    process
        .each_area(|area| {
            all += area.counters.anonymous;
            let here = area.mapping.inode == 0 && !area.mapping.perms.shared && !area.mapping.perms.is_none();
            private += if here { area.counters.anonymous } else { Bytes::ZERO };
            true
        })
        .unwrap();
    frozen.release();
    assert!(look.failed.is_empty(), "{:?}", look.failed);
    let heaps: Bytes = look.heaps.iter().map(|heap| heap.figures.resident).sum();
    let shown: Vec<_> =
        look.heaps.iter().map(|heap| (heap.kind, heap.name.as_deref(), heap.figures.resident)).collect();
    assert!(heaps <= all, "{shown:?} of {all}");
    // What a walker finds in a file's mapping is its heap's too; what no walker claims is told to the byte.
    let sum = heaps + look.stacks.resident + look.code.resident;
    assert!(sum <= all, "{shown:?} {:?} {:?}: {all}", look.stacks, look.code);
    if sum < private {
        return Err(format!("{shown:?} {:?} {:?}: {} B of {private}", look.stacks, look.code, private - sum));
    }
    assert!(look.stacks.resident > Bytes::ZERO);
    let found = named(&look, name).ok_or_else(|| format!("{name} of {shown:?}"))?;
    Ok(Some(found.figures.resident))
}

fn named<'l>(look: &'l Look, name: &str) -> Option<&'l Heap> {
    look.heaps.iter().find(|heap| heap.name.as_deref() == Some(name))
}

/// What the programs hold, and what of it at least must be found under the right name.
const HELD: Bytes = Bytes::from_mib(16);

#[test]
fn rubys_heap() {
    // Strings of this length have no memory but their slot of 40 bytes.
    let script = "a = (0..600_000).map { |i| 's' * 20 }; puts '@ready '; $stdout.flush; gets";
    let Some(ruby) = start("ruby", &["-e", script]) else { return };
    assert!(resident(&ruby, "Ruby heap") >= Some(HELD));
}

#[test]
fn phps_heap() {
    let script =
        "$a = []; for ($i = 0; $i < 1000000; $i++) $a[] = 's' . $i; echo \"@ready \\n\"; fgets(STDIN);";
    let Some(php) = start("php", &["-r", script]) else { return };
    assert!(resident(&php, "PHP heap") >= Some(HELD));
}

#[test]
fn nodes_heap() {
    let script = "const a = []; for (let i = 0; i < 400000; i++) a.push({ i, s: 'x' + i });
        console.log('@ready '); process.stdin.on('data', () => a[0].i++)";
    let Some(node) = start("node", &["-e", script]) else { return };
    let version = Command::new("node").args(["-p", "process.versions.v8.split('.')[0]"]).output().unwrap();
    let version: u32 = String::from_utf8(version.stdout).unwrap().trim().parse().unwrap();
    if version > 11 {
        return println!("skipped: V8 {version} keeps its pages' books apart");
    }
    assert!(resident(&node, "V8 heap") >= Some(HELD));
}

#[test]
fn gos_heap() {
    if !installed("fzf") {
        return println!("skipped: fzf, a program in Go, is not installed");
    }
    // It writes a line that fits at once, and then reads on.
    let script =
        "exec 3<&0; exec fzf --filter=@ready --no-sort < <(seq 100000; echo '@ready '; exec cat <&3)";
    let Some(fzf) = start("bash", &["-c", script]) else { return };
    assert!(resident(&fzf, "Go heap") >= Some(Bytes::from_mib(1)));
}

#[test]
fn a_jvms_heap_and_what_it_says_of_it() {
    const PROGRAM: &str = "public class Held {
        static byte[][] held = new byte[64][];
        public static void main(String[] args) throws Exception {
            for (int i = 0; i < held.length; i++) held[i] = new byte[512 << 10];
            System.gc();
            System.out.println(\"@ready\");
            System.in.read();
        }
    }";
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("Held.java");
    std::fs::write(&source, PROGRAM).unwrap();
    for collector in ["-XX:+UseG1GC", "-XX:+UseSerialGC", "-XX:+UseParallelGC"] {
        let args = [collector, "-Xmx256m", "-XX:TieredStopAtLevel=1", source.to_str().unwrap()];
        let Some(java) = start("java", &args) else { return };
        let Some(found) = resident(&java, "JVM heap") else { return };
        assert!(found >= Bytes::from_mib(32) && found <= Bytes::from_mib(256), "{collector}: {found}");
        let process = Process::open(&Root::live().unwrap(), java.pid()).unwrap();
        let mut looks = (0..50).map(|_| Look::into(&process, false).unwrap());
        let look = looks.find(|look| named(look, "JVM heap").is_some()).unwrap();
        let heap = named(&look, "JVM heap").unwrap();
        assert!(heap.notes[0].contains(" used at its last collection of "), "{:?}", heap.notes);
        assert!(look.code.resident > Bytes::ZERO, "it compiles");
    }
}

#[test]
fn zeroed_data_is_static() {
    if !installed("gcc") {
        return println!("skipped: gcc is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("zeroed.c"), dir.path().join("zeroed"));
    let text = "#include <stdio.h>\n#include <string.h>\nstatic char zeroed[24 << 20];\n\
        int main(void) { memset(zeroed, 1, sizeof zeroed); puts(\"@ready\"); fflush(stdout); return getchar() + zeroed[7]; }";
    std::fs::write(&source, text).unwrap();
    for options in [&["-O0"][..], &["-O0", "-static"], &["-O0", "-no-pie", "-Wl,-z,norelro"]] {
        let built = Command::new("gcc").args(options).arg("-o").arg(&program).arg(&source).status().unwrap();
        assert!(built.success());
        let child = Child::spawn(&mut Command::new(&program));
        let found = resident(&child, "static data");
        assert!(
            found >= Some(Bytes::from_mib(24)) && found < Some(Bytes::from_mib(25)),
            "{options:?} {found:?}"
        );
    }
}

#[test]
fn what_is_not_finished_in_time_is_not_told() {
    let process = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
    let overdue = Look::within(&process, Duration::ZERO, &Files::default());
    assert!(matches!(overdue, Err(LookError::Memory(Fault::Overdue))), "{overdue:?}");
    let look = Look::within(&process, Duration::from_secs(600), &Files::default()).unwrap();
    assert!(look.heaps.iter().any(|heap| heap.kind == Kind::Glibc || heap.name.is_some()));
}
