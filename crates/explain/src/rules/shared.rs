//! `shared-memory`: tmpfs files, memfds and System V segments that take RAM without being in anybody's RSS.
//!
//! Shared memory that living processes map is their working memory and no finding. What nobody maps is a file or
//! a segment somebody forgot, or a disk that is not one; what is mapped and deleted has no name to find it by.

use super::{Host, Subject, worth};
use crate::{Cause, Finding, count};
use ebbtide_observe::shared::{SharedFile, SharedKind, SharedMemory};
use ebbtide_observe::{Bytes, Escaped};

pub(super) fn rule(host: &Host) -> Vec<Finding> {
    let mem = &host.sample.meminfo;
    let mapped = SharedMemory::mapped(host.processes);
    let unreadable = host.processes.iter().any(|p| p.counters().is_none());
    let unmapped = mem.shmem - mapped;
    let deleted: Bytes = host.deleted_mapped.iter().map(|(_, _, bytes)| *bytes).sum();
    let bytes = unmapped + deleted;
    if bytes < worth(mem.mem_total) * 2 {
        return Vec::new();
    }
    let mut finding =
        Finding::new(Cause::SharedMemory, bytes, if unreadable { 0.75 } else { 0.95 }, summary(host, bytes))
            .evidence("/proc/meminfo", format!("Shmem {}", mem.shmem))
            .evidence(
                "/proc/*/smaps_rollup",
                format!("sum of Pss_Shmem {mapped}: the part that processes map"),
            );
    for (pid, name, share) in host.deleted_mapped.iter().take(3) {
        let says = format!("{name} (pid {pid}) maps {share} of files that were deleted");
        finding = finding.evidence(format!("/proc/{pid}/smaps"), says);
    }
    for (text, size) in objects(host).into_iter().take(6) {
        finding = finding.evidence("holds it", format!("{text}: {size}"));
    }
    vec![
        finding
            .not(Cause::Leak, "not heap: files and segments with sizes of their own")
            .not(
                Cause::PageCache,
                "Shmem is in Cached, but nothing can be dropped of it: it has no disk behind it",
            )
            .lever(
                "delete",
                "rm the tmpfs files; ipcrm -m ID; end or fix the holder of a memfd",
                Bytes::ZERO,
                "the content is lost: make sure that nobody needs it",
            ),
    ]
}

fn summary(host: &Host, bytes: Bytes) -> String {
    let largest = objects(host)
        .into_iter()
        .next()
        .map_or(String::new(), |(text, size)| format!(" The largest: {text}, {size}."));
    format!("{bytes} of RAM is shared memory that no process maps, or that has no name any more.{largest}")
}

/// What holds unmapped shared memory, the largest first.
fn objects(host: &Host) -> Vec<(String, Bytes)> {
    let floor = Bytes::from_mib(8);
    let mut found: Vec<(String, Bytes)> = Vec::new();
    for file in host.shared.unmapped().filter(|file| !file.hugetlb) {
        found.push((named(file), file.used));
    }
    for segment in host.shared.unattached() {
        let text = format!(
            "System V segment {} that nobody has attached (made by pid {})",
            segment.id, segment.creator
        );
        found.push((text, segment.rss));
    }
    let open = |device: &str| -> Bytes {
        let here = host.shared.files.iter().filter(|file| file.dev.to_string() == device);
        here.filter(|file| file.kind != SharedKind::Memfd).map(|file| file.used).sum()
    };
    for fs in &host.sample.ram_fs {
        let rest = fs.used - open(&fs.device);
        found.push((format!("files in {} at {}", fs.kind, Escaped(fs.path.as_bytes())), rest));
    }
    found.retain(|(_, bytes)| *bytes >= floor);
    found.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    found
}

fn named(file: &SharedFile) -> String {
    let kind = match file.kind {
        SharedKind::Memfd => "memfd",
        SharedKind::DeletedFile => "deleted file",
        SharedKind::File => "file",
        SharedKind::SysV => "System V segment",
    };
    let holders: Vec<String> =
        file.holders.iter().take(3).map(|h| format!("{} (pid {}, fd {})", h.name, h.pid, h.fd)).collect();
    let others = file.holder_count.saturating_sub(holders.len());
    let more = if others > 0 { format!(" and {} more", count(others as u64)) } else { String::new() };
    format!("{kind} '{}' held open by {}{more}", Escaped(&file.name), holders.join(", "))
}

/// One process that holds shared memory it does not map, or maps what has been deleted.
pub(super) fn held(subject: &Subject) -> Vec<Finding> {
    let pid = subject.detail.pid;
    let files: Vec<&SharedFile> = subject
        .shared
        .unmapped()
        .filter(|file| file.holders.iter().any(|holder| holder.pid == pid))
        .collect();
    let unmapped: Bytes = files.iter().map(|file| file.used).sum();
    let deleted = subject.detail.deleted_shmem;
    let bytes = unmapped + deleted;
    if bytes < subject.worth() {
        return Vec::new();
    }
    let summary = if unmapped >= deleted {
        format!(
            "it holds {unmapped} of shared memory open that nobody maps: in no RSS, and gone only when the last holder closes it."
        )
    } else {
        format!(
            "it maps {deleted} of files in tmpfs that were deleted: no directory shows them, and they stay until they are unmapped."
        )
    };
    let mut finding = Finding::new(Cause::SharedMemory, bytes, 0.93, summary);
    if deleted > Bytes::ZERO {
        finding = finding.evidence(
            subject.file("smaps"),
            format!("{deleted} resident in mappings of deleted tmpfs files"),
        );
    }
    for file in files.iter().take(4) {
        finding = finding.evidence(subject.file("fd"), format!("{}: {}", named(file), file.used));
    }
    vec![finding.not(Cause::Leak, "not heap: files with sizes of their own")]
}
