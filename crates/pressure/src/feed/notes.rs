//! The service manager's FIFO or stream socket: whatever can be read from it means pressure.
//!
//! Invariants: what is read is discarded; the end of a stream never spins: a socket is connected anew, at most once in
//! [`AGAIN`], and a FIFO is opened anew, or the source is lost.

use super::gauge::Gauge;
use super::{Feed, Lost};
use crate::Level;
use crate::judge::Look;
use crate::machine::Machine;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The least time between two connections: a manager that is restarted comes back, one that hangs up at once does not
/// keep us busy.
const AGAIN: Duration = Duration::from_secs(1);
/// The most that is read at once, about. What is left is heard the next time, so that a writer that never stops cannot
/// hold the thread.
const MOST: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Fifo,
    Socket,
}

/// Notes from the service manager.
pub(crate) struct Notes {
    way: Way,
    machine: Machine,
    path: PathBuf,
    greeting: Vec<u8>,
    /// Our own greeting, if it may come back as the first that is read: a FIFO has one end for all.
    echo: Vec<u8>,
    fd: OwnedFd,
    opened: Instant,
    gauge: Option<Gauge>,
}

impl Notes {
    pub(crate) fn open(
        way: Way,
        machine: &Machine,
        path: &Path,
        greeting: Option<&[u8]>,
        gauge: Option<Gauge>,
    ) -> Result<Notes, String> {
        let greeting = greeting.unwrap_or_default().to_vec();
        let (fd, echo) = connect(way, machine, path, &greeting)
            .map_err(|errno| format!("it cannot be opened: {}", std::io::Error::from(errno)))?;
        let (machine, path, opened) = (machine.clone(), path.to_owned(), Instant::now());
        Ok(Notes { way, machine, path, greeting, echo, fd, opened, gauge })
    }

    /// Reads all that is there; whether there was anything from somebody else, and whether the other end is gone.
    fn drain(&mut self) -> Result<(bool, bool), Errno> {
        let mut read = Vec::new();
        let mut block = [0; 4096];
        let ended = loop {
            match rustix::io::read(&self.fd, &mut block) {
                Ok(0) | Err(Errno::CONNRESET) => break true,
                Ok(n) => read.extend_from_slice(block.get(..n).unwrap_or_default()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break false,
                Err(errno) => return Err(errno),
            }
            if read.len() >= MOST {
                break false;
            }
        };
        let echo = if read.is_empty() { Vec::new() } else { std::mem::take(&mut self.echo) };
        Ok((!read.is_empty() && read != echo, ended))
    }

    fn reopen(&mut self, now: Instant) -> Result<(), Lost> {
        let hung_up = || Lost("the other end was closed".into());
        if self.way == Way::Socket && now.duration_since(self.opened) < AGAIN {
            return Err(hung_up());
        }
        // The old one is closed only now, so that nothing that is in a FIFO meanwhile is lost.
        let opened = connect(self.way, &self.machine, &self.path, &self.greeting);
        (self.fd, self.echo) = opened.map_err(|_| hung_up())?;
        self.opened = now;
        Ok(())
    }
}

/// Opens the FIFO or connects to the socket, and writes the greeting; also what of it will come back.
fn connect(way: Way, machine: &Machine, path: &Path, greeting: &[u8]) -> Result<(OwnedFd, Vec<u8>), Errno> {
    let (fd, written, echo) = match way {
        Way::Fifo => {
            let fd = open_fifo(machine, path, greeting.is_empty())?;
            let written = if greeting.is_empty() { 0 } else { rustix::io::write(&fd, greeting)? };
            (fd, written, greeting.to_vec())
        }
        Way::Socket => {
            let fd = open_socket(machine, path)?;
            // No SIGPIPE, in whatever thread this is.
            let written = rustix::net::send(&fd, greeting, SendFlags::NOSIGNAL)?;
            (fd, written, Vec::new())
        }
    };
    if written == greeting.len() { Ok((fd, echo)) } else { Err(Errno::NOBUFS) }
}

/// Held open for writing, too, a FIFO never hangs up when a writer ends, as `echo >fifo` does.
fn open_fifo(machine: &Machine, path: &Path, reading_will_do: bool) -> Result<OwnedFd, Errno> {
    match machine.open(path, OFlags::RDWR) {
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if reading_will_do => {
            machine.open(path, OFlags::RDONLY)
        }
        other => other,
    }
}

fn open_socket(machine: &Machine, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match SocketAddrUnix::new(machine.real(path)) {
        Ok(address) => rustix::net::connect(&fd, &address)?,
        // An address has 107 bytes; a longer path is reached by way of an open descriptor.
        Err(_) => {
            let held = machine.open(path, OFlags::PATH)?;
            let by_way = format!("/proc/self/fd/{}", held.as_raw_fd());
            rustix::net::connect(&fd, &SocketAddrUnix::new(by_way)?)?;
        }
    }
    Ok(fd)
}

impl Feed for Notes {
    fn ears(&self, _: Instant) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        vec![(self.fd.as_fd(), PollFlags::IN)]
    }

    fn hear(&mut self, _: &[PollFlags], now: Instant) -> Result<Level, Lost> {
        let lost = |errno| Lost(format!("reading failed: {}", std::io::Error::from(errno)));
        let (news, ended) = self.drain().map_err(lost)?;
        // What was said before the end is told first: the end will be heard again.
        if ended && !news {
            self.reopen(now)?;
        }
        Ok(if news { Level::Medium } else { Level::None })
    }

    fn look(&mut self) -> Result<Look, Lost> {
        // Without the gauge, or once it is gone, silence must do.
        Ok(self.gauge.as_ref().and_then(|gauge| gauge.look().ok()).unwrap_or_default())
    }
}
