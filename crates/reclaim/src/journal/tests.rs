//! Journals that are shared, cut off, full, foreign, or not to be had.

use super::*;
use crate::report::Lever;
use proptest::prelude::*;

fn host(name: &str) -> Target {
    Target { kind: "host".to_owned(), name: Some(name.to_owned()), ..Target::default() }
}

fn done() -> Entry {
    let mut lever = Lever::planned("dentries", "all".to_owned(), Bytes(100), "");
    lever.returned = Some(Bytes(90));
    let mut entry = Entry::begin(host("dentries"));
    entry.done(&Report::of(vec![lever], vec![], std::time::Instant::now()));
    entry
}

#[test]
fn what_is_begun_and_done_is_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::at(dir.path().join("made/when needed"));
    assert_eq!(journal.read().unwrap(), History::default());
    let mut entry = Entry::begin(host("dentries"));
    journal.write(&entry).unwrap();
    assert!(humantime::parse_rfc3339(&entry.at).unwrap() <= SystemTime::now());
    assert_eq!(journal.read().unwrap().entries, [entry.clone()]);
    entry.failed("no");
    journal.write(&entry).unwrap();
    let killed = Entry::begin(host("compaction"));
    journal.write(&killed).unwrap();
    journal.write(&done()).unwrap();
    let history = journal.read().unwrap();
    let outcomes: Vec<Outcome> = history.entries.iter().map(|entry| entry.outcome).collect();
    assert_eq!(outcomes, [Outcome::Failed, Outcome::Begun, Outcome::Done]);
    assert_eq!(history.entries[2].returned_bytes, Some(Bytes(90)));
    assert_eq!(history.damaged, 0);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    let path = journal.path();
    let dir = path.parent().unwrap();
    assert_eq!((mode(&path), mode(dir)), (0o600, 0o755), "undo records beside it are for everybody's eyes");
}

#[test]
fn a_line_cut_off_takes_no_other_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::at(dir.path());
    journal.write(&done()).unwrap();
    let mut text = std::fs::read(journal.path()).unwrap();
    text.truncate(text.len() / 2);
    std::fs::write(journal.path(), [b"\xff\n{}\n\n", &text[..]].concat()).unwrap();
    journal.write(&done()).unwrap();
    let history = journal.read().unwrap();
    assert_eq!((history.entries.len(), history.damaged), (1, 3));
}

#[test]
fn it_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::at(dir.path());
    std::fs::write(dir.path().join(BEFORE), vec![b'x'; 9]).unwrap();
    std::fs::write(journal.path(), vec![b'\n'; MOST as usize]).unwrap();
    journal.write(&done()).unwrap();
    assert_eq!(std::fs::metadata(dir.path().join(BEFORE)).unwrap().len(), MOST);
    assert!(std::fs::metadata(journal.path()).unwrap().len() < 2_000);
    assert_eq!(journal.read().unwrap().entries.len(), 1);
}

#[test]
fn writers_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::at(dir.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| journal.write(&Entry { id: unique(), ..done() }).unwrap()));
        }
    });
    let history = journal.read().unwrap();
    assert_eq!((history.entries.len(), history.damaged), (80, 0));
}

fn unique() -> String {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string()
}

#[test]
fn what_cannot_be_written_is_told_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    let told = Journal::at(blocked.join("state")).write(&done()).unwrap_err();
    assert!(told.contains("not recorded"), "{told}");
    let journal = Journal::at(dir.path());
    std::os::unix::fs::symlink("/etc/passwd", journal.path()).unwrap();
    assert!(journal.write(&done()).is_err(), "no link is followed");
    std::fs::remove_file(journal.path()).unwrap();
    std::os::unix::fs::symlink("/dev/full", journal.path()).unwrap();
    assert!(journal.write(&done()).is_err());
    std::fs::remove_file(journal.path()).unwrap();
    std::fs::create_dir(journal.path()).unwrap();
    assert!(journal.write(&done()).is_err() && journal.read().is_err());
    std::fs::remove_dir(journal.path()).unwrap();
    let holder = locked(dir.path()).unwrap();
    let told = journal.write(&done()).unwrap_err();
    assert!(told.contains("too long"), "{told}");
    drop(holder);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_can_be_read(bytes: Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::at(dir.path());
        std::fs::write(journal.path(), bytes).unwrap();
        prop_assert_eq!(journal.read().unwrap().entries.len(), 0);
    }
}
