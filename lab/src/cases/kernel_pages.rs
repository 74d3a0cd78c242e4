//! `kernel-pages`: socket, pipe and packet buffers, zram: memory that meminfo's sums leave out.

use crate::case::{Case, Need, Noise, Truth, is};
use crate::journal::Undo;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use crate::{procfs, sys};
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use rustix::fs::Advice;
use rustix::net::sockopt::set_socket_linger;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const TRUTH: Truth = is("kernel-pages").near("kernel_bytes", 10);
const ROUGH: Truth = is("kernel-pages").near("kernel_bytes", 15);

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
    Case::host("kernel-pages/tcp-reset", "200 unread connections that their senders reset", TRUTH, |s| {
        reset(s, 200)
    })
    .needs(&[Need::Root]),
    Case::host("kernel-pages/unix", "300 unread UNIX stream sockets with large buffers", ROUGH, |s| {
        unix(s, 300)
    })
    .needs(&[Need::Root]),
    Case::host(
        "kernel-pages/unix-and-tcp",
        "150 unread UNIX streams and 100 unread connections",
        is("kernel-pages"),
        |s| {
            tcp(s, 100, 1)?;
            unix(s, 150)
        },
    )
    .needs(&[Need::Root]),
    Case::host("kernel-pages/udp", "100 UDP sockets with datagrams that nobody receives", ROUGH, |s| {
        udp(s, 100)
    })
    .needs(&[Need::Root]),
    Case::host("kernel-pages/pipes", "600 full pipes of 1 MB", ROUGH, |s| pipes(s, 600)).needs(&[Need::Root]),
    Case::host("kernel-pages/zram", "512 MB of incompressible pages on a zram device", TRUTH, |s| {
        zram(s, Bytes::from_mib(512))
    })
    .needs(&[Need::Root, Need::Zram]),
    Case::host("kernel-pages/packet-ring", "a packet socket with a ring of 400 MB", ROUGH, |s| {
        packet_ring(s, Bytes::from_mib(400))
    })
    .needs(&[Need::Root]),
    Case::host(
        "kernel-pages/sysv-messages",
        "320 MB of System V messages: unreclaimable slab with an owner",
        is("kernel-pages").or(&[Some("undetermined")]),
        |s| messages(s, Bytes::from_mib(320)),
    )
    .needs(&[Need::Root, Need::SysvIpc]),
];

/// `pairs` connections, both ends here, written until they are full, by one `side` or by both: 3.8 MB each
/// side with Linux's defaults (tcp_wmem and tcp_rmem, and what each page of them costs).
fn tcp(stage: &mut Stage, pairs: u32, sides: usize) -> Result<()> {
    let before = tcp_memory()?;
    let pairs = stage.machine.count(pairs);
    let ends = full_connections(pairs, sides)?;
    stage.hold(ends);
    let grown = tcp_memory()? - before;
    stage.at_least("kernel_bytes", grown, Bytes::from_mib(u64::from(pairs)))
}

/// As [`tcp`], after which the senders reset their connections and go. What had arrived stays with the
/// receivers' descriptors, though their sockets are in no table of connections any more: it looks like a
/// kernel leak.
fn reset(stage: &mut Stage, pairs: u32) -> Result<()> {
    let before = tcp_memory()?;
    let pairs = stage.machine.count(pairs);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // Accepted sockets inherit it; without it a reader that never reads is sent 64 KB.
    sys::set_socket_option(&listener, libc::SO_RCVBUFFORCE, 2 << 20)?;
    let mut receivers = Vec::new();
    for [sender, receiver] in connections_to(&listener, pairs)? {
        sender.set_nonblocking(true)?;
        fill(&sender)?;
        set_socket_linger(&sender, Some(Duration::ZERO))?;
        receivers.push(receiver);
    }
    stage.hold(receivers);
    stage.figure("tcp_inuse", procfs::sockstat("TCP", "inuse")?);
    let grown = tcp_memory()? - before;
    stage.at_least("kernel_bytes", grown, Bytes::from_mib(u64::from(pairs)))
}

fn tcp_memory() -> Result<Bytes> {
    Ok(Bytes(procfs::sockstat("TCP", "mem")? * PAGE as u64))
}

fn full_connections(pairs: u32, sides: usize) -> Result<Vec<TcpStream>> {
    let mut ends = Vec::new();
    for [client, server] in connections(pairs)? {
        for end in [&client, &server].into_iter().take(sides) {
            end.set_nonblocking(true)?;
            fill(end)?;
        }
        ends.extend([client, server]);
    }
    Ok(ends)
}

/// `count` loopback connections, client's and server's end each.
pub(super) fn connections(count: u32) -> Result<Vec<[TcpStream; 2]>> {
    connections_to(&TcpListener::bind("127.0.0.1:0")?, count)
}

fn connections_to(listener: &TcpListener, count: u32) -> Result<Vec<[TcpStream; 2]>> {
    let address = listener.local_addr()?;
    let connect = |_| {
        let client = TcpStream::connect(address).context("connecting to myself")?;
        Ok([client, listener.accept()?.0])
    };
    (0..count).map(connect).collect()
}

/// Writes to `end`, which does not block, until the kernel takes no more.
fn fill(mut end: impl Write) -> Result<()> {
    let block = [0x65; 64 << 10];
    let mut written = 0;
    loop {
        match end.write(&block) {
            Ok(n) => written += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => return Err(e.into()),
        }
    }
    ensure!(written > 0, "a fresh buffer took nothing");
    Ok(())
}

/// `pairs` UNIX stream pairs, one end of each full to a send buffer of 2 MiB. Adds to `kernel_bytes`.
fn unix(stage: &mut Stage, pairs: u32) -> Result<()> {
    let pairs = stage.machine.count(pairs);
    let mut queued = 0;
    for _ in 0..pairs {
        let (from, to) = UnixStream::pair()?;
        sys::set_socket_option(&from, libc::SO_SNDBUFFORCE, 1 << 20)?;
        from.set_nonblocking(true)?;
        fill(&from)?;
        queued += sys::out_queue(&from)?;
        stage.hold((from, to));
    }
    let others = stage.measured("kernel_bytes").unwrap_or_default();
    stage.at_least("kernel_bytes", others + Bytes(queued), Bytes::from_mib(u64::from(pairs)))
}

/// `count` UDP sockets, each sent more than its receive buffer of 8 MiB holds.
fn udp(stage: &mut Stage, count: u32) -> Result<()> {
    let count = stage.machine.count(count);
    let memory = || Ok::<_, anyhow::Error>(Bytes(procfs::sockstat("UDP", "mem")? * PAGE as u64));
    let before = memory()?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    let datagram = [0x65; 60_000];
    for _ in 0..count {
        let receiver = UdpSocket::bind("127.0.0.1:0")?;
        sys::set_socket_option(&receiver, libc::SO_RCVBUFFORCE, 4 << 20)?;
        for _ in 0..140 {
            sender.send_to(&datagram, receiver.local_addr()?)?;
        }
        stage.hold(receiver);
    }
    let grown = memory()? - before;
    stage.at_least("kernel_bytes", grown, Bytes::from_mib(3 * u64::from(count)))
}

fn pipes(stage: &mut Stage, count: u32) -> Result<()> {
    let count = stage.machine.count(count);
    sys::raise_files()?;
    let mut full = 0;
    for _ in 0..count {
        let (from, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK)?;
        let to = File::from(to);
        full += sys::set_pipe_size(&to, 1 << 20)?;
        fill(&to)?;
        stage.hold((from, to));
    }
    stage.at_least("kernel_bytes", Bytes(full), Bytes::from_mib(u64::from(count)))
}

fn zram(stage: &mut Stage, len: Bytes) -> Result<()> {
    let len = stage.size(len);
    // Reading hot_add adds a device and says its number: it can be journalled only afterwards.
    let number = procfs::number("/sys/class/zram-control/hot_add")?;
    stage.journal.will(&Undo::Zram(u32::try_from(number)?))?;
    let device = format!("/sys/block/zram{number}");
    fs::write(format!("{device}/disksize"), (len.0 + (64 << 20)).to_string()).context("sizing zram")?;
    let mut disk = File::options().write(true).open(format!("/dev/zram{number}"))?;
    let mut block = Region::anon(Bytes::from_mib(1), Kind::Private)?;
    for n in 0..len.0 >> 20 {
        block.scramble(block.all(), n + 1);
        disk.write_all(&block.copy())?;
    }
    disk.sync_all()?;
    rustix::fs::fadvise(&disk, 0, None, Advice::DontNeed)?;
    let stat = fs::read_to_string(format!("{device}/mm_stat"))?;
    let used = stat.split_whitespace().nth(2).context("mm_stat has no mem_used_total")?.parse()?;
    stage.verify("kernel_bytes", Bytes(used), len, 10)
}

/// A receive ring: pages of the kernel's that no counter of meminfo holds.
fn packet_ring(stage: &mut Stage, len: Bytes) -> Result<()> {
    let len = stage.size(len);
    let socket = sys::packet_ring(len)?;
    stage.hold(socket);
    stage.bytes("kernel_bytes", len);
    Ok(())
}

/// Messages in queues: SUnreclaim grows, and /proc/sysvipc/msg says whose it is.
fn messages(stage: &mut Stage, len: Bytes) -> Result<()> {
    const SIZE: usize = 8000;
    let len = stage.size(len);
    let before = procfs::meminfo()?.bytes("SUnreclaim")?;
    stage.set("/proc/sys/kernel/msgmnb", &(64 << 20).to_string())?;
    let queues = len.0.div_ceil(64 << 20) as u32;
    for n in 0..queues {
        let key = (0x0ebc_0000 | (std::process::id() & 0xfff) << 4 | n & 0xf) as i32;
        stage.journal.will(&Undo::Queue(key))?;
        let id = sys::msg_create(key)?;
        let most = len.0 / u64::from(queues) / SIZE as u64;
        for _ in 0..most {
            ensure!(sys::msg_send(id, SIZE)?, "a message queue is full early");
        }
    }
    let grown = procfs::meminfo()?.bytes("SUnreclaim")? - before;
    stage.verify("kernel_bytes", grown, len, 25)
}
