//! The command line.

use std::path::PathBuf;
use std::time::Duration;

/// A queue server that speaks RESP2 and gives memory back under pressure.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "queue-server")]
pub(crate) struct Options {
    /// Port on 127.0.0.1; 0 takes a free one, which the first line says
    #[arg(long, default_value_t = 6399)]
    pub(crate) port: u16,
    /// The password that clients give by AUTH
    #[arg(long)]
    pub(crate) password: Option<String>,
    /// Virtual hosts, chosen by SELECT
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) vhosts: u16,
    /// Memory for messages and requests, such as 512M or 2G; beyond it messages overflow, or are refused
    #[arg(long, default_value = "1G", value_parser = size)]
    pub(crate) memory_limit: usize,
    /// Directory for the files of messages that overflow
    #[arg(long)]
    pub(crate) overflow: Option<PathBuf>,
    /// The largest message
    #[arg(long, default_value = "16M", value_parser = size)]
    pub(crate) largest: usize,
    /// Connections at a time; each may hold beyond the memory limit 256 KiB of buffers and the replies that it does not
    /// read: 1 MiB and a message at most
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) clients: u32,
    /// Seconds that a request may take to come, and its reply to be read
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) patience: u16,
    /// Threads that serve
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) threads: u8,
    /// What happens under memory pressure
    #[arg(long, value_enum, default_value_t = Mode::On)]
    pub(crate) shrink: Mode,
}

impl Options {
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience.into())
    }
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The library: slices, on the owners' own tasks
    On,
    /// Nothing, nor is anything polled
    Off,
    /// `shrink_to_fit` of everything at once, all locks held; then the allocator is asked
    Naive,
}

/// Bytes, with K, M or G for powers of 1024; below 1 TiB.
fn size(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let count: usize = digits.parse().map_err(|error| format!("{error}"))?;
    let bytes = count.checked_mul(1 << shift).filter(|bytes| (1024..1 << 40).contains(bytes));
    bytes.ok_or_else(|| "from 1K to below 1024G".into())
}
