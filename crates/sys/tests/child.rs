//! Another process's pages: found by the scan, read from outside.
#![allow(clippy::unwrap_used)]

use ebbtide_sys::pagemap::{Categories, Query, each_entry, each_region};
use ebbtide_sys::remote::{RemoteError, read};
use ebbtide_testkit::child::{self, is_root};
use ebbtide_testkit::{Child, Parent};
use rustix::io::Errno;
use rustix::process::Pid;
use std::fs::File;

#[test]
#[ignore = "plays the child programs of the other tests"]
fn child_program() {
    child::play(&[("pages", pages)]);
}

const PAGES: usize = 64;
const WRITTEN: usize = 10;

/// Holds 64 untouched pages but for the first ten, and says where.
fn pages(parent: &mut Parent) {
    let page = rustix::param::page_size();
    let mut memory = memmap2::MmapMut::map_anon(PAGES * page).unwrap();
    memory[..WRITTEN * page].fill(9);
    parent.ready(memory.as_ptr() as u64);
    parent.listen();
}

#[test]
fn what_a_child_has_touched_and_what_is_in_it() {
    let child = Child::start("pages", &[]);
    let start: u64 = child.said().parse().unwrap();
    let page = rustix::param::page_size() as u64;
    let pagemap = File::open(format!("/proc/{}/pagemap", child.pid())).unwrap();
    let range = start..start + PAGES as u64 * page;
    let query = Query { all_of: Categories::PRESENT, tell: Categories::FILE, ..Query::default() };
    let mut found = Vec::new();
    each_region(&pagemap, range.clone(), &query, |region| found.push(region)).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].start, found[0].end), (start, start + WRITTEN as u64 * page));
    assert_eq!(found[0].categories, Categories::NONE);

    let pid = Pid::from_raw(child.pid() as i32).unwrap();
    let mut buf = [0; 100];
    match read(pid, start + page - 50, &mut buf) {
        Err(RemoteError::Denied) if !is_root() => println!("skipped: Yama forbids reading the child"),
        read => assert_eq!((read, buf), (Ok(100), [9; 100])),
    }
    drop(child);
    assert_eq!(read(pid, start, &mut buf), Err(RemoteError::Ended));
    assert_eq!(each_region(&pagemap, range.clone(), &query, |_| panic!("a page")), Err(Errno::SRCH));
    assert_eq!(each_entry(&pagemap, range, |_, _| panic!("an entry")), Err(Errno::SRCH));
}
