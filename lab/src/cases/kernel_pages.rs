//! `kernel-pages`: socket and pipe buffers, zram: memory that meminfo's sums leave out.

use crate::case::{Case, Need, Noise, Truth, is};
use crate::procfs;
use crate::region::PAGE;
use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream};

const TRUTH: Truth = is("kernel-pages").near("kernel_bytes", 10);

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::host("kernel-pages/tcp-200", "200 loopback connections that nobody reads", TRUTH, |s| {
        tcp(s, 200, 1)
    }),
    Case::host("kernel-pages/tcp-100-both", "100 connections, unread at both ends", TRUTH, |s| {
        tcp(s, 100, 2)
    }),
    Case::host(
        "kernel-pages/tcp-beside-page-cache",
        "200 unread connections beside 2 GB just read",
        TRUTH,
        |s| tcp(s, 200, 1),
    )
    .needs(&[Need::Disk(Bytes::ZERO)])
    .noise(&[Noise::PageCache(Bytes::from_gib(2))]),
];

/// `pairs` connections, both ends here, written until they are full, by one `side` or by both: 3.8 MB each side
/// with Linux's defaults (tcp_wmem and tcp_rmem, and what each page of them costs).
fn tcp(stage: &mut Stage, pairs: u32, sides: usize) -> Result<()> {
    let before = tcp_memory()?;
    let pairs = stage.machine.count(pairs);
    let ends = full_connections(pairs, sides)?;
    stage.hold(ends);
    let grown = tcp_memory()? - before;
    stage.at_least("kernel_bytes", grown, Bytes::from_mib(u64::from(pairs)))
}

fn tcp_memory() -> Result<Bytes> {
    Ok(Bytes(procfs::sockstat("TCP", "mem")? * PAGE as u64))
}

fn full_connections(pairs: u32, sides: usize) -> Result<Vec<TcpStream>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut ends = Vec::new();
    for _ in 0..pairs {
        let client = TcpStream::connect(address).context("connecting to myself")?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server].into_iter().take(sides) {
            fill(end)?;
        }
        ends.extend([client, server]);
    }
    Ok(ends)
}

/// Writes to `end` until the kernel takes no more.
fn fill(mut end: &TcpStream) -> Result<()> {
    end.set_nonblocking(true)?;
    let block = [0x65; 64 << 10];
    let mut written = 0;
    loop {
        match end.write(&block) {
            Ok(n) => written += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => return Err(e.into()),
        }
    }
    ensure!(written > 0, "a fresh connection took nothing");
    Ok(())
}
