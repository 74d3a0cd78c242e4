//! Memory of sockets: /proc/net/sockstat (net/ipv4/proc.c), /proc/net/sockstat6, and AF_UNIX by sock_diag.
//!
//! TCP and UDP memory is one figure for the whole machine, in pages; the counts of sockets in use are those of
//! the reader's network namespace, `alloc` again is global. UDP's buffers are linear skbs, so they are slab;
//! TCP's payload lies in page fragments that no line of meminfo counts. AF_UNIX payload above one page does too
//! (net/unix/af_unix.c: sock_alloc_send_pskb), and only the socket's own accounting tells how much.

use crate::{Bytes, Pages, ReadError, Root, scan};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// What the sockstat files say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sockstat {
    /// Sockets of every kind, in this network namespace.
    pub used: u64,
    /// TCP sockets in use (IPv4), in this network namespace.
    pub tcp_inuse: u64,
    /// TCP sockets without a process, in this network namespace.
    pub tcp_orphan: u64,
    /// TCP connections in TIME_WAIT, in this network namespace.
    pub tcp_tw: u64,
    /// TCP sockets allocated on the whole machine, IPv6 included.
    pub tcp_alloc: u64,
    /// Memory charged to TCP sockets on the whole machine, reserved but unused parts included.
    pub tcp_mem: Pages,
    /// UDP sockets in use (IPv4), in this network namespace.
    pub udp_inuse: u64,
    /// Memory charged to UDP sockets on the whole machine.
    pub udp_mem: Pages,
    /// Memory of IP fragments waiting for the rest, this network namespace.
    pub frag_memory: Bytes,
    /// TCP sockets in use (IPv6), in this network namespace.
    pub tcp6_inuse: u64,
}

impl Sockstat {
    /// Adds what one sockstat file says.
    fn parse(&mut self, text: &[u8]) {
        for line in scan::lines(text) {
            let Some((protocol, rest)) = scan::key_value(line, b':') else { continue };
            let mut words = scan::words(rest);
            while let (Some(key), Some(value)) = (words.next(), words.next()) {
                let Some(value) = scan::number(value) else { continue };
                match (protocol, key) {
                    (b"sockets", b"used") => self.used = value,
                    (b"TCP", b"inuse") => self.tcp_inuse = value,
                    (b"TCP", b"orphan") => self.tcp_orphan = value,
                    (b"TCP", b"tw") => self.tcp_tw = value,
                    (b"TCP", b"alloc") => self.tcp_alloc = value,
                    (b"TCP", b"mem") => self.tcp_mem = Pages(value),
                    (b"TCP6", b"inuse") => self.tcp6_inuse = value,
                    (b"UDP", b"inuse") => self.udp_inuse = value,
                    (b"UDP", b"mem") => self.udp_mem = Pages(value),
                    (b"FRAG", b"memory") => self.frag_memory = Bytes(value),
                    _ => {}
                }
            }
        }
    }

    /// Reads /proc/net/sockstat and sockstat6.
    pub fn read(root: &Root) -> Result<Sockstat, ReadError> {
        let mut out = Sockstat::default();
        let mut buf = Vec::new();
        out.parse(root.read("proc/net/sockstat", &mut buf)?);
        if let Ok(text) = root.read("proc/net/sockstat6", &mut buf) {
            out.parse(text);
        }
        Ok(out)
    }

    /// TCP sockets that could own memory, those without a process included.
    pub fn tcp_owners(&self) -> u64 {
        self.tcp_alloc.max(self.tcp_inuse + self.tcp6_inuse + self.tcp_orphan)
    }
}

/// AF_UNIX sockets of this network namespace and what waits in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnixSockets {
    /// Sockets.
    pub count: u64,
    /// Memory of messages sent and not yet read, skb overhead included (sk_wmem_alloc).
    pub queued: Bytes,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_MEMINFO: u32 = 0x20;
const UNIX_DIAG_MEMINFO: u16 = 5;
const SK_MEMINFO_WMEM_ALLOC: usize = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const UNIX_DIAG_HEADER: usize = 16;

impl UnixSockets {
    /// Asks the kernel for every AF_UNIX socket of this network namespace (linux/unix_diag.h).
    pub fn read() -> Result<UnixSockets, ReadError> {
        let fail = |e| ReadError::new("NETLINK_SOCK_DIAG", e);
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(netlink::SOCK_DIAG),
        )
        .map_err(fail)?;
        rustix::net::send(&socket, &request(), SendFlags::empty()).map_err(fail)?;
        let mut out = UnixSockets::default();
        let mut buf = vec![0u8; 64 << 10];
        loop {
            let (n, _) = match rustix::net::recv(&socket, &mut buf, RecvFlags::empty()) {
                Ok(got) => got,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(fail(e)),
            };
            if n == 0 || !out.parse(&buf[..n]) {
                return Ok(out);
            }
        }
    }

    /// Adds one datagram of the dump; false when it was the last.
    fn parse(&mut self, mut datagram: &[u8]) -> bool {
        while let Some((length, kind)) = header(datagram) {
            if kind == NLMSG_DONE || kind == NLMSG_ERROR {
                return false;
            }
            let body = &datagram[16..length];
            self.count += 1;
            self.queued += body.get(UNIX_DIAG_HEADER..).map_or(Bytes::ZERO, wmem_alloc);
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        true
    }
}

/// Length (16 and more, within `message`) and type of the netlink message at the front of `message`.
fn header(message: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(message.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    (length >= 16 && length <= message.len()).then_some((length, kind))
}

/// What UNIX_DIAG_MEMINFO among these attributes says is queued.
fn wmem_alloc(mut attributes: &[u8]) -> Bytes {
    while attributes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([attributes[0], attributes[1]]));
        let kind = u16::from_ne_bytes([attributes[2], attributes[3]]);
        if length < 4 || length > attributes.len() {
            break;
        }
        if kind == UNIX_DIAG_MEMINFO {
            let at = 4 + SK_MEMINFO_WMEM_ALLOC * 4;
            let value = attributes[..length].get(at..at + 4).and_then(|b| b.try_into().ok());
            return Bytes(value.map_or(0, u32::from_ne_bytes).into());
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Bytes::ZERO
}

/// nlmsghdr and unix_diag_req: a dump of sockets in every state, with their memory.
fn request() -> [u8; 40] {
    let mut message = [0; 40];
    message[0..4].copy_from_slice(&40u32.to_ne_bytes());
    message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    message[16] = AddressFamily::UNIX.as_raw() as u8;
    message[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    message[28..32].copy_from_slice(&UDIAG_SHOW_MEMINFO.to_ne_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn sockstat() {
        let mut s = Sockstat::default();
        s.parse(b"sockets: used 1210\nTCP: inuse 401 orphan 2 tw 3 alloc 405 mem 196026\nUDP: inuse 1 mem 7\nFRAG: inuse 0 memory 9\n");
        s.parse(b"TCP6: inuse 5\n");
        assert_eq!((s.used, s.tcp_mem, s.udp_mem), (1210, Pages(196_026), Pages(7)));
        assert_eq!((s.tcp6_inuse, s.frag_memory, s.tcp_owners()), (5, Bytes(9), 408));
    }

    #[test]
    fn what_waits_in_a_unix_socket_is_seen() {
        let before = UnixSockets::read().unwrap();
        let (mut writer, _reader) = UnixStream::pair().unwrap();
        writer.write_all(&[0; 100_000]).unwrap();
        let after = UnixSockets::read().unwrap();
        assert!(after.count >= 2);
        assert!(after.queued >= before.queued + Bytes(100_000), "{before:?} {after:?}");
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            Sockstat::default().parse(&text);
            UnixSockets::default().parse(&text);
            wmem_alloc(&text);
        }
    }
}
