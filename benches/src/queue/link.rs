//! A client of the queue server, of one connection: it pushes so many messages at a time, and pops them.
//!
//! Invariant: nobody else uses its queue between a push and the pop, so the replies' lengths are known beforehand.

use anyhow::{Result, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;

/// What it does in turn.
#[derive(Clone, Copy)]
pub(super) enum Turn {
    Push,
    Pop,
}

impl Turn {
    pub(super) const BOTH: [Turn; 2] = [Turn::Push, Turn::Pop];
}

pub(super) struct Link {
    stream: TcpStream,
    /// For each turn its requests, and the bytes of their replies.
    requests: [(Vec<u8>, usize); 2],
    buffer: Vec<u8>,
}

impl Link {
    pub(super) fn new(port: &str, queue: &str, depth: usize) -> Result<Link> {
        let stream = TcpStream::connect(format!("127.0.0.1:{port}"))?;
        stream.set_nodelay(true)?;
        let (len, body) = (queue.len(), "x".repeat(512));
        let push = format!("*3\r\n$5\r\nLPUSH\r\n${len}\r\n{queue}\r\n$512\r\n{body}\r\n").repeat(depth);
        let pop = format!("*2\r\n$4\r\nRPOP\r\n${len}\r\n{queue}\r\n").repeat(depth);
        // A push says how many there are.
        let pushed = (1..=depth).map(|n| format!(":{n}\r\n").len()).sum();
        let popped = depth * ("$512\r\n".len() + 512 + 2);
        let requests = [(push.into_bytes(), pushed), (pop.into_bytes(), popped)];
        Ok(Link { stream, requests, buffer: vec![0; depth * 1024] })
    }

    /// Sends the requests of a turn, and reads their replies.
    pub(super) fn take(&mut self, turn: Turn) -> Result<()> {
        let (request, replies) = &self.requests[turn as usize];
        self.stream.write_all(request)?;
        Ok(self.stream.read_exact(&mut self.buffer[..*replies])?)
    }

    /// Whether connections that come after this one shrink what they own, "on" or "off".
    pub(super) fn set(&mut self, setting: &str) -> Result<()> {
        let len = setting.len();
        write!(self.stream, "*4\r\n$6\r\nCONFIG\r\n$3\r\nSET\r\n$6\r\nshrink\r\n${len}\r\n{setting}\r\n")?;
        let mut reply = [0; 5];
        self.stream.read_exact(&mut reply)?;
        ensure!(&reply == b"+OK\r\n", "the server says {:?}", String::from_utf8_lossy(&reply));
        Ok(())
    }
}
