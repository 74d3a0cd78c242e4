//! The processes that ebb looks at: each gets into its state, says it is ready, and waits to be ended.

use ebbtide_testkit::Parent;
use ebbtide_testkit::child::Program;
use nix::sys::resource::{UsageWho, getrusage};
use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// A name that tries to end its own field, begin a line and colour the terminal.
pub(crate) const HOSTILE: &str = "a) R 1\n\x1b[31m";

/// What is seen of it.
pub(crate) const HOSTILE_SHOWN: &str = "a) R 1\\n\\x1b[31m";

pub(crate) const ALL: &[(&str, Program)] = &[
    ("named", named),
    ("execs", execs),
    ("mappings", mappings),
    ("peak of ebb", peak_of_ebb),
    ("kept", kept),
    ("grows", grows),
];

/// Is called what its argument says, in hexadecimal digits: arguments are text, names need not be.
fn named(parent: &mut Parent) {
    let digits = parent.args()[0].clone();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    let name: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
    // Of the whole process, not of this thread, which is not its main one.
    std::fs::write("/proc/self/comm", &name).unwrap();
    rustix::thread::set_name(&CString::new(name).unwrap()).unwrap();
    parent.ready("");
    parent.listen();
}

/// The arguments of [`named`].
pub(crate) fn hex(name: impl AsRef<[u8]>) -> String {
    name.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Becomes cat when told so.
fn execs(parent: &mut Parent) {
    parent.ready("");
    if parent.listen().is_some() {
        panic!("cat: {}", Command::new("cat").exec());
    }
}

/// Makes single pages of alternating permissions, which the kernel cannot merge, until there are 65,230: some
/// are left for what it still has to do.
fn mappings(parent: &mut Parent) {
    let mut count = 0u64;
    while let (0..65_230, Ok(page)) = (count, memmap2::MmapMut::map_anon(4096)) {
        count += 1;
        match count % 2 {
            0 => std::mem::forget(page.make_read_only()),
            _ => std::mem::forget(page),
        }
    }
    parent.ready(count);
    parent.listen();
}

/// Runs ebb with its arguments, as its only child, and says its exit code and its peak resident set in bytes
/// (or this process's own, which it begins as, where that is larger).
fn peak_of_ebb(parent: &mut Parent) {
    let mut ebb = Command::new(env!("CARGO_BIN_EXE_ebb"));
    let status = ebb.args(parent.args()).stdout(Stdio::null()).stdin(Stdio::null()).status().unwrap();
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() << 10;
    parent.ready(format!("{} {peak}", status.code().unwrap_or(-1)));
    parent.listen();
}

/// Has freed 64 MiB of small blocks below one that lives, and answers what it is asked.
fn kept(parent: &mut Parent) {
    let mut blocks: Vec<Box<[u8]>> =
        (0..64 << 10).map(|n| vec![n as u8 | 1; 1000].into_boxed_slice()).collect();
    blocks.drain(..blocks.len() - 1);
    parent.ready("");
    while let Some(asked) = parent.listen() {
        parent.ready(asked);
    }
}

/// Holds a thousand blocks of 1000 bytes more for each question that it is asked.
fn grows(parent: &mut Parent) {
    let mut held: Vec<Vec<u8>> = Vec::with_capacity(1 << 20);
    parent.ready("");
    while let Some(asked) = parent.listen() {
        held.extend((0..1000).map(|_| vec![1; 1000]));
        parent.ready(asked);
    }
}
