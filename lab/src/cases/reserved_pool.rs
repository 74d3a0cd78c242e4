//! `reserved-pool`: hugetlb pages set aside and not used.

use crate::case::{Case, Need, Noise, Truth, is};
use crate::procfs;
use crate::region::{HUGE, Kind, Region};
use crate::stage::Stage;
use anyhow::Result;
use ebbtide_observe::Bytes;

const TRUTH: Truth = is("reserved-pool").near("free_pool", 5);
const NEEDS: &[Need] = &[Need::Root, Need::HugePages];

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::host("reserved-pool/512m", "512 MB of huge pages reserved, none used", TRUTH, |s| {
        reserve(s, Bytes::from_mib(512), 0.0)
    })
    .needs(NEEDS),
    Case::host("reserved-pool/1g", "1 GB of huge pages reserved, none used", TRUTH, |s| {
        reserve(s, Bytes::from_gib(1), 0.0)
    })
    .needs(NEEDS),
    Case::host("reserved-pool/one-fifth-used", "1 GB of huge pages reserved, a fifth used", TRUTH, |s| {
        reserve(s, Bytes::from_gib(1), 0.2)
    })
    .needs(NEEDS),
    Case::host(
        "reserved-pool/beside-noise",
        "512 MB reserved beside 2 GB just read and small processes",
        TRUTH,
        |s| reserve(s, Bytes::from_mib(512), 0.0),
    )
    .needs(&[Need::Root, Need::HugePages, Need::Disk(Bytes::ZERO)])
    .noise(&[Noise::PageCache(Bytes::from_gib(2)), Noise::Small(40)]),
];

/// Reserves a pool of `len`, of which `used` is mapped and written.
pub(super) fn reserve(stage: &mut Stage, len: Bytes, used: f64) -> Result<()> {
    let len = stage.size(len);
    let page = HUGE as u64;
    stage.set("/proc/sys/vm/nr_hugepages", &(len.0 / page).to_string())?;
    let used = Bytes(len.scaled(used).0 / page * page);
    if used > Bytes::ZERO {
        let mut heap = Region::anon(used, Kind::HugeTlb)?;
        heap.write_every(HUGE, heap.all());
        stage.hold(heap);
    }
    let meminfo = procfs::meminfo()?;
    stage.verify("pool", Bytes(meminfo.number("HugePages_Total")? * page), len, 2)?;
    stage.verify("free_pool", Bytes(meminfo.number("HugePages_Free")? * page), len - used, 2)
}
