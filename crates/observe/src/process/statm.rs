//! /proc/PID/statm: the cheapest figures of a process's memory, readable for everyone.

use super::Process;
use crate::{Pages, ReadError, scan};
use serde::Serialize;

/// A statm file, without its fields that are always 0 since 2.6 (lib, dt).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Statm {
    /// Address space mapped.
    pub size: Pages,
    /// Resident, roughly (per-CPU counters, see [`super::status`]).
    pub resident: Pages,
    /// Resident file and shmem pages.
    pub shared: Pages,
    /// The program's text.
    pub text: Pages,
    /// Private writable mappings and stack.
    pub data: Pages,
}

impl Statm {
    /// The figures in `text`; `None` where one is missing.
    pub fn parse(text: &[u8]) -> Option<Statm> {
        let mut words = scan::words(scan::lines(text).next()?).map(scan::number);
        let mut next = || words.next()?.map(Pages);
        let (size, resident, shared, text, _lib, data) =
            (next()?, next()?, next()?, next()?, next()?, next()?);
        Some(Statm { size, resident, shared, text, data })
    }
}

impl Process {
    /// `statm`.
    pub fn statm(&self) -> Result<Statm, ReadError> {
        self.parsed("statm", Statm::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_process() {
        let statm = Statm::parse(b"765 442 414 5 0 123 0\n").unwrap();
        assert_eq!((statm.size, statm.resident, statm.shared), (Pages(765), Pages(442), Pages(414)));
        assert_eq!((statm.text, statm.data), (Pages(5), Pages(123)));
        assert_eq!(Statm::parse(b"1 2 3"), None);
        assert_eq!(Statm::parse(b"1 2 3 x 5 6"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = Statm::parse(&text);
        }
    }
}
