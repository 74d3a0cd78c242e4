//! Counters files made by hand, torn and hostile ones, and the fake root; real JVMs are in tests/jvm.rs.

use super::*;
use ebbtide_testkit::FakeRoot;
use proptest::prelude::*;

/// A counters file of `counters`: numbers, or text where there is some.
fn file(little: bool, counters: &[(&str, u64, &str)]) -> Vec<u8> {
    let u32 = |n: usize| {
        let n = u32::try_from(n).unwrap();
        if little { n.to_le_bytes() } else { n.to_be_bytes() }
    };
    let mut file = MAGIC.to_vec();
    file.extend([u8::from(little), 2, 0, 1]);
    file.resize(24, 0);
    file.extend(u32(32));
    file.extend(u32(counters.len()));
    for (name, number, text) in counters {
        let data = (20 + name.len() + 1).next_multiple_of(8);
        let length = (data + 8.max(text.len())).next_multiple_of(8);
        let start = file.len();
        [length, 20, text.len()].into_iter().for_each(|n| file.extend(u32(n)));
        file.extend([if text.is_empty() { b'J' } else { b'B' }, 0, 2, 3]);
        file.extend(u32(data));
        file.extend(name.as_bytes());
        file.resize(start + data, 0);
        match text.is_empty() {
            true => file.extend(if little { number.to_le_bytes() } else { number.to_be_bytes() }),
            false => file.extend(text.as_bytes()),
        }
        file.resize(start + length, 0);
    }
    file
}

const MIB: u64 = 1 << 20;

/// Two generations, as every collector but Z's has them.
fn counters(collector: &str) -> Vec<(&'static str, u64, String)> {
    let text = |name, text: &str| (name, 0, text.to_owned());
    let number = |name, number| (name, number, String::new());
    vec![
        text("java.property.java.vm.name", "OpenJDK 64-Bit Server VM\0"),
        text("sun.gc.collector.0.name", collector),
        number("sun.gc.collector.0.invocations", 7),
        number("sun.gc.collector.0.time", 500),
        number("sun.gc.collector.0.lastExitTime", 2000),
        number("sun.os.hrt.frequency", 1000),
        number("sun.os.hrt.ticks", 5000),
        text("sun.gc.generation.0.name", "young"),
        number("sun.gc.generation.0.capacity", 10 * MIB),
        number("sun.gc.generation.0.maxCapacity", 100 * MIB),
        text("sun.gc.generation.0.space.0.name", "eden"),
        number("sun.gc.generation.0.space.0.used", MIB),
        number("sun.gc.generation.0.space.1.used", 2 * MIB),
        number("sun.gc.generation.1.capacity", 60 * MIB),
        number("sun.gc.generation.1.maxCapacity", 100 * MIB),
        number("sun.gc.generation.1.space.0.used", 20 * MIB),
        number("sun.gc.generation.1.space.99.used", 9 * MIB),
        number("sun.gc.metaspace.capacity", 5 * MIB),
        number("sun.gc.metaspace.used", u64::MAX),
    ]
}

fn parse(little: bool, counters: &[(&'static str, u64, String)]) -> Option<Jvm> {
    let counters: Vec<_> = counters.iter().map(|(name, n, text)| (*name, *n, text.as_str())).collect();
    Jvm::parse(&file(little, &counters))
}

#[test]
fn a_heap_in_both_byte_orders() {
    for little in [true, false] {
        let jvm = parse(little, &counters("Copy\0")).unwrap();
        let heap = Pool { used: Bytes(23 * MIB), committed: Bytes(70 * MIB), max: Bytes(200 * MIB) };
        assert_eq!(jvm.heap, heap);
        assert_eq!(jvm.vm[0].as_bytes(), b"OpenJDK 64-Bit Server VM");
        assert_eq!((jvm.generations[0].spaces.len(), jvm.generations[1].spaces.len()), (2, 1));
        assert_eq!(jvm.generations[0].spaces[0].name.as_bytes(), b"eden");
        assert_eq!(jvm.metaspace, Pool { used: Bytes(0), committed: Bytes(5 * MIB), max: Bytes(0) });
        let collector = jvm.collectors[0];
        assert_eq!((collector.invocations, collector.time), (7, Duration::from_millis(500)));
        assert_eq!(jvm.since_last_collection(), Some(Duration::from_secs(3)));
    }
}

#[test]
fn generations_that_share_the_heap_share_its_maximum() {
    for collector in ["G1 young collection pauses\0", "ZGC minor collection pauses\0", "Shenandoah full\0"] {
        assert_eq!(parse(true, &counters(collector)).unwrap().heap.max, Bytes(100 * MIB), "{collector}");
    }
}

#[test]
fn what_is_no_counters_file_is_none() {
    assert_eq!(Jvm::parse(b""), None);
    assert_eq!(Jvm::parse(b"\xca\xfe\xc0\xc0"), None);
    assert_eq!(Jvm::parse(&[0; 64]), None);
    let empty = Jvm::parse(&file(true, &[])).unwrap();
    assert_eq!((empty.heap, empty.since_last_collection()), (Pool::default(), None));
}

fn jvm_of(fake: &FakeRoot) -> Option<Jvm> {
    Process::open(&Root::at(fake.path()).unwrap(), 7).unwrap().jvm().unwrap()
}

#[test]
fn found_in_the_processs_own_root_and_of_its_own_user_only() {
    let uid = rustix::process::getuid().as_raw();
    let status = |uid| format!("Name:\tjava\nState:\tS\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nNStgid:\t7\t12\n");
    let content = file(true, &[("sun.gc.generation.0.capacity", 5, "")]);
    let fake = FakeRoot::new()
        .process(7, [("status", status(uid))])
        .dir("proc/7/root/tmp")
        .file("proc/7/root/tmp/hsperfdata_a/7", &content);
    assert_eq!(jvm_of(&fake), None, "named by its own pid namespace");
    let fake = fake
        .file("proc/7/root/tmp/hsperfdata_b/12", b"not counters")
        .file("proc/7/root/real", &content)
        .link("proc/7/root/tmp/hsperfdata_c/12", "/real");
    assert_eq!(jvm_of(&fake), None, "no link is followed");
    let fake = fake.file("proc/7/root/tmp/hsperfdata_d/12", &content);
    assert_eq!(jvm_of(&fake).unwrap().heap.committed, Bytes(5));
    fake.set("proc/7/status", status(uid.wrapping_add(1)));
    assert_eq!(jvm_of(&fake), None, "somebody else's directory");
    fake.remove("proc/7/root/tmp");
    assert_eq!(jvm_of(&fake), None);
}

proptest! {
    #[test]
    fn never_panics(bytes: Vec<u8>) {
        let _ = Jvm::parse(&[MAGIC, &bytes].concat());
    }

    #[test]
    fn never_panics_on_a_torn_file(little: bool, changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..40)) {
        let counters = counters("Copy");
        let counters: Vec<_> = counters.iter().map(|(name, n, text)| (*name, *n, text.as_str())).collect();
        let mut file = file(little, &counters);
        for (at, byte) in changes {
            let at = usize::from(at) % file.len();
            file[at] = byte;
        }
        let _ = Jvm::parse(&file);
    }
}
