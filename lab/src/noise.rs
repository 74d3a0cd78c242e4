//! What runs beside an incident and must not change the answer.

use crate::actor::Actor;
use crate::case::Noise;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use anyhow::Result;
use ebbtide_observe::Bytes;
use std::fs::File;
use std::io::Read;

/// Makes `noise`; it lasts as long as the stage.
pub fn make(noise: Noise, stage: &mut Stage) -> Result<()> {
    match noise {
        Noise::PageCache(len) => page_cache(stage, len),
        Noise::Busy => busy(stage),
        Noise::Small(n) => (0..n).try_for_each(|_| small(stage)),
        Noise::Anon(len) => anon(stage, len),
    }
}

/// A file of `len`, just read and kept open.
pub fn page_cache(stage: &mut Stage, len: Bytes) -> Result<()> {
    let len = stage.size(len);
    let (_, mut file) = stage.sparse_file(len)?;
    read_through(&mut file)?;
    stage.hold(file);
    Ok(())
}

/// Reads `file` to its end.
pub fn read_through(file: &mut File) -> Result<()> {
    let mut buf = vec![0; 1 << 20];
    while file.read(&mut buf)? > 0 {}
    Ok(())
}

/// A process that rewrites 64 MiB of its own, about one core's worth of a busy service.
fn busy(stage: &mut Stage) -> Result<()> {
    let actor = Actor::ready(|line| {
        let mut work = Region::anon(Bytes::from_mib(64), Kind::Private)?;
        let mut seed = 1;
        work.scramble(work.all(), seed);
        line.ready()?;
        loop {
            seed += 1;
            work.scramble(work.all(), seed);
        }
    })?;
    stage.cast(actor);
    Ok(())
}

/// A process with 1 MiB of its own that waits.
fn small(stage: &mut Stage) -> Result<()> {
    filled(stage, Bytes::from_mib(1))
}

/// A process that uses `len` of its own, all of it.
fn anon(stage: &mut Stage, len: Bytes) -> Result<()> {
    let len = stage.size(len);
    filled(stage, len)
}

/// A process with `len` of its own, written from end to end, that waits.
fn filled(stage: &mut Stage, len: Bytes) -> Result<()> {
    let actor = Actor::ready(|line| {
        let mut own = Region::anon(len, Kind::Private)?;
        own.write_every(PAGE, own.all());
        line.ready()?;
        line.park()
    })?;
    stage.cast(actor);
    Ok(())
}
