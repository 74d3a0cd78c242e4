//! Cases in which nothing is wrong: what healthy machines and processes look like.

use crate::actor::Actor;
use crate::case::{Case, INNOCENT, Need, Noise};
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use crate::{noise, procfs};
use anyhow::Result;
use ebbtide_observe::Bytes;

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process("innocent/idle", "an idle process", INNOCENT, |_| Ok(())),
    Case::host("innocent/page-cache", "a file of 3 GB just read", INNOCENT, |s| {
        let before = procfs::meminfo()?.bytes("Cached")?;
        noise::page_cache(s, Bytes::from_gib(3))?;
        let grown = procfs::meminfo()?.bytes("Cached")? - before;
        let len = s.size(Bytes::from_gib(3));
        s.verify("cached_growth", grown, len, 20)
    })
    .needs(&[Need::Disk(Bytes::ZERO)]),
    Case::host("innocent/small-workers", "40 small forked workers", INNOCENT, |_| Ok(()))
        .noise(&[Noise::Small(40)]),
    Case::host(
        "innocent/shared-buffers",
        "a database's 256 MB of shared buffers, used by five",
        INNOCENT,
        |s| shared_buffers(s, Bytes::from_mib(256), 5),
    ),
];

/// A shared buffer that every one of `users` maps and has touched, as a database's processes do.
fn shared_buffers(stage: &mut Stage, len: Bytes, users: u32) -> Result<()> {
    let len = stage.size(len);
    let mut buffer = Region::anon(len, Kind::Shared)?;
    buffer.write_every(PAGE, buffer.all());
    for _ in 0..users {
        let actor = Actor::ready(|line| {
            buffer.read_every(PAGE, buffer.all());
            line.ready()?;
            line.park()
        })?;
        stage.cast(actor);
    }
    stage.hold(buffer);
    stage.bytes("shmem", procfs::meminfo()?.bytes("Shmem")?);
    Ok(())
}
