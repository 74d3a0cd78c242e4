//! Redis' protocol, as much of it as the guests' tests speak: one command at a time, in a line.

use anyhow::Result;
use std::io::{BufRead, BufReader, Read, Write};

pub(super) struct Client<S> {
    stream: BufReader<S>,
}

impl<S: Read + Write> Client<S> {
    pub(super) fn new(stream: S) -> Client<S> {
        Client { stream: BufReader::new(stream) }
    }

    /// One command and its reply: a line, or what a length announces.
    pub(super) fn ask(&mut self, command: &str) -> Result<String> {
        write!(self.stream.get_mut(), "{command}\r\n")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let Some(length) = line.strip_prefix('$') else { return Ok(line) };
        let mut bulk = vec![0; length.trim().parse::<usize>()? + 2];
        self.stream.read_exact(&mut bulk)?;
        Ok(String::from_utf8_lossy(&bulk).into_owned())
    }
}
