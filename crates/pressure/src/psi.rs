//! Pressure stall information: the file's text and triggers.
//!
//! Sources: kernel `Documentation/accounting/psi.rst` and `kernel/sched/psi.c` (6.1, 6.18).

use std::time::Duration;

/// Hundredths of a percent: the kernel's own precision.
pub(crate) type Share = u32;

/// Below this an average counts as quiet: 1%.
pub(crate) const QUIET: Share = 100;
/// From this on a polled average counts as pressure: 10%, as much as the triggers' 100 ms of a second.
pub(crate) const LOUD: Share = 1000;

/// One line: how much of the time some, or all, tasks were stalled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stall {
    /// Over the last 10 s, decaying.
    pub(crate) avg10: Share,
    /// Ever.
    pub(crate) total: Duration,
}

/// A PSI file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Psi {
    pub(crate) some: Stall,
    pub(crate) full: Stall,
}

impl Psi {
    /// Both lines; `None` if either lacks a figure.
    pub(crate) fn parse(text: &[u8]) -> Option<Psi> {
        let line = |name: &[u8]| text.split(|b| *b == b'\n').find_map(|line| stall(line.strip_prefix(name)?));
        Some(Psi { some: line(b"some ")?, full: line(b"full ")? })
    }
}

fn stall(line: &[u8]) -> Option<Stall> {
    let field = |name: &[u8]| line.split(|b| *b == b' ').find_map(|field| field.strip_prefix(name));
    let total = Duration::from_micros(number(field(b"total=")?)?);
    Some(Stall { avg10: share(field(b"avg10=")?)?, total })
}

/// `12.34` as 1234; `None` for anything else.
fn share(text: &[u8]) -> Option<Share> {
    let point = text.iter().position(|b| *b == b'.')?;
    let (whole, rest) = (number(text.get(..point)?)?, text.get(point + 1..)?);
    if rest.len() != 2 {
        return None;
    }
    Share::try_from(whole.checked_mul(100)?.checked_add(number(rest)?)?).ok()
}

/// All of `text` as a decimal number.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    (!text.is_empty()).then_some(())?;
    text.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Whether some or all tasks must be stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Some,
    Full,
}

/// A trigger: so much stall in so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trigger {
    pub(crate) who: Who,
    pub(crate) stall: Duration,
    pub(crate) window: Duration,
}

impl Trigger {
    /// What is written to arm it. The host's file overwrites the last byte that it is given with a NUL (`psi_write`), so
    /// that `2000000` without one is read as `200000`: the NUL is part of it.
    pub(crate) fn text(&self) -> String {
        let who = if self.who == Who::Some { "some" } else { "full" };
        format!("{who} {} {}\0", self.stall.as_micros(), self.window.as_micros())
    }

    /// What somebody else's trigger asks for, as the kernel would read it: `sscanf("some %u %u")`.
    pub(crate) fn parse(text: &[u8]) -> Option<Trigger> {
        let mut words = text.split(|b| b.is_ascii_whitespace() || *b == 0).filter(|word| !word.is_empty());
        let who = match words.next()? {
            b"some" => Who::Some,
            b"full" => Who::Full,
            _ => return None,
        };
        let mut micros = || Some(Duration::from_micros(number(words.next()?)?));
        let (stall, window) = (micros()?, micros()?);
        Some(Trigger { who, stall, window })
    }

    pub(crate) fn of(&self, psi: &Psi) -> Stall {
        if self.who == Who::Some { psi.some } else { psi.full }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] = b"some avg10=12.34 avg60=1.25 avg300=0.10 total=123456\n\
                          full avg10=0.00 avg60=0.00 avg300=0.00 total=99\n";

    #[test]
    fn reads_the_kernels_format() {
        let psi = Psi::parse(TEXT).unwrap();
        assert_eq!(psi.some, Stall { avg10: 1234, total: Duration::from_micros(123_456) });
        assert_eq!(psi.full.total, Duration::from_micros(99));
        for broken in ["", "some avg10=1.00 total=1", "some avg10=1 total=1\nfull avg10=0.00 total=1"] {
            assert_eq!(Psi::parse(broken.as_bytes()), None, "{broken:?}");
        }
    }

    #[test]
    fn triggers_end_in_a_nul() {
        let (stall, window) = (Duration::from_millis(200), Duration::from_secs(2));
        let trigger = Trigger { who: Who::Some, stall, window };
        assert_eq!(trigger.text(), "some 200000 2000000\0");
        assert_eq!(Trigger::parse(trigger.text().as_bytes()), Some(trigger));
        assert_eq!(Trigger::parse(b"full 1 2\n").map(|t| t.who), Some(Who::Full));
        assert_eq!(Trigger::parse(b"some 200000"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = Psi::parse(&text);
            let _ = Trigger::parse(&text);
        }

        #[test]
        fn every_share_is_read_as_printed(hundredths in 0..=10_000_u32) {
            let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
            prop_assert_eq!(share(text.as_bytes()), Some(hundredths));
        }

        #[test]
        fn a_damaged_file_is_refused_or_read(text in "(some|full) avg10=[0-9.]{0,5} total=[0-9]{0,22}\n?") {
            let both = format!("{text}\n{}", text.replace("some", "full"));
            let _ = Psi::parse(both.as_bytes());
        }
    }
}
