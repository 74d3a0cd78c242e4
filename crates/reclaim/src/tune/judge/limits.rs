//! What is promised, and what is kept free: overcommit, watermarks, huge pages.

use super::{Host, Remark, Verdict};
use ebbtide_explain::rules::commit_setting;
use ebbtide_observe::Bytes;

/// From this share of RAM kept free for nobody on, it is harm. The kernel's own choice for huge pages stops there
/// too (set_recommended_min_free_kbytes, mm/khugepaged.c, 6.18).
const KEPT_FREE: f64 = 0.05;

/// A commit limit with less than this share left is full soon.
const LEFT: f64 = 0.10;

impl Host<'_> {
    pub(super) fn overcommit_mode(&self, mode: u64) -> Option<Remark> {
        match mode {
            1 => Some(Remark::new(
                Verdict::Effective,
                "nothing is refused any more; what is touched beyond RAM and swap ends in an OOM kill",
            )),
            2 => Some(self.against_limit(self.planned_limit())),
            _ => None,
        }
    }

    /// `overcommit_ratio` and `overcommit_kbytes`.
    pub(super) fn commit_limit(&self, key: &str, value: u64) -> Option<Remark> {
        let mode = self.number("vm.overcommit_memory").unwrap_or(0);
        if mode != 2 {
            let says = format!(
                "vm.overcommit_memory is {mode}: there is no limit that this could set; only mode 2 has one"
            );
            return Some(Remark::new(Verdict::NoEffect, says));
        }
        let limit = match key {
            "vm.overcommit_kbytes" if value == 0 => return None,
            "vm.overcommit_kbytes" => Bytes::from_kib(value) + self.mem.swap_total,
            _ => self.by_ratio(value),
        };
        Some(self.against_limit(limit))
    }

    fn planned_limit(&self) -> Bytes {
        match self.number("vm.overcommit_kbytes") {
            Some(kbytes @ 1..) => Bytes::from_kib(kbytes) + self.mem.swap_total,
            _ => self.by_ratio(self.number("vm.overcommit_ratio").unwrap_or(50)),
        }
    }

    /// vm_commit_limit, mm/util.c.
    fn by_ratio(&self, ratio: u64) -> Bytes {
        (self.mem.mem_total - self.mem.hugetlb).scaled(ratio as f64 / 100.0) + self.mem.swap_total
    }

    fn against_limit(&self, limit: Bytes) -> Remark {
        let committed = self.mem.committed_as;
        let figures =
            format!("CommitLimit would be {limit}, and {committed} is committed now (Committed_AS)");
        if limit <= committed {
            let says = format!("refuses at once: {figures}; malloc and fork fail with memory free");
            let kbytes = self.number("vm.overcommit_kbytes");
            let (setting, enough) = commit_setting(&self.mem, kbytes, committed.scaled(1.25));
            return Remark::new(Verdict::Harmful, says)
                .instead(format!("vm.overcommit_memory = 0, or {setting} = {enough} and more"));
        }
        if (limit - committed).share_of(limit) < LEFT {
            return Remark::new(Verdict::Doubtful, format!("full soon: {figures}"));
        }
        Remark::new(Verdict::Effective, figures)
    }

    pub(super) fn reserve(&self) -> Option<Remark> {
        let mode = self.number("vm.overcommit_memory").unwrap_or(0);
        // Before 5.2 mode 0 took admin_reserve_kbytes into account too (8c7829b04c52).
        let old = self.kernel != (0, 0) && self.kernel < (5, 2);
        (mode != 2 && !old).then(|| {
            let says = format!("vm.overcommit_memory is {mode}: reserves count in mode 2 only");
            Remark::new(Verdict::NoEffect, says)
        })
    }

    pub(super) fn min_free(&self, value: u64) -> Option<Remark> {
        let (min, total) = (Bytes::from_kib(value), self.mem.mem_total);
        if value < 1024 {
            let says = "below 1024 the kernel may deadlock under load, when it needs memory to free memory";
            return Some(Remark::new(Verdict::Harmful, says));
        }
        let high = min.scaled(1.5);
        (min.share_of(total) > KEPT_FREE).then(|| {
            let says = format!(
                "{min} of {total} is kept for emergencies and {high} kept free by reclaim ({:.0}% of RAM); {} is \
                 available now",
                high.share_of(total) * 100.0,
                self.mem.mem_available
            );
            let own = own_min_free(total);
            Remark::new(Verdict::Harmful, says).instead(format!("vm.min_free_kbytes = {own} (the kernel's own choice, or more by khugepaged)"))
        })
    }

    pub(super) fn watermark(&self, value: u64) -> Option<Remark> {
        let kept = self.mem.mem_total.scaled(value.min(10_000) as f64 * 2.0 / 10_000.0);
        if value > 1000 && self.kernel != (0, 0) && self.kernel < (5, 17) {
            return Some(Remark::new(Verdict::Invalid, "kernels before 5.17 take 1000 at most"));
        }
        (kept.share_of(self.mem.mem_total) > KEPT_FREE * 2.0).then(|| {
            Remark::new(Verdict::Doubtful, format!("kswapd then keeps {kept} free that programs could use"))
        })
    }

    pub(super) fn huge_pages(&self, pages: u64) -> Option<Remark> {
        let (taken, total) = (self.mem.huge_page_size * pages, self.mem.mem_total);
        (taken.share_of(total) > 0.5).then(|| {
            let says = format!(
                "sets {taken} of {total} aside, which only programs that ask for hugetlb pages can use"
            );
            Remark::new(Verdict::Harmful, says)
        })
    }
}

/// What the kernel itself chooses: 4 * sqrt(lowmem in KiB), from 128 to 262144 (calculate_min_free_kbytes,
/// mm/page_alloc.c, 6.18). khugepaged raises it where huge pages are on.
pub(crate) fn own_min_free(total: Bytes) -> u64 {
    ((total.0 / 1024 * 16) as f64).sqrt().clamp(128.0, 262_144.0) as u64
}

#[cfg(test)]
mod tests {
    use super::super::tests::{all, machine, verdict};
    use super::*;
    use Verdict::*;

    #[test]
    fn the_ratio_counts_in_mode_2_alone() {
        let fake = machine();
        let strict = [("vm.overcommit_memory", "2")];
        assert_eq!(verdict(&fake, &[], "vm.overcommit_ratio", "80"), NoEffect);
        assert_eq!(verdict(&fake, &[("vm.overcommit_memory", "1")], "vm.overcommit_kbytes", "1"), NoEffect);
        assert_eq!(verdict(&fake, &[], "vm.user_reserve_kbytes", "1000"), NoEffect);
        assert_eq!(verdict(&fake, &strict, "vm.user_reserve_kbytes", "1000"), Effective);
        assert_eq!(verdict(&fake, &strict, "vm.overcommit_ratio", "50"), Harmful, "8 GiB for 10");
        assert_eq!(verdict(&fake, &strict, "vm.overcommit_ratio", "65"), Doubtful, "10.4 GiB for 10");
        assert_eq!(verdict(&fake, &strict, "vm.overcommit_ratio", "90"), Effective);
        assert_eq!(verdict(&fake, &strict, "vm.overcommit_kbytes", "9000000"), Harmful);
        assert_eq!(verdict(&fake, &[], "vm.overcommit_memory", "2"), Harmful, "the present ratio is 50");
        assert_eq!(verdict(&fake, &[("vm.overcommit_ratio", "90")], "vm.overcommit_memory", "2"), Effective);
    }

    #[test]
    fn what_is_kept_free() {
        let fake = machine();
        all(&fake, Harmful, "vm.min_free_kbytes=512 vm.min_free_kbytes=2097152 vm.nr_hugepages=6000");
        all(&fake, Effective, "vm.min_free_kbytes=16384 vm.watermark_scale_factor=200 vm.nr_hugepages=100");
        all(&fake, Doubtful, "vm.watermark_scale_factor=1000");
        assert_eq!(own_min_free(Bytes::from_gib(16)), 16_384);
        assert_eq!(own_min_free(Bytes::ZERO), 128);
    }
}
