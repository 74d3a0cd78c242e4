//! Asks a HotSpot JVM, as jcmd does: a collection, or malloc_trim by its own hand. Nothing is borrowed, no thread stopped
//! by us.
//!
//! The protocol (hotspot/os/posix/attachListener_posix.cpp and linux/attachListener_linux.cpp of JDK 8 to 21): a socket
//! /tmp/.java_pidN in the JVM's own root, N its pid in its own namespace. Where there is none yet, a file .attach_pidN and a
//! SIGQUIT have the JVM make it. Requests are strings, each ended by a zero: version, command, three arguments; the answer
//! is a line with a number, 0 for well, and a text.
//!
//! Invariants: SIGQUIT is only sent to a process that catches it, because it ends others (a JVM with -Xrs does not,
//! and listens from the start); /tmp is
//! anybody's: the socket must be one, and the process's user's; links on the way to it are resolved in the target's root.

use super::Done;
use ebbtide_observe::process::{Process, Status};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, chownat, lstat, open, openat2, unlink};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Signal, Uid, kill_process};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks whether the JVM has made its socket; it looks for the file when the signal comes.
const PAUSE: Duration = Duration::from_millis(5);
/// An answer is some lines.
const ANSWER_MOST: u64 = 64 << 10;

/// Has the JVM do `command` ("GC.run"), and waits for its answer no longer than `patience`.
pub(super) fn ask(process: &Process, command: &str, patience: Duration) -> Done {
    let short = answer(process, command, patience).err();
    Done { short, ..Done::default() }
}

fn answer(process: &Process, command: &str, patience: Duration) -> Result<(), String> {
    let status: Status = process.status().map_err(|e| e.to_string())?;
    let mut stream = connect(process.pid(), &status, patience)?;
    let late = |e: std::io::Error| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("{command} takes longer than {patience:?} and goes on (--patience)")
        }
        _ => format!("the JVM does not answer: {e}"),
    };
    stream.set_read_timeout(Some(patience)).map_err(late)?;
    stream.set_write_timeout(Some(patience)).map_err(late)?;
    stream.write_all(format!("1\0jcmd\0{command}\0\0\0").as_bytes()).map_err(late)?;
    let mut said = Vec::new();
    stream.take(ANSWER_MOST).read_to_end(&mut said).map_err(late)?;
    let said = String::from_utf8_lossy(&said).into_owned();
    match said.split_once('\n') {
        Some(("0", _)) => Ok(()),
        Some((_, why)) => Err(format!("the JVM refuses: {}", why.lines().next().unwrap_or_default())),
        None => Err("the JVM ended the connection".to_owned()),
    }
}

/// The JVM's socket, made if it has none yet.
fn connect(pid: u32, status: &Status, patience: Duration) -> Result<UnixStream, String> {
    let inner = status.namespace_pid.unwrap_or(pid);
    let directory = tmp(pid).map_err(|e| format!("/proc/{pid}/root/tmp: {e}"))?;
    let tmp = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let socket = tmp.join(format!(".java_pid{inner}"));
    if let Some(stream) = listening(&socket, status)? {
        return Ok(stream);
    }
    if status.caught >> (Signal::QUIT.as_raw() - 1) & 1 == 0 {
        return Err(
            "the JVM takes no requests (-XX:+DisableAttachMechanism, or it is only starting)".to_owned()
        );
    }
    let trigger = tmp.join(format!(".attach_pid{inner}"));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(&trigger, flags, Mode::RUSR | Mode::WUSR).map_err(|e| format!("{}: {e}", trigger.display()))?;
    let (user, group) = (Uid::from_raw(status.uid.effective), Gid::from_raw(status.gid.effective));
    // JDK 8 wants the file to be its own user's. Only root can and needs to give it away.
    let _ = chownat(CWD, &trigger, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW);
    let found = wake(pid, &socket, status, patience);
    let _ = unlink(&trigger);
    found
}

/// /tmp as the process has it.
pub(super) fn tmp(pid: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(format!("/proc/{pid}/root"), flags, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, "tmp", flags, Mode::empty(), resolve)
}

/// Has the JVM make its socket.
fn wake(pid: u32, socket: &Path, status: &Status, patience: Duration) -> Result<UnixStream, String> {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("no such process")?;
    kill_process(target, Signal::QUIT).map_err(|e| format!("SIGQUIT: {e}"))?;
    let began = Instant::now();
    while began.elapsed() < patience {
        if let Some(stream) = listening(socket, status)? {
            return Ok(stream);
        }
        std::thread::sleep(PAUSE);
    }
    Err(format!("the JVM takes no requests within {patience:?} (-XX:+DisableAttachMechanism?)"))
}

/// A connection, if the socket is there.
fn listening(path: &Path, status: &Status) -> Result<Option<UnixStream>, String> {
    let Ok(stat) = lstat(path) else { return Ok(None) };
    let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
    if !is_socket || stat.st_uid != status.uid.effective {
        return Err(format!("{} is not the JVM's socket", path.display()));
    }
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Some(stream)),
        // Left over by another process with this pid.
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(None),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}
