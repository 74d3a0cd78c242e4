//! Whether memory is short: pressure stall information of the process's own cgroup (v2), then the host's.
//!
//! The files are opened, read and closed at each look, because a program may close descriptors it does not know.
//! Format: kernel `Documentation/accounting/psi.rst`; the `some` line's `total` counts stalled microseconds.

use crate::sys;

/// Stalled share of the time between two looks that counts as pressure: a tenth.
const SHARE: u64 = 10;

/// Remembers the last look.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pressure {
    host: Option<(u64, u64)>,
    group: Option<(u64, u64)>,
}

impl Pressure {
    /// Looks; `now_ms` is the monotonic time.
    pub(crate) fn look(&mut self, now_ms: u64) -> bool {
        let mut path = [0; 512];
        let group = own_group(&mut path).and_then(total);
        let group = judge(&mut self.group, now_ms, group);
        judge(&mut self.host, now_ms, total(c"/proc/pressure/memory")) || group
    }
}

fn judge(last: &mut Option<(u64, u64)>, now_ms: u64, total: Option<u64>) -> bool {
    let before = core::mem::replace(last, total.map(|t| (now_ms, t)));
    let (Some((then, before)), Some(total)) = (before, total) else { return false };
    let elapsed_us = now_ms.saturating_sub(then) * 1000;
    elapsed_us > 0 && total.saturating_sub(before) * SHARE > elapsed_us
}

/// The path of the own cgroup's memory.pressure, written into `path`.
fn own_group(path: &mut [u8; 512]) -> Option<&core::ffi::CStr> {
    let mut text = [0; 512];
    let len = sys::read_file(c"/proc/self/cgroup", &mut text)?;
    write_path(text.get(..len)?, path)
}

/// `0::/a/b` is the unified hierarchy's line.
fn write_path<'a>(text: &[u8], path: &'a mut [u8; 512]) -> Option<&'a core::ffi::CStr> {
    let line = text.split(|b| *b == b'\n').find_map(|l| l.strip_prefix(b"0::"))?;
    let parts: [&[u8]; 4] = [b"/sys/fs/cgroup", line, b"/memory.pressure", b"\0"];
    let mut at = 0;
    for part in parts {
        path.get_mut(at..at + part.len())?.copy_from_slice(part);
        at += part.len();
    }
    core::ffi::CStr::from_bytes_with_nul(path.get(..at)?).ok()
}

fn total(path: &core::ffi::CStr) -> Option<u64> {
    let mut text = [0; 256];
    let len = sys::read_file(path, &mut text)?;
    parse(text.get(..len)?)
}

fn parse(text: &[u8]) -> Option<u64> {
    let line = text.split(|b| *b == b'\n').find(|l| l.starts_with(b"some "))?;
    let field = line.split(|b| *b == b' ').find_map(|f| f.strip_prefix(b"total="))?;
    (!field.is_empty()).then_some(())?;
    field.iter().try_fold(0_u64, |n, d| {
        let digit = d.checked_sub(b'0').filter(|d| *d < 10)?;
        n.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_kernels_format() {
        let text = b"some avg10=0.00 avg60=1.25 avg300=0.10 total=123456\nfull avg10=0.00 total=99\n";
        assert_eq!(parse(text), Some(123_456));
        assert_eq!(parse(b"full avg10=0.00 total=99\n"), None);
        assert_eq!(parse(b"some total=99999999999999999999999"), None);
    }

    #[test]
    fn a_tenth_of_the_time_stalled_is_pressure() {
        let mut last = None;
        assert!(!judge(&mut last, 1000, Some(5)), "the first look knows nothing");
        assert!(!judge(&mut last, 1500, Some(50_000)));
        assert!(judge(&mut last, 2000, Some(100_001)));
        assert!(!judge(&mut last, 2500, None));
        assert!(!judge(&mut last, 3000, Some(900_000)));
    }

    #[test]
    fn finds_the_unified_line() {
        let mut path = [0; 512];
        let text = b"12:pids:/x\n0::/system.slice/a.service\n";
        let expected = c"/sys/fs/cgroup/system.slice/a.service/memory.pressure";
        assert_eq!(write_path(text, &mut path), Some(expected));
        assert_eq!(write_path(b"12:pids:/x\n", &mut [0; 512]), None);
        assert_eq!(write_path(&[b"0::/".as_slice(), &[b'a'; 600]].concat(), &mut [0; 512]), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&text);
            let _ = write_path(&text, &mut [0; 512]);
        }
    }
}
