//! Kinds on really captured maps, and on shapes that only look alike.

use super::*;
use crate::process::smaps::Areas;
use crate::scan;
use proptest::prelude::*;

/// A Python 3.11 process: three threads, one mapping of each shared kind; glibc 2.36, kernel 6.18.
const PYTHON: &[u8] = include_bytes!("../testdata/smaps_python");
const PYTHON_POINTERS: [u64; 4] = [0x7f08_2635_4950, 0x7f08_26c5_9950, 0x7f08_2745_a950, 0x7ffd_243b_99b0];

/// A JDK 17 process without its libraries; the pointers of its 19 threads.
const JAVA: &[u8] = include_bytes!("../testdata/smaps_java");
const JAVA_POINTERS: [u64; 19] = [
    0x7f71_650f_d500,
    0x7f71_651f_ebf0,
    0x7f71_652f_eb80,
    0x7f71_653f_eba0,
    0x7f71_7bff_e990,
    0x7f71_8012_8990,
    0x7f71_8022_8b90,
    0x7f71_8032_8b20,
    0x7f71_8042_8a40,
    0x7f71_8052_85a0,
    0x7f71_8062_8730,
    0x7f71_8072_9bf0,
    0x7f71_808f_bc50,
    0x7f71_809f_cc80,
    0x7f71_82df_cd30,
    0x7f71_82ef_dbc0,
    0x7f71_82ff_ed30,
    0x7f71_8411_c6a0,
    0x7ffd_e115_a1c0,
];

fn hints(pointers: &[u64]) -> Hints {
    Hints { stack_pointers: pointers.to_vec(), complete: true, tmpfs: Vec::new() }
}

/// The verdict on every mapping of `smaps`, by its first address; flags are left out unless `with_flags`.
fn verdicts(smaps: &[u8], hints: Hints, with_flags: bool) -> Vec<(u64, Verdict)> {
    let mut told = Vec::new();
    let mut tell = |verdict, start| told.push((start, verdict));
    let mut classifier = Classifier::new(hints);
    let mut areas = Areas::default();
    let mut each = |area: &crate::process::Area| {
        let flags = area.flags.filter(|_| with_flags);
        classifier.push(&area.mapping, flags, area.mapping.start, &mut tell);
        true
    };
    for line in scan::lines(smaps) {
        areas.line(line, &mut each);
    }
    areas.finish(&mut each);
    classifier.finish(&mut tell);
    told
}

fn count(told: &[(u64, Verdict)], kind: Kind) -> usize {
    told.iter().filter(|(_, verdict)| verdict.kind == kind).count()
}

fn of(told: &[(u64, Verdict)], start: u64) -> Verdict {
    told.iter().find(|(at, _)| *at == start).unwrap().1
}

#[test]
fn python_with_everything_known() {
    let told = verdicts(PYTHON, hints(&PYTHON_POINTERS), true);
    for start in [0x7f08_1800_0000, 0x7f08_1c00_0000, 0x7f08_2000_0000] {
        assert_eq!(of(&told, start), Verdict::sure(Kind::Arena));
    }
    for start in [0x7f08_25b5_6000, 0x7f08_2645_b000, 0x7f08_26c5_c000] {
        assert_eq!(of(&told, start), Verdict::sure(Kind::ThreadStack));
    }
    assert_eq!((count(&told, Kind::Arena), count(&told, Kind::ThreadStack)), (3, 3));
    assert_eq!(
        (count(&told, Kind::Heap), count(&told, Kind::MainStack), count(&told, Kind::SysV)),
        (1, 1, 1)
    );
    assert_eq!(of(&told, 0x7f08_2584_1000).kind, Kind::DeletedFile);
    assert_eq!(of(&told, 0x7f08_2585_1000).kind, Kind::Tmpfs);
    assert_eq!(of(&told, 0x7f08_2595_1000).kind, Kind::Memfd);
    assert_eq!(of(&told, 0x7f08_25a5_1000).kind, Kind::SharedAnon);
    assert_eq!(of(&told, 0x7f08_2645_a000).kind, Kind::Reserved);
    assert_eq!(of(&told, 0x7f08_27a4_4000).kind, Kind::Code);
    assert_eq!(of(&told, 0x7f08_27bf_1000).kind, Kind::File);
    assert_eq!(of(&told, 0x7f08_27bf_3000).kind, Kind::Anon);
    assert_eq!(count(&told, Kind::Kernel), 4);
}

#[test]
fn python_by_its_shapes_alone() {
    let told = verdicts(PYTHON, Hints::default(), false);
    assert_eq!(of(&told, 0x7f08_1c00_0000), Verdict::likely(Kind::Arena));
    assert_eq!(of(&told, 0x7f08_2645_b000), Verdict::likely(Kind::ThreadStack));
    assert_eq!((count(&told, Kind::Arena), count(&told, Kind::ThreadStack)), (3, 3));
}

#[test]
fn a_tmpfs_is_known_by_its_device() {
    let tmpfs = vec![Device { major: 0xfe, minor: 0 }];
    let told = verdicts(PYTHON, Hints { tmpfs, ..Hints::default() }, true);
    assert_eq!(of(&told, 0x7f08_2584_1000).kind, Kind::Tmpfs);
}

#[test]
fn the_jvms_reservations_are_no_arenas_and_no_stacks() {
    let told = verdicts(JAVA, hints(&JAVA_POINTERS), true);
    assert_eq!(count(&told, Kind::Arena), 15);
    assert_eq!(count(&told, Kind::ThreadStack), 18, "one per thread but the main one");
    assert!(told.iter().all(|(_, verdict)| verdict.sure));
    // The heap, the compressed class space (64 MiB aligned, above what looks like a guard), the code cache.
    for start in [0xf000_0000, 0x7f71_1000_0000, 0x7f71_1004_0000, 0x7f71_6540_0000] {
        assert_eq!(of(&told, start).kind, Kind::Anon, "{start:x}");
    }
}

#[test]
fn go_fills_its_reservations_like_glibc_and_runs_on_stacks_inside() {
    let smaps = b"c000000000-c000800000 rw-p 00000000 00:00 0\nVmFlags: rd wr mr mw me ac \n\
        c000800000-c004000000 ---p 00000000 00:00 0\nVmFlags: mr mw me \n";
    let told = verdicts(smaps, hints(&[0xc0_0000_7f00]), true);
    assert_eq!(of(&told, 0xc0_0000_0000), Verdict::sure(Kind::Anon));
    let named = b"c000000000-c000800000 rw-p 00000000 00:00 0 [anon: Go: heap]\n";
    assert_eq!(of(&verdicts(named, Hints::default(), false), 0xc0_0000_0000).kind, Kind::NamedAnon);
}

#[test]
fn an_arena_in_pieces_and_a_full_one() {
    // Part of it locked; then a heap with no reserved rest; then one whose rest does not reach the boundary.
    let smaps = b"7f0000000000-7f0000010000 rw-p 00000000 00:00 0\nVmFlags: rd wr nr \n\
        7f0000010000-7f0000020000 rw-p 00000000 00:00 0\nVmFlags: rd wr lo nr \n\
        7f0000020000-7f0004000000 ---p 00000000 00:00 0\nVmFlags: nr \n\
        7f0004000000-7f0008000000 rw-p 00000000 00:00 0\nVmFlags: rd wr nr \n\
        7f0008000000-7f0008001000 rw-p 00000000 00:00 0\nVmFlags: rd wr nr \n\
        7f0008001000-7f0009000000 ---p 00000000 00:00 0\nVmFlags: nr \n";
    let told = verdicts(smaps, Hints::default(), true);
    let kinds: Vec<_> = told.iter().map(|(_, verdict)| verdict.kind).collect();
    use Kind::{Anon, Arena, Reserved};
    assert_eq!(kinds, [Arena, Arena, Reserved, Arena, Anon, Reserved]);
    assert!(told.windows(2).all(|pair| pair[0].0 < pair[1].0), "in the order of addresses");
    // The rest of an arena is no guard of what lies above it.
    let above =
        b"7f0000000000-7f0003ff0000 rw-p 00000000 00:00 0\n7f0003ff0000-7f0004000000 ---p 0 00:00 0\n\
        7f0004000000-7f0004001000 rw-p 00000000 00:00 0\n";
    assert_eq!(of(&verdicts(above, Hints::default(), false), 0x7f00_0400_0000), Verdict::sure(Kind::Anon));
}

#[test]
fn names_that_allocators_and_kernels_give() {
    let kind = |path: &str, perms: &str| {
        let line = format!("7f0000000000-7f0000001000 {perms} 00000000 00:05 7 {path}");
        by_name(&Mapping::parse(line.as_bytes()).unwrap(), None, &[]).kind
    };
    assert_eq!(kind("[anon: glibc: malloc arena]", "rw-p"), Kind::Arena);
    assert_eq!(kind("[anon: glibc: pthread stack: 7]", "rw-p"), Kind::ThreadStack);
    assert_eq!(kind("[anon:stack_and_tls:7]", "rw-p"), Kind::ThreadStack);
    assert_eq!(kind("[anon: Go: heap reservation]", "---p"), Kind::Reserved);
    assert_eq!(kind("[anon_shmem:x]", "rw-s"), Kind::SharedAnon);
    assert_eq!(kind("/anon_hugepage (deleted)", "rw-p"), Kind::Hugetlb);
    assert_eq!(kind("/dev/dri/renderD128", "rw-s"), Kind::Device);
    assert_eq!(kind("anon_inode:[io_uring]", "rw-s"), Kind::Device);
    assert_eq!(kind("/dev/zero", "rw-p"), Kind::Anon);
    assert_eq!(kind("/usr/lib/x.so (deleted)", "r-xp"), Kind::Code);
    assert_eq!(kind("/memfd:not a memfd", "rw-s"), Kind::File);
}

#[test]
fn own_kinds_sum_to_the_rollup() {
    let process = Process::open(&crate::Root::live().unwrap(), std::process::id()).unwrap();
    let kinds = process.kinds(process.hints().unwrap()).unwrap();
    let sum: Bytes = kinds.values().map(|total| total.counters.rss).sum();
    let rss = process.rollup().unwrap().rss;
    // Read while other tests run.
    assert!(sum.0.abs_diff(rss.0) < rss.0 / 2, "{sum} of {rss}");
    assert!(kinds[&Kind::Code].counters.rss > Bytes::ZERO && kinds[&Kind::MainStack].mappings == 1);
}

proptest! {
    /// Every mapping is told exactly once and in order, whatever the mappings.
    #[test]
    fn nothing_is_lost(
        parts in proptest::collection::vec((0u64..4, 1u64..40, 0usize..4, any::<bool>()), 0..60),
        pointers in proptest::collection::vec(any::<u64>(), 0..5),
    ) {
        let mut at = 0x7f00_0000_0000u64;
        let mut smaps = String::new();
        let mut starts = Vec::new();
        for (gap, size, perms, unreserved) in parts {
            at += gap * (8 << 20);
            let end = at + size * (4 << 20);
            starts.push(at);
            let perms = ["rw-p", "---p", "r--p", "rw-s"][perms];
            let flags = if unreserved { "nr" } else { "ac" };
            smaps += &format!("{at:x}-{end:x} {perms} 00000000 00:00 0 \nVmFlags: {flags} \n");
            at = end;
        }
        let mut pointers = pointers;
        pointers.sort();
        let told = verdicts(smaps.as_bytes(), hints(&pointers), true);
        prop_assert_eq!(told.iter().map(|(start, _)| *start).collect::<Vec<_>>(), starts);
    }
}
