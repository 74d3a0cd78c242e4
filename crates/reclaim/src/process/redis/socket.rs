//! Where a process listens, and a connection to it: what it has open (/proc/PID/fd) beside what its network namespace
//! says of sockets (/proc/PID/net/unix, tcp, tcp6: net/unix/af_unix.c, net/ipv4/tcp_ipv4.c).
//!
//! Invariants: a path is resolved in the process's own root, and links in it too; who listens at it is asked of the
//! kernel (SO_PEERCRED), not of the path; another network namespace is entered by a thread of its own, which ends.

use super::client::Stream;
use ebbtide_observe::process::{Process, Target};
use ebbtide_observe::{Escaped, ReadError, Root, scan};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::net::sockopt::socket_peercred;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Where somebody listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A path, as the process sees it.
    Unix(Vec<u8>),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    /// As redis-cli takes it, in a shell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The path is the process's choice, and the command is to be copied.
            Address::Unix(path) => write!(f, "-s '{}'", Escaped(path).to_string().replace('\'', r"'\''")),
            Address::Tcp(address) => write!(f, "-h {} -p {}", address.ip(), address.port()),
        }
    }
}

/// Where `process` listens: at paths first, then at ports, the lower first, as a cluster's bus is 10,000 above.
pub(super) fn listening(process: &Process) -> Result<Vec<Address>, ReadError> {
    let mut own = BTreeSet::new();
    process.each_fd(|_, target| {
        if let Target::Socket(inode) = target {
            own.insert(inode);
        }
        true
    })?;
    let (mut paths, mut ports) = (Vec::new(), Vec::new());
    each(process, "net/unix", |line| {
        paths.extend(unix(line).filter(|(inode, _)| own.contains(inode)).map(|(_, path)| path));
    })?;
    for file in ["net/tcp", "net/tcp6"] {
        each(process, file, |line| {
            ports.extend(tcp(line).filter(|(inode, _)| own.contains(inode)).map(|(_, address)| address));
        })?;
    }
    ports.sort_by_key(SocketAddr::port);
    Ok(paths.into_iter().map(Address::Unix).chain(ports.into_iter().map(Address::Tcp)).collect())
}

/// Each line of `file`, which a kernel without that protocol lacks.
fn each(process: &Process, file: &str, mut line: impl FnMut(&[u8])) -> Result<(), ReadError> {
    let read = process.dir().each_line(file, |text| {
        line(text);
        true
    });
    match read {
        Err(ReadError::Missing { .. }) => Ok(()),
        read => read,
    }
}

/// The inode and path of a listening socket, of a line of net/unix: "addr: refs protocol flags type state inode path".
/// None for an abstract name, which is no path.
fn unix(line: &[u8]) -> Option<(u64, Vec<u8>)> {
    /// __SO_ACCEPTCON.
    const LISTENS: u64 = 1 << 16;
    let mut rest = line;
    let mut words = [&b""[..]; 7];
    for word in &mut words {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|&byte| byte == b' ')?;
        (*word, rest) = (rest.get(..end)?, rest.get(end..)?);
    }
    let (flags, inode, path) = (scan::hex(words[3])?, scan::number(words[6])?, rest.strip_prefix(b" ")?);
    let is_path = !path.is_empty() && !path.starts_with(b"@");
    (flags & LISTENS != 0 && is_path).then(|| (inode, path.to_vec()))
}

/// The inode and address of a listening socket, of a line of net/tcp or net/tcp6, to be connected to.
fn tcp(line: &[u8]) -> Option<(u64, SocketAddr)> {
    let words: Vec<&[u8]> = scan::words(line).take(10).collect();
    let (local, state, inode) = (*words.get(1)?, *words.get(3)?, scan::number(words.get(9)?)?);
    // TCP_LISTEN.
    if state != b"0A" {
        return None;
    }
    let at = local.iter().position(|&byte| byte == b':')?;
    let (address, port) = (local.get(..at)?, u16::try_from(scan::hex(local.get(at + 1..)?)?).ok()?);
    // In words as the processor has them.
    let mut bytes = Vec::new();
    for word in address.chunks(8) {
        bytes.extend(u32::try_from(scan::hex(word)?).ok()?.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    let ip = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Some((inode, SocketAddr::new(ip, port)))
}

/// A connection to `process` at `address`, on which nothing takes longer than `patience`.
pub(super) fn connect(
    process: &Process,
    address: &Address,
    patience: Duration,
) -> Result<Box<dyn Stream>, String> {
    match address {
        Address::Unix(path) => {
            let socket = find(process.pid(), path).map_err(|e| e.to_string())?;
            let stream =
                UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).map_err(said)?;
            let peer = socket_peercred(&stream).map_err(|e| e.to_string())?;
            if u32::try_from(peer.pid.as_raw_pid()) != Ok(process.pid()) {
                return Err("another process listens there".to_owned());
            }
            stream.set_read_timeout(Some(patience)).map_err(said)?;
            stream.set_write_timeout(Some(patience)).map_err(said)?;
            Ok(Box::new(stream))
        }
        Address::Tcp(address) => {
            let stream = within(process, || TcpStream::connect_timeout(address, patience))?;
            stream.set_read_timeout(Some(patience)).map_err(said)?;
            stream.set_write_timeout(Some(patience)).map_err(said)?;
            Ok(Box::new(stream))
        }
    }
}

/// The socket at `path` as process `pid` sees it.
fn find(pid: u32, path: &[u8]) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let (from, path) = match path.strip_prefix(b"/") {
        Some(path) => ("root", path),
        None => ("cwd", path),
    };
    let base = open(format!("/proc/{pid}/{from}"), flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(base, OsStr::from_bytes(path), flags, Mode::empty(), resolve)
}

/// Does `connect` in the network namespace of `process`.
fn within(
    process: &Process,
    connect: impl FnOnce() -> std::io::Result<TcpStream> + Send,
) -> Result<TcpStream, String> {
    let read = |e: ReadError| e.to_string();
    let own = Process::open(&Root::live().map_err(read)?, std::process::id()).map_err(read)?;
    if own.namespace("net").map_err(read)? == process.namespace("net").map_err(read)? {
        return connect().map_err(said);
    }
    let path = format!("/proc/{}/ns/net", process.pid());
    let namespace = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| format!("its network namespace: {e}"))?;
    let enter_and_connect = || {
        use rustix::fd::AsFd;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| {
            format!("its network namespace cannot be entered: {e} (that takes CAP_SYS_ADMIN)")
        })?;
        connect().map_err(said)
    };
    let lost = || Err("the thread that connects was lost".to_owned());
    std::thread::scope(|scope| scope.spawn(enter_and_connect).join()).unwrap_or_else(|_| lost())
}

fn said(error: std::io::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;

    #[test]
    fn where_it_listens() {
        let fake = FakeRoot::new()
            .process(7, [("status", "")])
            .link("proc/7/fd/3", "socket:[11]")
            .link("proc/7/fd/4", "socket:[12]")
            .link("proc/7/fd/5", "socket:[13]")
            .link("proc/7/fd/6", "socket:[14]")
            .file(
                "proc/7/net/unix",
                "Num       RefCount Protocol Flags    Type St Inode Path\n\
                 00000000d91d82f8: 00000002 00000000 00010000 0001 01    11 /run/my redis.sock\n\
                 00000000d91d82f8: 00000002 00000000 00010000 0001 01    12 @abstract\n\
                 00000000d91d82f8: 00000003 00000000 00000000 0001 03    12 /run/connected\n\
                 00000000d91d82f8: 00000002 00000000 00010000 0001 01    99 /run/another's\n",
            )
            .file(
                "proc/7/net/tcp",
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                 0: 0200000A:3EB7 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1 0 100\n   \
                 1: 0200000A:18EB 0300000A:0001 01 00000000:00000000 00:00000000 00000000     0        0 13 1 0 100\n",
            )
            .file(
                "proc/7/net/tcp6",
                "   0: 00000000000000000000000000000000:18EB 00000000000000000000000000000000:0000 0A \
                 00000000:00000000 00:00000000 00000000     0        0 14 1 0 100\n",
            );
        let process = Process::open(&Root::at(fake.path()).unwrap(), 7).unwrap();
        assert_eq!(
            listening(&process).unwrap(),
            [
                Address::Unix(b"/run/my redis.sock".to_vec()),
                Address::Tcp("[::1]:6379".parse().unwrap()),
                Address::Tcp("10.0.0.2:16055".parse().unwrap()),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_bytes(line: Vec<u8>, words in proptest::collection::vec("[0-9A-F:]{0,40}", 0..12)) {
            for line in [line, words.join(" ").into_bytes()] {
                let _ = (unix(&line), tcp(&line));
            }
        }
    }
}
