//! `lazily-freed`: MADV_FREE pages, resident until the kernel wants them.

use crate::case::{Case, Need, Noise, Truth, is};
use crate::procfs;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use anyhow::Result;
use ebbtide_observe::Bytes;

const TRUTH: Truth = is("lazily-freed").near("lazy_free", 5);

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process("lazily-freed/1g", "1 GB after MADV_FREE", TRUTH, |s| free(s, Bytes::from_gib(1), 1.0)),
    Case::process("lazily-freed/300m", "300 MB after MADV_FREE", TRUTH, |s| {
        free(s, Bytes::from_mib(300), 1.0)
    }),
    Case::process("lazily-freed/two-thirds", "900 MB used, 600 of them after MADV_FREE", TRUTH, |s| {
        free(s, Bytes::from_mib(900), 0.67)
    }),
    Case::process(
        "lazily-freed/beside-noise",
        "1 GB after MADV_FREE beside a busy process and page cache",
        TRUTH,
        |s| free(s, Bytes::from_gib(1), 1.0),
    )
    .needs(&[Need::Disk(Bytes::ZERO)])
    .noise(&[Noise::Busy, Noise::PageCache(Bytes::from_gib(1))]),
];

/// Writes `len` and frees `share` of it lazily.
fn free(stage: &mut Stage, len: Bytes, share: f64) -> Result<()> {
    let len = stage.size(len);
    let mut heap = Region::anon(len, Kind::Private)?;
    heap.write_every(PAGE, heap.all());
    let freed = len.scaled(share).0 as usize / PAGE * PAGE;
    heap.advise(0..freed, libc::MADV_FREE)?;
    stage.hold(heap);
    let rollup = procfs::rollup(std::process::id() as i32)?;
    stage.bytes("rss", rollup.bytes("Rss")?);
    stage.verify("lazy_free", rollup.bytes("LazyFree")?, Bytes(freed as u64), 5)
}
