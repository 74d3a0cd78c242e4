//! Real shared memory objects: what no process maps is found, with its size and its holder.
#![allow(clippy::unwrap_used)]

use ebbtide_observe::process::Processes;
use ebbtide_observe::shared::{SharedFile, SharedKind, SharedMemory};
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::child::{self, installed, is_root};
use ebbtide_testkit::{Child, Parent};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

#[test]
#[ignore = "plays the child programs of the other tests"]
fn child_program() {
    child::play(&[("memfd", memfd), ("unlinked", unlinked), ("exec memfd", exec_memfd)]);
}

const SIZE: u64 = 8 << 20;

/// Holds 8 MiB in a memfd that nobody maps and that is twice as long.
fn memfd(parent: &mut Parent) {
    let mut file = File::from(memfd_create("a\n\x1b[2Jb", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(2 * SIZE).unwrap();
    file.write_all(&vec![1; SIZE as usize]).unwrap();
    let _second = file.try_clone().unwrap();
    parent.ready("");
    parent.listen();
}

/// Holds an unlinked file of a tmpfs, and one that is still there.
fn unlinked(parent: &mut Parent) {
    let path = |name| PathBuf::from(format!("/dev/shm/ebbtide-test-{name}-{}", std::process::id()));
    let mut gone = File::create(path("gone")).unwrap();
    gone.write_all(&vec![1; SIZE as usize]).unwrap();
    std::fs::remove_file(path("gone")).unwrap();
    let there = File::create(path("there")).unwrap();
    parent.ready(there.as_raw_fd());
    parent.listen();
    std::fs::remove_file(path("there")).unwrap();
}

/// Becomes a cat that runs from a memfd, so that it maps what it holds.
fn exec_memfd(parent: &mut Parent) {
    let search = std::env::var_os("PATH").unwrap();
    let cat = std::env::split_paths(&search).map(|dir| dir.join("cat")).find(|cat| cat.is_file()).unwrap();
    let mut file = File::from(memfd_create("program", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&std::fs::read(cat).unwrap()).unwrap();
    // Opened again, for reading: executing a file that somebody may write is ETXTBSY.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let held = rustix::fs::open(&path, OFlags::RDONLY, Mode::empty()).unwrap();
    drop(file);
    parent.ready("");
    if parent.listen().is_some() {
        // busybox, which has one program for all, goes by the name.
        let mut cat = Command::new(format!("/proc/self/fd/{}", held.as_raw_fd()));
        panic!("cat: {}", cat.arg0("cat").exec());
    }
}

fn read() -> SharedMemory {
    let root = Root::live().unwrap();
    SharedMemory::read(&root, &Processes::read(&root).unwrap())
}

/// The object of `kind` that `holder` has open.
fn of<'m>(memory: &'m SharedMemory, holder: &Child, kind: SharedKind) -> &'m SharedFile {
    let held = |file: &&SharedFile| file.kind == kind && file.holders.iter().any(|h| h.pid == holder.pid());
    memory.files.iter().find(held).unwrap()
}

#[test]
fn a_memfd_that_nobody_maps() {
    let child = Child::start("memfd", &[]);
    let memory = read();
    let file = of(&memory, &child, SharedKind::Memfd);
    assert_eq!(file.name, b"a\n\x1b[2Jb");
    assert_eq!((file.size, file.used, file.hugetlb), (Bytes(2 * SIZE), Bytes(SIZE), false));
    assert_eq!((file.holder_count, file.holders.len()), (1, 1), "two descriptors, one process");
    assert_ne!(file.mapped, Some(true));
    assert!(memory.unmapped().any(|other| other == file));
}

#[test]
fn a_file_in_memory_that_was_unlinked() {
    if !PathBuf::from("/dev/shm").is_dir() {
        println!("skipped: no /dev/shm");
        return;
    }
    let mut child = Child::start("unlinked", &[]);
    let memory = read();
    let gone = of(&memory, &child, SharedKind::DeletedFile);
    assert_eq!((gone.size, gone.used), (Bytes(SIZE), Bytes(SIZE)));
    assert!(gone.name.starts_with(b"/dev/shm/ebbtide-test-gone-"));
    let there = of(&memory, &child, SharedKind::File);
    assert_eq!(there.holders[0].fd.to_string(), child.said());
    child.tell("remove it");
    assert!(child.wait().success());
}

#[test]
fn a_memfd_that_is_mapped() {
    let mut child = Child::start("exec memfd", &[]);
    child.tell("exec");
    assert_eq!(child.ask("@ready cat"), "cat");
    let memory = read();
    let file = of(&memory, &child, SharedKind::Memfd);
    assert_eq!((file.name.as_slice(), file.mapped), (&b"program"[..], Some(true)));
}

#[test]
fn a_segment_that_nobody_attaches() {
    if !installed("ipcmk") || !installed("ipcrm") || !is_root() {
        println!("skipped: needs root, ipcmk and ipcrm");
        return;
    }
    let made = Command::new("ipcmk").args(["--shmem", "1048576"]).output().unwrap();
    let said = String::from_utf8(made.stdout).unwrap();
    let id = said.rsplit(' ').next().unwrap().trim();
    let memory = read();
    let removed = Command::new("ipcrm").args(["--shmem-id", id]).status().unwrap();
    assert!(removed.success());
    let segment = memory.unattached().find(|segment| segment.id.to_string() == id).unwrap();
    assert_eq!((segment.size, segment.rss, segment.attached), (Bytes(1 << 20), Bytes::ZERO, 0));
    assert!(!segment.removed && !segment.hugetlb && segment.creator > 0);
}
