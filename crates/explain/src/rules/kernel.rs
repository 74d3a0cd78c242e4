//! `kernel-pages` and `kernel-leak`: memory of the kernel outside slab, and memory of the kernel nobody owns.

use super::{Host, worth};
use crate::{Cause, Finding, count};
use ebbtide_observe::Bytes;

pub(super) fn rule(host: &Host) -> Vec<Finding> {
    [sockets(host), messages(host), zram(host), arc(host), balloon(host), gpu(host), unaccounted(host)]
        .into_iter()
        .flatten()
        .collect()
}

/// Sockets whose owners cannot explain the memory hold at most this: tcp_rmem[2] + tcp_wmem[2] default to
/// 6 + 4 MiB (net/ipv4/tcp.c, tcp_init), and an application may raise its own with SO_RCVBUFFORCE.
const MOST_PER_SOCKET: Bytes = Bytes::from_mib(32);

fn sockets(host: &Host) -> Option<Finding> {
    let mem = &host.sample.meminfo;
    let stat = &host.sample.sockstat;
    let unix = &host.sample.unix_sockets;
    let tcp = stat.tcp_mem.bytes();
    let udp = stat.udp_mem.bytes();
    let bytes = tcp + udp + unix.queued;
    // Buffers in flight on a busy server are innocent: 1% of RAM and more is a queue.
    if bytes < worth(mem.mem_total).max(mem.mem_total.scaled(0.01)) {
        return None;
    }
    let owners = stat.tcp_owners();
    if tcp > MOST_PER_SOCKET * owners.max(1) && tcp >= unix.queued {
        return Some(ownerless_sockets(host, tcp, owners));
    }
    let summary = format!(
        "{bytes} of RAM is data waiting in sockets: written and not read yet. It belongs to no process's RSS; \
         a reader that has stalled, or a queue between two programs, keeps it."
    );
    let mut finding = Finding::new(Cause::KernelPages, bytes, 0.9, summary);
    if tcp > Bytes::ZERO {
        let says = format!(
            "TCP mem {} pages = {tcp}, {} sockets allocated",
            count(stat.tcp_mem.0),
            count(stat.tcp_alloc)
        );
        finding = finding.evidence("/proc/net/sockstat", says);
    }
    if udp > Bytes::ZERO {
        let says = format!("UDP mem {} pages = {udp}, in slab", count(stat.udp_mem.0));
        finding = finding.evidence("/proc/net/sockstat", says);
    }
    if unix.queued > Bytes::ZERO {
        let says = format!("{} AF_UNIX sockets hold {} unread", count(unix.count), unix.queued);
        finding = finding.evidence("sock_diag", says);
    }
    Some(
        finding
            .not(Cause::Leak, "no process's memory: the bytes are gone when the sockets are read or closed")
            .not(Cause::KernelLeak, "sockets own it: it goes when they are read or closed")
            .lever(
                "find-readers",
                "ss -ntmp; ss -xmp",
                Bytes::ZERO,
                "shows which sockets hold unread data, and whose they are",
            ),
    )
}

fn ownerless_sockets(host: &Host, tcp: Bytes, owners: u64) -> Finding {
    let says = format!(
        "TCP mem {} pages = {tcp}, but {} sockets",
        count(host.sample.sockstat.tcp_mem.0),
        count(owners)
    );
    let summary = format!(
        "{tcp} is charged to TCP, and the {owners} sockets there are cannot hold that much: memory without an owner."
    );
    Finding::new(Cause::KernelLeak, tcp, 0.75, summary)
        .evidence("/proc/net/sockstat", says)
        .not(
            Cause::KernelPages,
            format!("socket buffers need sockets: {MOST_PER_SOCKET} each would be a lot"),
        )
        .not(Cause::Leak, "no process holds it")
}

fn messages(host: &Host) -> Option<Finding> {
    let waiting = &host.sample.messages;
    if waiting.bytes < worth(host.sample.meminfo.mem_total) {
        return None;
    }
    let summary = format!(
        "{} of RAM is messages in {} System V queues that nobody has received. They stay when their senders end.",
        waiting.bytes,
        count(waiting.queues)
    );
    Some(
        Finding::new(Cause::KernelPages, waiting.bytes, 0.93, summary)
            .evidence(
                "/proc/sysvipc/msg",
                format!("{} messages, {} bytes", count(waiting.messages), count(waiting.bytes.0)),
            )
            .not(Cause::KernelLeak, "the queues own it: ipcs -q lists them")
            .not(Cause::Leak, "no process holds it")
            .lever("remove-queue", "ipcs -q; ipcrm -q ID", Bytes::ZERO, "its messages are lost"),
    )
}

fn zram(host: &Host) -> Option<Finding> {
    let used: Bytes = host.sample.zram.iter().map(|z| z.used).sum();
    let original: Bytes = host.sample.zram.iter().map(|z| z.original).sum();
    if used < worth(host.sample.meminfo.mem_total).max(host.sample.meminfo.mem_total.scaled(0.02)) {
        return None;
    }
    let summary =
        format!("zram keeps {original} of data compressed in {used} of RAM: swap that is not on a disk.");
    let mut finding = Finding::new(Cause::KernelPages, used, 0.95, summary);
    for z in &host.sample.zram {
        let says = format!("{} stored, {} compressed, {} of RAM taken", z.original, z.compressed, z.used);
        finding = finding.evidence(format!("/sys/block/{}/mm_stat", z.name), says);
    }
    Some(
        finding
            .not(Cause::Leak, "the device's own figure accounts for all of it")
            .not(Cause::KernelLeak, "it has an owner, the zram device"),
    )
}

fn arc(host: &Host) -> Option<Finding> {
    let arc = host.sample.arc?;
    let mem = &host.sample.meminfo;
    if arc.size.share_of(mem.mem_total) < 0.10 {
        return None;
    }
    let summary = format!(
        "the ZFS cache holds {}. It is a page cache that meminfo does not know: neither Cached nor MemAvailable counts it.",
        arc.size
    );
    let says = format!("size {}, at most {}, evictable {}", arc.size, arc.c_max, arc.evictable);
    Some(
        Finding::new(Cause::KernelPages, arc.size, 0.95, summary)
            .evidence("/proc/spl/kstat/zfs/arcstats", says)
            .not(Cause::Leak, "a cache with a limit (c_max); it shrinks under pressure, though slowly")
            .lever(
                "arc-limit",
                "echo BYTES > /sys/module/zfs/parameters/zfs_arc_max",
                arc.evictable.min(arc.size - arc.c_min),
                "files are read from disk again; lasting until reboot",
            ),
    )
}

fn balloon(host: &Host) -> Option<Finding> {
    let bytes = host.ledger.bytes("balloon");
    if bytes.share_of(host.sample.meminfo.mem_total) < 0.05 {
        return None;
    }
    let summary =
        format!("the hypervisor took {bytes} back through the balloon driver: this guest cannot use it.");
    Some(
        Finding::new(Cause::KernelPages, bytes, 0.9, summary)
            .evidence(
                "/proc/vmstat",
                format!("balloon_inflate - balloon_deflate = {}", host.sample.vmstat.balloon().bytes()),
            )
            .not(Cause::Leak, "nothing in this guest holds it: ask whoever runs the hypervisor"),
    )
}

fn gpu(host: &Host) -> Option<Finding> {
    let mem = &host.sample.meminfo;
    let bytes = mem.gpu_active + mem.gpu_reclaim;
    if bytes.share_of(mem.mem_total) < 0.10 {
        return None;
    }
    let summary =
        format!("GPU drivers hold {bytes} of RAM, of which {} are kept for reuse.", mem.gpu_reclaim);
    Some(
        Finding::new(Cause::KernelPages, bytes, 0.9, summary)
            .evidence(
                "/proc/meminfo",
                format!("GPUActive {}, GPUReclaim {}", mem.gpu_active, mem.gpu_reclaim),
            )
            .not(Cause::Leak, "the drivers' own figures account for it"),
    )
}

/// A healthy machine leaves 0.1 to 1% unaccounted for (measured on 5.10 to 6.18, 1 to 24 GB); from this share on,
/// and this much on a small machine, something takes pages straight from the page allocator.
const UNEXPLAINED: f64 = 0.0125;
const UNEXPLAINED_FLOOR: Bytes = Bytes::from_mib(256);
const UNEXPLAINED_OF_SMALL: f64 = 0.08;

fn unaccounted(host: &Host) -> Option<Finding> {
    let bytes = host.ledger.unaccounted;
    let total = host.ledger.total;
    let floor = UNEXPLAINED_FLOOR.min(total.scaled(UNEXPLAINED_OF_SMALL));
    if bytes < total.scaled(UNEXPLAINED).max(floor) {
        return None;
    }
    let summary = format!(
        "{bytes} of RAM is in none of the kernel's sums: pages that a driver, pipes, a packet ring or another \
         part of the kernel took for itself."
    );
    Some(
        Finding::new(Cause::KernelPages, bytes, 0.6, summary)
            .evidence(
                "the ledger",
                format!("MemTotal {} less every line that has an owner", host.ledger.total),
            )
            .not(
                Cause::Leak,
                "no process's memory is missing from the sums: AnonPages and Shmem are complete",
            )
            .not(
                Cause::KernelLeak,
                "it would have to grow: ebb explain --host --for 10m shows whether it does",
            ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{causes, gib, healthy, mib};
    use super::*;
    use ebbtide_observe::Pages;
    use ebbtide_observe::host::{Arc, Zram};

    #[test]
    fn unread_sockets() {
        let mut s = healthy();
        s.meminfo.mem_free -= mib(765);
        s.sockstat.tcp_mem = Pages(196_026);
        s.sockstat.tcp_alloc = 405;
        assert_eq!(causes(&s), [Cause::KernelPages]);
        s.sockstat.tcp_alloc = 4;
        assert_eq!(causes(&s), [Cause::KernelLeak], "memory no socket can own");
        s = healthy();
        s.sockstat.tcp_mem = Pages(2560);
        assert_eq!(causes(&s), [], "10 MiB in flight is ordinary");
    }

    #[test]
    fn unix_sockets_count_too() {
        let mut s = healthy();
        s.meminfo.mem_free -= mib(400);
        s.unix_sockets.queued = mib(400);
        s.unix_sockets.count = 300;
        assert_eq!(causes(&s), [Cause::KernelPages]);
    }

    #[test]
    fn caches_outside_meminfo() {
        let mut s = healthy();
        s.meminfo.mem_free -= gib(5);
        assert_eq!(causes(&s), [Cause::KernelPages], "unaccounted for");
        s.arc = Some(Arc { size: gib(5), evictable: gib(4), ..Arc::default() });
        assert_eq!(causes(&s), [Cause::KernelPages], "the ARC explains it, once");
        s.arc = None;
        s.zram = vec![Zram {
            name: "zram0".into(),
            original: gib(9),
            compressed: gib(4),
            used: gib(5),
            peak: gib(5),
        }];
        assert_eq!(causes(&s), [Cause::KernelPages]);
    }
}
