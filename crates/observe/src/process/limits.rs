//! /proc/PID/limits: the resource limits of a process.

use super::Process;
use crate::{Bytes, ReadError, scan};
use serde::Serialize;

/// One resource's limits; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limit<T> {
    /// What holds now.
    pub soft: Option<T>,
    /// Up to where the process may raise it.
    pub hard: Option<T>,
}

impl<T> Default for Limit<T> {
    fn default() -> Limit<T> {
        Limit { soft: None, hard: None }
    }
}

/// The limits that bear on memory and its stand-ins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// RLIMIT_AS: address space; beyond it mmap and brk fail with ENOMEM.
    pub address_space: Limit<Bytes>,
    /// RLIMIT_DATA: private writable mappings (4.7).
    pub data: Limit<Bytes>,
    /// RLIMIT_STACK: the main stack, and what glibc gives each thread.
    pub stack: Limit<Bytes>,
    /// RLIMIT_MEMLOCK.
    pub locked: Limit<Bytes>,
    /// RLIMIT_CORE.
    pub core: Limit<Bytes>,
    /// RLIMIT_RSS: without effect since 2.4.30.
    pub resident: Limit<Bytes>,
    /// RLIMIT_MSGQUEUE.
    pub message_queues: Limit<Bytes>,
    /// RLIMIT_NPROC: threads of the user; beyond it clone fails with EAGAIN.
    pub processes: Limit<u64>,
    /// RLIMIT_NOFILE.
    pub open_files: Limit<u64>,
}

impl Limits {
    /// The limits in `text`; `None` where it names none that is known.
    pub fn parse(text: &[u8]) -> Option<Limits> {
        let mut limits = Limits::default();
        let mut any = false;
        for line in scan::lines(text) {
            any |= limits.line(line).is_some();
        }
        any.then_some(limits)
    }

    fn line(&mut self, line: &[u8]) -> Option<()> {
        let bytes: [(&[u8], &mut Limit<Bytes>); 7] = [
            (b"Max address space", &mut self.address_space),
            (b"Max data size", &mut self.data),
            (b"Max stack size", &mut self.stack),
            (b"Max locked memory", &mut self.locked),
            (b"Max core file size", &mut self.core),
            (b"Max resident set", &mut self.resident),
            (b"Max msgqueue size", &mut self.message_queues),
        ];
        for (name, limit) in bytes {
            if let Some(Limit { soft, hard }) = limit_after(line, name) {
                *limit = Limit { soft: soft.map(Bytes), hard: hard.map(Bytes) };
                return Some(());
            }
        }
        let counts: [(&[u8], &mut Limit<u64>); 2] =
            [(b"Max processes", &mut self.processes), (b"Max open files", &mut self.open_files)];
        for (name, limit) in counts {
            if let Some(read) = limit_after(line, name) {
                *limit = read;
                return Some(());
            }
        }
        None
    }
}

/// The two limits in `line` after `name`.
fn limit_after(line: &[u8], name: &[u8]) -> Option<Limit<u64>> {
    let mut words = scan::words(line.strip_prefix(name)?);
    let mut next = || match words.next()? {
        b"unlimited" => Some(None),
        word => scan::number(word).map(Some),
    };
    Some(Limit { soft: next()?, hard: next()? })
}

impl Process {
    /// `limits`.
    pub fn limits(&self) -> Result<Limits, ReadError> {
        self.parsed("limits", Limits::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] = b"Limit                     Soft Limit           Hard Limit           Units     \n\
        Max data size             unlimited            unlimited            bytes     \n\
        Max stack size            8388608              unlimited            bytes     \n\
        Max processes             96365                96366                processes \n\
        Max open files            1024                 524288               files     \n\
        Max address space         1073741824           unlimited            bytes     \n\
        Max nice priority         0                    0                    \n";

    #[test]
    fn a_process() {
        let limits = Limits::parse(TEXT).unwrap();
        assert_eq!(limits.stack, Limit { soft: Some(Bytes(8 << 20)), hard: None });
        assert_eq!(limits.address_space.soft, Some(Bytes(1 << 30)));
        assert_eq!(limits.open_files, Limit { soft: Some(1024), hard: Some(524_288) });
        assert_eq!(limits.processes, Limit { soft: Some(96_365), hard: Some(96_366) });
        assert_eq!(limits.data, Limit::default());
        assert_eq!(Limits::parse(b"Max open files  x y\n"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = Limits::parse(&text);
        }
    }
}
