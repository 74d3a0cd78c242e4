//! What the service manager says in the environment: systemd's memory pressure protocol
//! (<https://systemd.io/MEMORY_PRESSURE>).

use crate::Options;
use data_encoding::{BASE64, BASE64_NOPAD};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(crate) const WATCH: &str = "MEMORY_PRESSURE_WATCH";
const WRITE: &str = "MEMORY_PRESSURE_WRITE";

/// What the variables ask for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing: they are not set.
    Nothing,
    /// That memory pressure is not heeded.
    Off,
    /// That `path` is watched after `write` was written to it.
    Watch { path: PathBuf, write: Option<Vec<u8>> },
    /// Nonsense, on that path if there is one.
    Nonsense { path: PathBuf, why: String },
}

impl Asked {
    pub(crate) fn read(options: &Options) -> Asked {
        let Some(watch) = options.read_variable(WATCH).filter(|watch| !watch.is_empty()) else {
            return Asked::Nothing;
        };
        let path = PathBuf::from(watch);
        if path == Path::new("/dev/null") {
            return Asked::Off;
        }
        if options.reads_environment() && is_set_id() {
            return Asked::Nonsense { path, why: "whoever starts a set-user-ID program may set it".into() };
        }
        if !path.is_absolute() {
            return Asked::Nonsense { path, why: format!("{WATCH} is no absolute path") };
        }
        let write = options.read_variable(WRITE).filter(|write| !write.is_empty());
        match write.as_deref().map(decode) {
            None => Asked::Watch { path, write: None },
            Some(Ok(write)) => Asked::Watch { path, write: Some(write) },
            Some(Err(why)) => Asked::Nonsense { path, why },
        }
    }
}

/// Whether this program has rights that its caller, who sets the environment, does not have. File capabilities are not
/// seen by this; what is written goes to PSI files, FIFOs and sockets only.
fn is_set_id() -> bool {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    getuid() != geteuid() || getgid() != getegid()
}

fn decode(text: &OsStr) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let decoded = BASE64.decode(bytes).or_else(|_| BASE64_NOPAD.decode(bytes));
    decoded.map_err(|error| format!("{WRITE} is no base64: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    fn asked(watch: &str, write: &str) -> Asked {
        Asked::read(&Options::new().variable(WATCH, watch).variable(WRITE, write))
    }

    #[test]
    fn reads_what_systemd_sets() {
        let write = Some(b"some 200000 2000000\0".to_vec());
        let path = PathBuf::from("/sys/fs/cgroup/a.service/memory.pressure");
        let said = asked("/sys/fs/cgroup/a.service/memory.pressure", "c29tZSAyMDAwMDAgMjAwMDAwMAA=");
        assert_eq!(said, Asked::Watch { path, write });
        assert_eq!(asked("/fifo", ""), Asked::Watch { path: "/fifo".into(), write: None });
        assert_eq!(asked("/dev/null", "!"), Asked::Off);
        assert_eq!(Asked::read(&Options::new().no_variables()), Asked::Nothing);
    }

    #[test]
    fn says_what_is_nonsense() {
        let why = |watch, write| match asked(watch, write) {
            Asked::Nonsense { why, .. } => why,
            other => panic!("{other:?}"),
        };
        assert!(why("relative/fifo", "").contains("absolute"));
        assert!(why("/fifo", "c29tZ!").contains("base64"), "{}", why("/fifo", "c29tZ!"));
    }

    proptest! {
        #[test]
        fn never_panics(watch: Vec<u8>, write: Vec<u8>) {
            let (watch, write) = (OsString::from_vec(watch), OsString::from_vec(write));
            let _ = Asked::read(&Options::new().variable(WATCH, watch).variable(WRITE, write));
        }
    }
}
