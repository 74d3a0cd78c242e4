//! A redis-server on a socket of its own.
//!
//! Invariants: it takes commands when there is a [`Redis`], and ends with it. Failures panic, as tests do.
#![allow(clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A redis-server. Ends when dropped.
#[derive(Debug)]
pub struct Redis {
    server: Child,
    stream: BufReader<UnixStream>,
    dir: tempfile::TempDir,
}

impl Redis {
    /// Starts one with these options and variables more; nothing, visibly, where it is not installed.
    pub fn start(options: &[&str], environment: &[(&str, &str)]) -> Option<Redis> {
        if !crate::child::installed("redis-server") {
            println!("skipped: redis: no redis-server (apt install redis-server)");
            return None;
        }
        let dir = tempfile::tempdir().expect("redis");
        let mut command = Command::new("setpriv");
        // It ends with this test: it does not read the standard input whose end would tell it.
        command.args(["--pdeathsig", "KILL", "redis-server", "--port", "0", "--save", ""]);
        command.args(["--enable-debug-command", "local", "--unixsocket"]).arg(dir.path().join("socket"));
        command.arg("--dir").arg(dir.path()).args(options).envs(environment.iter().copied());
        let mut server = command.stdout(Stdio::piped()).spawn().expect("redis");
        let mut log = BufReader::new(server.stdout.take().expect("redis"));
        let mut line = String::new();
        while !line.contains("ready to accept connections at") && !line.contains("The server is now ready") {
            line.clear();
            assert_ne!(log.read_line(&mut line).expect("redis"), 0, "redis-server ended");
        }
        // Keeps the pipe from filling up; it ends with the server.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let stream = BufReader::new(UnixStream::connect(dir.path().join("socket")).expect("redis"));
        Some(Redis { server, stream, dir })
    }

    /// Sends a command and returns its simple, integer or bulk reply.
    pub fn call(&mut self, command: &str) -> String {
        write!(self.stream.get_mut(), "{command}\r\n").expect("redis");
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("redis");
        let line = line.trim_end();
        assert!(!line.starts_with('-'), "{command}: {line}");
        let Some(len) = line.strip_prefix('$').and_then(|len| len.parse::<usize>().ok()) else {
            return line.get(1..).expect("redis").to_owned();
        };
        let mut bulk = vec![0; len + 2];
        self.stream.read_exact(&mut bulk).expect("redis");
        String::from_utf8(bulk).expect("redis")
    }

    /// A number of "INFO everything".
    pub fn info(&mut self, field: &str) -> i64 {
        let info = self.call("INFO everything");
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("redis");
        line.trim().parse().expect("redis")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.server.id()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
