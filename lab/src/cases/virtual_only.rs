//! `virtual-only`: address space far above the box, next to nothing of it resident.

use crate::case::{Case, Need, Truth, is};
use crate::procfs;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use anyhow::Result;
use ebbtide_observe::Bytes;

const TRUTH: Truth = is("virtual-only");

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process("virtual-only/64g-prot-none", "64 GB reserved with PROT_NONE", TRUTH, |s| {
        reserve(s, Bytes::from_gib(64), Kind::Reserved)
    }),
    Case::process(
        "virtual-only/64g-noreserve",
        "64 GB mapped writable with MAP_NORESERVE, untouched",
        TRUTH,
        |s| reserve(s, Bytes::from_gib(64), Kind::NoReserve),
    ),
    Case::process("virtual-only/1t-prot-none", "1 TB reserved, as a sanitizer's shadow is", TRUTH, |s| {
        reserve(s, Bytes::from_gib(1024), Kind::Reserved)
    }),
    Case::process("virtual-only/80g-file", "a sparse file of 80 GB mapped, untouched", TRUTH, |s| {
        file(s, Bytes::from_gib(80))
    })
    .needs(&[Need::Disk(Bytes::ZERO)]),
    Case::process("virtual-only/64g-beside-data", "64 GB reserved beside 50 MB in use", TRUTH, |s| {
        let mut heap = Region::anon(Bytes::from_mib(50), Kind::Private)?;
        heap.write_every(PAGE, heap.all());
        s.hold(heap);
        reserve(s, Bytes::from_gib(64), Kind::Reserved)
    }),
];

fn reserve(stage: &mut Stage, len: Bytes, kind: Kind) -> Result<()> {
    let space = Region::anon(len, kind)?;
    stage.hold(space);
    far_above(stage, len)
}

fn file(stage: &mut Stage, len: Bytes) -> Result<()> {
    let (_, file) = stage.sparse_file(len)?;
    let space = Region::of_file(&file, len, false)?;
    stage.hold(space);
    far_above(stage, len)
}

fn far_above(stage: &mut Stage, len: Bytes) -> Result<()> {
    let status = procfs::status(std::process::id() as i32)?;
    stage.at_least("size", status.bytes("VmSize")?, len)?;
    stage.at_most("rss", status.bytes("VmRSS")?, Bytes::from_mib(64))
}
