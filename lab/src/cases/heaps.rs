//! Processes whose answer lies inside their heap. The kernel's files alone do not decide these: without a
//! look inside, the right answer is `undetermined`; with one it is the cause that each case names besides.

use crate::case::{Case, Named, Need, Truth, is};
use crate::procfs;
use crate::stage::Stage;
use anyhow::{Result, ensure};
use ebbtide_observe::Bytes;
use std::sync::mpsc;
use std::thread;

const NEEDS: &[Need] = &[Need::Glibc];
const RETENTION: &[Named] = &[Some("allocator-retention")];
const FRAGMENTATION: &[Named] = &[Some("heap-fragmentation")];
const ARENAS: &[Named] = &[Some("arena-multiplication"), Some("allocator-retention")];
const SLACK: &[Named] = &[Some("capacity-slack")];
const UNDECIDED: Truth = is("undetermined");

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process(
        "undetermined/retained",
        "300 MB of blocks freed under one that lives",
        UNDECIDED.or(RETENTION),
        |s| {
            let mut blocks = blocks(300 << 10, 1000);
            blocks.drain(..blocks.len() - 1);
            keep(s, blocks)
        },
    )
    .needs(NEEDS),
    Case::process(
        "undetermined/fragmented",
        "300 MB of blocks, three of four freed",
        UNDECIDED.or(FRAGMENTATION),
        |s| {
            let mut n = 0;
            let mut blocks = blocks(300 << 10, 1000);
            blocks.retain(|_| {
                n += 1;
                n % 4 == 0
            });
            keep(s, blocks)
        },
    )
    .needs(NEEDS),
    Case::process(
        "undetermined/arenas",
        "16 threads that each freed 32 MB in turn",
        UNDECIDED.or(ARENAS),
        arenas,
    )
    .needs(NEEDS),
    Case::process(
        "undetermined/emptied",
        "a list that held 400 MB and kept its room",
        UNDECIDED.or(SLACK),
        |s| {
            let mut list = vec![[1u64; 8]; 400 << 14];
            list.clear();
            keep(s, list)
        },
    )
    .needs(NEEDS),
];

fn blocks(count: usize, bytes: usize) -> Vec<Box<[u8]>> {
    (0..count).map(|n| vec![n as u8 | 1; bytes].into_boxed_slice()).collect()
}

fn keep<T: 'static>(stage: &mut Stage, kept: Vec<T>) -> Result<()> {
    stage.hold(kept);
    large(stage)
}

fn large(stage: &mut Stage) -> Result<()> {
    let rss = procfs::status(std::process::id() as i32)?.bytes("RssAnon")?;
    stage.at_least("rss_anon", rss, Bytes::from_mib(250))
}

/// Every thread fills its own arena, frees all below its last block, and lives on.
fn arenas(stage: &mut Stage) -> Result<()> {
    let (ready, all) = mpsc::channel();
    for _ in 0..16 {
        let ready = ready.clone();
        thread::spawn(move || {
            let mut blocks = blocks(32 << 10, 1000);
            blocks.drain(..blocks.len() - 1);
            let told = ready.send(());
            crate::sys::park_with(&(blocks, told))
        });
        ensure!(all.recv().is_ok(), "a thread ended");
    }
    large(stage)
}
