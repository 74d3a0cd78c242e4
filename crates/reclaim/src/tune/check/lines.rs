//! Lines of sysctl files, judged together: what a later line takes back, what a mode turns off.

use super::sysctl::{self, Line};
use super::{Checked, obsolete};
use crate::tune::distance::nearest;
use crate::tune::judge::{Host, Remark, Verdict};
use crate::tune::{SETTINGS, Setting};
use ebbtide_observe::{ReadError, Root, root::MAX_FILE};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Keys outside of vm that bear on memory.
const OTHERS: [&str; 6] = [
    "kernel.shmmax",
    "kernel.shmall",
    "kernel.shmmni",
    "kernel.numa_balancing",
    "kernel.threads-max",
    "kernel.pid_max",
];

/// A line, and the file that it is in.
struct Placed {
    file: String,
    line: Line,
}

/// Checks `files`, which are read in this order.
///
/// Errors: a file that cannot be read.
pub fn files(root: &Root, host: &mut Host, files: &[PathBuf]) -> Result<Vec<Checked>, ReadError> {
    let mut lines = Vec::new();
    for path in files {
        let text = read(path)?;
        place(&mut lines, &path.display().to_string(), &text);
    }
    Ok(judged(root, host, &lines))
}

/// Checks what is read at boot, and says which files that is.
pub fn system(root: &Root, host: &mut Host) -> (Vec<String>, Vec<Checked>) {
    let (mut lines, mut buf, mut read) = (Vec::new(), Vec::new(), Vec::new());
    for file in sysctl::files(root) {
        if let Ok(text) = root.read(&file, &mut buf) {
            place(&mut lines, &format!("/{file}"), text);
            read.push(format!("/{file}"));
        }
    }
    (read, judged(root, host, &lines))
}

fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let fail = |error: std::io::Error| {
        ReadError::new(path, rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
    };
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(fail)?;
    file.take(MAX_FILE as u64).read_to_end(&mut text).map_err(fail)?;
    Ok(text)
}

fn place(lines: &mut Vec<Placed>, file: &str, text: &[u8]) {
    lines.extend(sysctl::parse(text).into_iter().map(|line| Placed { file: file.to_owned(), line }));
}

fn judged(root: &Root, host: &mut Host, lines: &[Placed]) -> Vec<Checked> {
    let names = names(root);
    for Placed { line, .. } in lines {
        let Some(value) = &line.value else { continue };
        // A key that is written out wins over a glob, wherever it stands (systemd-sysctl, sysctl.d(5)).
        let explicit =
            |name: &&String| lines.iter().any(|other| !other.line.is_glob() && other.line.key == **name);
        match line.is_glob() {
            false => host.plan(&line.key, value),
            true => names
                .iter()
                .filter(|name| line.matches(name) && !explicit(name))
                .for_each(|name| host.plan(name, value)),
        }
    }
    let one = |(at, placed): (usize, &Placed)| {
        let remark = remark(host, &names, placed, &lines[at + 1..])?;
        let Line { number, key, value, optional } = &placed.line;
        let dash = if *optional { "-" } else { "" };
        let text = match value {
            Some(value) => format!("{dash}{key} = {value}"),
            None => format!("{dash}{key}"),
        };
        Some(Checked { place: format!("{}:{number}", placed.file), text, remark })
    };
    lines.iter().enumerate().filter_map(one).collect()
}

/// Every key of this kernel that bears on memory.
fn names(root: &Root) -> Vec<String> {
    let of_vm = root.list("proc/sys/vm").unwrap_or_default().into_iter().map(|name| format!("vm.{name}"));
    let others = OTHERS.iter().map(|&name| name.to_owned());
    let there = |name: &String| root.open_file(&format!("proc/sys/{}", name.replace('.', "/"))).is_ok();
    // Some may only be written (drop_caches): that they are listed says that they are there.
    of_vm.chain(others.filter(there)).collect()
}

/// What a line does; `None` where it is not about memory.
fn remark(host: &Host, names: &[String], placed: &Placed, later: &[Placed]) -> Option<Remark> {
    let Line { key, value, optional, .. } = &placed.line;
    if placed.line.is_glob() {
        return glob(host, names, &placed.line);
    }
    let Some(value) = value else {
        let first = key.split_whitespace().next().unwrap_or_default();
        let ours = names.iter().any(|name| name == first);
        return ours.then(|| match optional {
            true => Remark::new(Verdict::Effective, "keeps globs from matching this key"),
            false => Remark::new(Verdict::Invalid, "has no '=' and sets nothing"),
        });
    };
    if !names.contains(key) {
        return absent(names, key);
    }
    let setting = Setting::known(key).ok();
    if let Some(error) = setting.and_then(|setting| setting.value(value).err()) {
        return Some(Remark::new(Verdict::Invalid, error.to_string()));
    }
    Some(overridden(key, value, setting, later).unwrap_or_else(|| host.judge(key, value)))
}

/// A key that this kernel does not have.
fn absent(names: &[String], key: &str) -> Option<Remark> {
    if let Some(what) = obsolete::gone(key) {
        return Some(Remark::new(Verdict::Obsolete, what));
    }
    let known =
        names.iter().map(String::as_str).chain(SETTINGS.iter().map(|s| s.name)).filter(|name| *name != key);
    if let Some(meant) = nearest(key, known) {
        return Some(
            Remark::new(Verdict::Misspelt, "no kernel has this key, and nothing is set").instead(meant),
        );
    }
    key.starts_with("vm.")
        .then(|| Remark::new(Verdict::Unknown, "this kernel does not have it: nothing is set"))
}

/// A later line that takes this one back.
fn overridden(key: &str, value: &str, setting: Option<&Setting>, later: &[Placed]) -> Option<Remark> {
    let says = |other: &Placed, what: String| {
        Remark::new(Verdict::Overridden, format!("{what} in {}:{}", other.file, other.line.number))
    };
    let sets = |name: &str| {
        let is = |other: &&Placed| other.line.key == name && other.line.value.is_some();
        later.iter().rev().find(is)
    };
    if let Some(other) = sets(key) {
        let now = other.line.value.as_deref().unwrap_or_default();
        let what = if now == value { "said again".to_owned() } else { format!("later set to {now}") };
        return Some(says(other, what));
    }
    let twin = setting.and_then(|setting| setting.twin)?;
    let other = sets(twin).filter(|other| other.line.value.as_deref() != Some("0"))?;
    Some(says(other, format!("turned off by {twin}, its counterpart,")))
}

/// The worst of what a glob sets.
fn glob(host: &Host, names: &[String], line: &Line) -> Option<Remark> {
    let matched: Vec<&String> = names.iter().filter(|name| line.matches(name)).collect();
    if matched.is_empty() {
        let own = line.key.starts_with("vm.");
        return own.then(|| Remark::new(Verdict::Unknown, "matches no key of this kernel: nothing is set"));
    }
    let value = line.value.as_deref()?;
    let each = matched.iter().map(|name| {
        let invalid = Setting::known(name).ok().and_then(|setting| setting.value(value).err());
        match invalid {
            Some(error) => Remark::new(Verdict::Invalid, error.to_string()),
            None => host.judge(name, value),
        }
    });
    let mut worst = each.min_by_key(|remark| remark.verdict)?;
    let all: Vec<&str> = matched.iter().map(|name| name.as_str()).collect();
    worst.says = format!("sets {}; {}", all.join(", "), worst.says);
    Some(worst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;

    fn machine() -> FakeRoot {
        let names = [
            "swappiness",
            "overcommit_memory",
            "overcommit_ratio",
            "dirty_ratio",
            "dirty_bytes",
            "drop_caches",
        ];
        let fake = FakeRoot::new().file(
            "proc/meminfo",
            "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nCommitted_AS: 10485760 kB\n",
        );
        names.iter().fold(fake, |fake, name| fake.file(format!("proc/sys/vm/{name}"), "0\n"))
    }

    fn check(text: &[u8]) -> Vec<Checked> {
        let fake = machine().file("x.conf", text);
        let root = Root::at(fake.path()).unwrap();
        files(&root, &mut Host::read(&root).unwrap(), &[fake.path().join("x.conf")]).unwrap()
    }

    fn verdicts(text: &str) -> Vec<Verdict> {
        check(text.as_bytes()).iter().map(|checked| checked.remark.verdict).collect()
    }

    #[test]
    fn each_kind_of_line() {
        use Verdict::*;
        for (text, expected) in [
            ("vm.swappiness = 10", vec![NoEffect]),
            ("vm.swapiness = 10", vec![Misspelt]),
            ("vn.swappiness = 10", vec![Misspelt]),
            ("vm.swappiness 10", vec![Invalid]),
            ("vm.swappiness = many", vec![Invalid]),
            ("vm.swappiness", vec![Invalid]),
            ("-vm.swappiness", vec![Effective]),
            ("vm.block_dump = 1", vec![Obsolete]),
            ("fs.negative-dentry-limit = 1", vec![Obsolete]),
            ("vm.no_such_thing_at_all = 1", vec![Unknown]),
            ("vm.drop_caches = 3", vec![Harmful]),
            ("net.ipv4.ip_forward = 1\nkernel.sysrq=1", vec![]),
            ("vm.overcommit_ratio = 80", vec![NoEffect]),
            ("vm.overcommit_ratio = 80\nvm.overcommit_memory = 2", vec![Effective, Effective]),
            ("vm.overcommit_memory = 2\nvm.overcommit_ratio = 50", vec![Harmful, Harmful]),
            ("vm.dirty_ratio = 10\nvm.dirty_ratio = 20", vec![Overridden, Effective]),
            ("vm.dirty_ratio = 10\nvm.dirty_bytes = 268435456", vec![Overridden, Effective]),
            ("vm.dirty_* = 5", vec![Doubtful]),
            ("vm.x* = 5", vec![Unknown]),
        ] {
            assert_eq!(verdicts(text), expected, "{text}");
        }
        let one = &check(b"# c\nvm.swapiness = 10\n")[0];
        assert!(one.place.ends_with("x.conf:2"), "{one:?}");
        assert_eq!(one.remark.instead.as_deref(), Some("vm.swappiness"));
    }

    #[test]
    fn what_is_read_at_boot() {
        let fake = machine()
            .file("etc/sysctl.d/10-a.conf", "vm.dirty_ratio = 5\n")
            .file("etc/sysctl.conf", "vm.dirty_ratio = 6\n");
        let root = Root::at(fake.path()).unwrap();
        let (read, checked) = system(&root, &mut Host::read(&root).unwrap());
        assert_eq!(read, ["/etc/sysctl.d/10-a.conf", "/etc/sysctl.conf"]);
        assert_eq!(checked[0].remark.says, "later set to 6 in /etc/sysctl.conf:1");
    }

    proptest! {
        #[test]
        fn any_file_can_be_checked(text: Vec<u8>, value: String) {
            check(&text);
            check(format!("vm.dirty_ratio = {value}\n[{value}]*=1\n-{value}").as_bytes());
        }
    }
}
