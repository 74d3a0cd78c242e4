//! The limits of unwritten file pages: two thresholds, each as a ratio or in bytes.

use super::{Host, Remark, Verdict};
use ebbtide_observe::Bytes;

/// So much to be written at once stalls writers for seconds on most disks.
const MUCH: Bytes = Bytes::from_gib(4);

impl Host<'_> {
    pub(super) fn writeback(&self, key: &str, value: u64) -> Option<Remark> {
        let available = self.mem.mem_available;
        let bytes = if key.ends_with("_ratio") {
            available.scaled(value.min(100) as f64 / 100.0)
        } else {
            Bytes(value)
        };
        if value == 0 && key.ends_with("_bytes") {
            return Some(Remark::new(Verdict::NoEffect, "0 leaves the ratio in force"));
        }
        if key.starts_with("vm.dirty_background") {
            let front = self.threshold("vm.dirty_bytes", "vm.dirty_ratio")?;
            return (bytes >= front).then(|| {
                let says = format!(
                    "{bytes} is not below where writers have to wait ({front}): the kernel takes half of that instead"
                );
                Remark::new(Verdict::NoEffect, says)
            });
        }
        if bytes < Bytes::from_mib(8) {
            let says = format!("writers wait for the disk from {bytes} on, so nearly always");
            return Some(Remark::new(Verdict::Doubtful, says));
        }
        (bytes >= MUCH && bytes.share_of(available) > 0.3).then(|| {
            let says = format!(
                "up to {bytes} may wait to be written; whoever then writes or calls fsync waits for all of it"
            );
            Remark::new(Verdict::Doubtful, says).instead("vm.dirty_bytes = 1073741824")
        })
    }

    /// A threshold that is given in bytes, else as a ratio.
    fn threshold(&self, bytes: &str, ratio: &str) -> Option<Bytes> {
        match self.number(bytes) {
            Some(bytes @ 1..) => Some(Bytes(bytes)),
            _ => Some(self.mem.mem_available.scaled(self.number(ratio)?.min(100) as f64 / 100.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::*;
    use super::super::tests::{all, machine, verdict};

    #[test]
    fn thresholds() {
        let fake = machine();
        all(&fake, Effective, "vm.dirty_ratio=10 vm.dirty_bytes=268435456 vm.dirty_background_ratio=5");
        all(&fake, Doubtful, "vm.dirty_ratio=80 vm.dirty_ratio=0");
        all(
            &fake,
            NoEffect,
            "vm.dirty_bytes=0 vm.dirty_background_ratio=20 vm.dirty_background_bytes=9000000000",
        );
        let small = [("vm.dirty_bytes", "1048576")];
        assert_eq!(verdict(&fake, &small, "vm.dirty_background_bytes", "2097152"), NoEffect);
    }
}
