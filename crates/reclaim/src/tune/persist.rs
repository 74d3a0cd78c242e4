//! Settings that outlive a boot: lines in files of ebb's own, /etc/sysctl.d and, for files of /sys, /etc/tmpfiles.d.
//!
//! A file is replaced as a whole, and lines that are not about the setting stay as they are. 60 sorts after what
//! distributions ship (10 to 50) and before an administrator's 99.

use super::check::sysctl;
use super::{Change, Setting, TuneError};
use crate::durable;
use ebbtide_observe::Root;
use std::io::{ErrorKind, Seek, SeekFrom, Write};

const SYSCTL: &str = "etc/sysctl.d/60-ebbtide.conf";
const TMPFILES: &str = "etc/tmpfiles.d/60-ebbtide.conf";
const HEAD: &str = "# Kept by 'ebb tune --persist'; lines of yours stay as they are.\n";

/// The file that keeps `setting`, below the root.
pub(crate) fn file(setting: &Setting) -> &'static str {
    if setting.is_sysctl() { SYSCTL } else { TMPFILES }
}

/// The line that makes `setting` be `value`.
fn line(setting: &Setting, value: &str) -> String {
    match setting.is_sysctl() {
        true => format!("{} = {value}", setting.name),
        false => format!("w /{} - - - - {value}", setting.path),
    }
}

/// Whether `line` sets `setting`.
fn sets(line: &str, setting: &Setting) -> bool {
    if setting.is_sysctl() {
        return sysctl::entry(line.as_bytes()).is_some_and(|(key, ..)| key == setting.name);
    }
    let mut words = line.split_whitespace();
    words.next().is_some_and(|kind| kind.starts_with('w'))
        && words.next().is_some_and(|path| path.strip_prefix('/') == Some(setting.path))
}

/// `text` with `wanted` in place of the lines that set `setting`, at the end where there is none.
fn edited(text: &str, setting: &Setting, wanted: Option<&str>) -> String {
    let mut out = if text.is_empty() { HEAD.to_owned() } else { String::new() };
    for line in text.lines().filter(|line| !sets(line, setting)) {
        out.push_str(line);
        out.push('\n');
    }
    if let Some(wanted) = wanted {
        out.push_str(wanted);
        out.push('\n');
    }
    out
}

/// The last line of `text` that sets `setting`: the one that counts.
fn current<'t>(text: &'t str, setting: &Setting) -> Option<&'t str> {
    text.lines().rev().find(|line| sets(line, setting))
}

fn text_of(root: &Root, file: &str) -> Result<String, TuneError> {
    match std::fs::read_to_string(root.path(file)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|e| TuneError::file("cannot read", root.path(file), e)),
    }
}

/// The line that ebb's file has for `setting`.
pub(crate) fn kept(root: &Root, setting: &Setting) -> Result<Option<String>, TuneError> {
    Ok(current(&text_of(root, file(setting))?, setting).map(str::to_owned))
}

/// Makes `setting` be `value` from the next boot on.
pub(crate) fn keep(root: &Root, setting: &Setting, value: &str) -> Result<(), TuneError> {
    let path = root.path(file(setting));
    let text = text_of(root, file(setting))?;
    let text = edited(&text, setting, Some(&line(setting, value)));
    let made = path.parent().map_or(Ok(()), durable::make_directory);
    made.and_then(|()| durable::replace(&path, text.as_bytes()))
        .map_err(|e| TuneError::file("cannot write", path, e))
}

/// Takes back what [`keep`] did for `change`; a line that says something else by now is somebody else's and stays.
pub(crate) fn forget(root: &Root, setting: &Setting, change: &Change) -> Result<(), TuneError> {
    let path = root.path(file(setting));
    let text = text_of(root, file(setting))?;
    let ours = line(setting, &change.set);
    if current(&text, setting) != Some(&ours) {
        return Ok(());
    }
    let without = edited(&text, setting, change.line_before.as_deref());
    let result =
        if without == HEAD { durable::remove(&path) } else { durable::replace(&path, without.as_bytes()) };
    match result {
        Err(error) if error.kind() == ErrorKind::StorageFull && change.line_before.is_none() => {
            comment_out(&path, &text, &ours)
        }
        other => other,
    }
    .map_err(|e| TuneError::file("cannot write", path, e))
}

/// Makes `line` a comment by its first letter alone: the block that holds it is there already, so that takes no space on
/// a full disk. (A file system that writes elsewhere, as btrfs, may refuse even that; then the record stays.)
fn comment_out(path: &std::path::Path, text: &str, line: &str) -> std::io::Result<()> {
    let before: usize =
        text.split_inclusive('\n').take_while(|&one| one.trim_end_matches('\n') != line).map(str::len).sum();
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(before as u64))?;
    file.write_all(b"#")?;
    file.sync_all()
}

/// A file read after ebb's that sets `setting` to something else than `value`, and to what.
pub(crate) fn overridden(root: &Root, setting: &Setting, value: &str) -> Option<(String, String)> {
    if !setting.is_sysctl() {
        return None;
    }
    let files = sysctl::files(root);
    let later = files.iter().rev().take_while(|file| !file.ends_with("/60-ebbtide.conf"));
    let set_in = |file: &String| {
        let mut buf = Vec::new();
        let lines = sysctl::parse(root.read(file, &mut buf).ok()?);
        let last = lines.into_iter().rev().find(|line| line.matches(setting.name))?;
        Some((format!("/{file}"), last.value?))
    };
    later.into_iter().find_map(set_in).filter(|(_, other)| other != value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::Back;
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;

    fn change(set: &str, line_before: Option<&str>) -> Change {
        Change {
            setting: "vm.swappiness".into(),
            before: "60".into(),
            set: set.into(),
            back: Back { setting: "vm.swappiness".into(), value: "60".into() },
            line_before: line_before.map(str::to_owned),
        }
    }

    fn read(fake: &FakeRoot, file: &str) -> String {
        std::fs::read_to_string(fake.path().join(file)).unwrap()
    }

    #[test]
    fn other_lines_stay() {
        let fake = FakeRoot::new().file(SYSCTL, "# mine\nvm/swappiness=20\nvm.dirty_ratio = 5\n");
        let root = Root::at(fake.path()).unwrap();
        let swappiness = Setting::known("vm.swappiness").unwrap();
        assert_eq!(kept(&root, swappiness).unwrap().as_deref(), Some("vm/swappiness=20"));
        keep(&root, swappiness, "10").unwrap();
        assert_eq!(read(&fake, SYSCTL), "# mine\nvm.dirty_ratio = 5\nvm.swappiness = 10\n");
        forget(&root, swappiness, &change("30", None)).unwrap();
        assert_eq!(kept(&root, swappiness).unwrap().as_deref(), Some("vm.swappiness = 10"), "not ours");
        forget(&root, swappiness, &change("10", Some("vm/swappiness=20"))).unwrap();
        assert_eq!(read(&fake, SYSCTL), "# mine\nvm.dirty_ratio = 5\nvm/swappiness=20\n");
    }

    #[test]
    fn files_of_sys_are_kept_by_tmpfiles() {
        let fake = FakeRoot::new();
        let root = Root::at(fake.path()).unwrap();
        let thp = Setting::known("thp.enabled").unwrap();
        keep(&root, thp, "madvise").unwrap();
        keep(&root, thp, "never").unwrap();
        let line = "w /sys/kernel/mm/transparent_hugepage/enabled - - - - never";
        assert_eq!(read(&fake, TMPFILES), format!("{HEAD}{line}\n"));
        forget(&root, thp, &change("never", None)).unwrap();
        assert!(!fake.path().join(TMPFILES).exists(), "nothing of ours is left");
    }

    #[test]
    fn a_comment_takes_no_space() {
        let fake = FakeRoot::new().file(SYSCTL, "vm.dirty_ratio = 5\nvm.swappiness = 10\n");
        let path = fake.path().join(SYSCTL);
        comment_out(&path, &read(&fake, SYSCTL), "vm.swappiness = 10").unwrap();
        assert_eq!(read(&fake, SYSCTL), "vm.dirty_ratio = 5\n#m.swappiness = 10\n");
    }

    #[test]
    fn what_is_read_later_counts() {
        let fake = FakeRoot::new()
            .file("usr/lib/sysctl.d/50-x.conf", "vm.swappiness=1\n")
            .file("etc/sysctl.conf", "vm.swappiness = 10\n");
        let root = Root::at(fake.path()).unwrap();
        let swappiness = Setting::known("vm.swappiness").unwrap();
        keep(&root, swappiness, "10").unwrap();
        assert_eq!(overridden(&root, swappiness, "10"), None, "it says the same");
        let later = || overridden(&root, swappiness, "5");
        assert_eq!(later(), Some(("/etc/sysctl.conf".into(), "10".into())));
        fake.remove("etc/sysctl.conf");
        assert_eq!(later(), None, "50 comes before 60");
        fake.set("run/sysctl.d/70-y.conf", "vm.swap* = 2\n");
        assert_eq!(later(), Some(("/run/sysctl.d/70-y.conf".into(), "2".into())));
    }

    proptest! {
        #[test]
        fn editing_is_idempotent(text: String, value in 0u32..200) {
            let setting = Setting::known("vm.swappiness").unwrap();
            let wanted = line(setting, &value.to_string());
            let once = edited(&text, setting, Some(&wanted));
            prop_assert_eq!(&edited(&once, setting, Some(&wanted)), &once);
            prop_assert_eq!(current(&once, setting), Some(wanted.as_str()));
        }
    }
}
