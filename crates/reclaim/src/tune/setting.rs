//! One setting of the kernel: where it is, what it may be, reading and writing it.

use super::distance::nearest;
use super::{SETTINGS, TuneError};
use ebbtide_observe::{ReadError, Root};
use rustix::io::Errno;
use std::io::Write;

/// A setting of the kernel that ebb changes.
#[derive(Debug)]
pub struct Setting {
    /// As sysctl(8) names it; those of /sys have a name of their own.
    pub name: &'static str,
    /// Where it is, below the root.
    pub path: &'static str,
    /// What it may be.
    pub values: Values,
    /// What it really does.
    pub does: &'static str,
    /// What can go wrong.
    pub danger: &'static str,
    /// Where that is written.
    pub source: &'static str,
    /// The other spelling of the same limit: writing one turns the other off, and it reads 0 then.
    pub twin: Option<&'static str>,
}

/// What a setting may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// A number from the first to the second.
    Number(u64, u64),
    /// One of some words, of which the kernel shows the chosen one in brackets.
    Word(&'static [&'static str]),
}

impl Setting {
    /// The setting that `name` means: its name, with slashes for dots as in sysctl files, or its path.
    ///
    /// Errors: [`TuneError::Unknown`] with what may have been meant.
    pub fn known(name: &str) -> Result<&'static Setting, TuneError> {
        let wanted = name.strip_prefix("/proc/sys/").unwrap_or(name).replace('/', ".");
        let is = |setting: &&Setting| {
            setting.name == wanted || name.strip_prefix('/').is_some_and(|path| path == setting.path)
        };
        SETTINGS.iter().find(is).ok_or_else(|| TuneError::Unknown {
            name: name.to_owned(),
            nearest: nearest(&wanted, SETTINGS.iter().map(|setting| setting.name)),
        })
    }

    /// What it is now.
    pub fn read(&self, root: &Root) -> Result<String, ReadError> {
        let line = root.read_line(self.path)?;
        Ok(match self.values {
            Values::Number(..) => line,
            Values::Word(_) => chosen(&line).to_owned(),
        })
    }

    /// The value that `text` means, as the kernel writes it.
    ///
    /// Errors: [`TuneError::Value`].
    pub fn value(&self, text: &str) -> Result<String, TuneError> {
        let wrong = || TuneError::Value { name: self.name, value: text.to_owned(), takes: self.takes() };
        match self.values {
            Values::Number(least, most) => {
                let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                let number = digits.then(|| text.parse::<u64>().ok()).flatten().ok_or_else(wrong)?;
                if (least..=most).contains(&number) { Ok(number.to_string()) } else { Err(wrong()) }
            }
            Values::Word(words) => words.contains(&text).then(|| text.to_owned()).ok_or_else(wrong),
        }
    }

    /// What it takes, for people.
    pub fn takes(&self) -> String {
        match self.values {
            Values::Number(least, most) if most >= i32::MAX as u64 => format!("a number from {least}"),
            Values::Number(least, most) => format!("a number from {least} to {most}"),
            Values::Word(words) => words.join(", "),
        }
    }

    /// Whether it is a sysctl; else it is a file of /sys.
    pub fn is_sysctl(&self) -> bool {
        self.path.starts_with("proc/sys/")
    }

    /// Asks whether `value` may be written, before anything is recorded for it.
    ///
    /// Errors: [`TuneError::Refused`].
    pub(crate) fn writable(&self, root: &Root, value: &str) -> Result<(), TuneError> {
        rustix::fs::access(root.path(self.path), rustix::fs::Access::WRITE_OK).map_err(|errno| {
            TuneError::Refused { name: self.name, value: value.to_owned(), why: why(&errno.into()) }
        })
    }

    /// Writes `value` and reads it back.
    ///
    /// Errors: [`TuneError::Refused`], also where the kernel made something else of it.
    pub(crate) fn write(&self, root: &Root, value: &str) -> Result<(), TuneError> {
        let refused = |why: String| TuneError::Refused { name: self.name, value: value.to_owned(), why };
        let path = root.path(self.path);
        // One system call and no O_TRUNC, so that there is no moment without a value: on a fake root what was longer
        // stays behind the first line, which is what counts.
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(format!("{value}\n").as_bytes()))
            .map_err(|error| refused(why(&error)))?;
        match self.read(root) {
            Ok(now) if now == value => Ok(()),
            Ok(now) => Err(refused(format!("the kernel made {now} of it"))),
            Err(error) => Err(refused(format!("it was written and cannot be read back: {error}"))),
        }
    }
}

/// The word in brackets; all of a line without any.
fn chosen(line: &str) -> &str {
    let word = line.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    word.map_or(line, |(word, _)| word)
}

/// Why the kernel refused, and what would help.
fn why(error: &std::io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::ACCESS | Errno::PERM) if rustix::process::geteuid().is_root() => {
            "permission denied, even to root: a container or security module keeps it; try it on the host itself"
                .to_owned()
        }
        // proc_sys_permission asks for the file's owner, root, and for no capability (fs/proc/proc_sysctl.c, 6.18).
        Some(Errno::ACCESS | Errno::PERM) => "permission denied: it takes root; the same with sudo".to_owned(),
        Some(Errno::ROFS) => {
            "it is mounted read-only here, as in a container: try it on the host itself".to_owned()
        }
        Some(Errno::INVAL) => "this kernel does not take that value".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;

    #[test]
    fn by_every_name() {
        for name in ["vm.swappiness", "vm/swappiness", "/proc/sys/vm/swappiness", "/proc/sys/vm.swappiness"] {
            assert_eq!(Setting::known(name).unwrap().name, "vm.swappiness", "{name}");
        }
        let thp = Setting::known("/sys/kernel/mm/transparent_hugepage/enabled").unwrap();
        assert_eq!(thp.name, "thp.enabled");
        let error = Setting::known("vm.swapiness").unwrap_err().to_string();
        assert!(error.contains("did you mean vm.swappiness?"), "{error}");
        assert!(Setting::known("kernel.core_pattern").is_err(), "only what the table has");
    }

    #[test]
    fn values() {
        let swappiness = Setting::known("vm.swappiness").unwrap();
        assert_eq!(swappiness.value("010").unwrap(), "10");
        for wrong in ["", "201", "-1", "+1", "1 ", "0x10", "ten", "99999999999999999999999"] {
            assert!(swappiness.value(wrong).is_err(), "{wrong}");
        }
        let thp = Setting::known("thp.enabled").unwrap();
        assert_eq!(thp.value("madvise").unwrap(), "madvise");
        assert!(thp.value("[always]").is_err());
    }

    #[test]
    fn reads_and_writes() {
        let fake = FakeRoot::new()
            .file("proc/sys/vm/swappiness", "60\n")
            .file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        let root = Root::at(fake.path()).unwrap();
        let [swappiness, thp] = ["vm.swappiness", "thp.enabled"].map(|name| Setting::known(name).unwrap());
        assert_eq!(
            (swappiness.read(&root).unwrap(), thp.read(&root).unwrap()),
            ("60".into(), "madvise".into())
        );
        swappiness.write(&root, "5").unwrap();
        thp.write(&root, "never").unwrap();
        assert_eq!((swappiness.read(&root).unwrap(), thp.read(&root).unwrap()), ("5".into(), "never".into()));
        assert!(Setting::known("vm.dirty_ratio").unwrap().write(&root, "5").is_err(), "never made anew");
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            for setting in SETTINGS {
                let _ = (setting.value(&text), chosen(&text), Setting::known(&text).is_ok());
            }
        }
    }
}
