//! nginx with the Lua module under the library. Many requests, each answer checked, while workers are reloaded, killed
//! and fork; and the collector's steps while a worker waits: that they happen, and never with Lua on the stack.
//!
//! `EBBTIDE_REQUESTS` is the number of requests; by default 20,000.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;
use ebbtide_testkit::{Nginx, Plan};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use support::{library, succeed};

const CLIENTS: usize = 4;
/// At most so many requests between two troubles.
const CALM: u64 = 25_000;

/// The search path of the Lua files beside this, and of Debian's.
fn lua_path() -> String {
    format!("lua_package_path '{}/tests/lua/?.lua;/usr/share/lua/5.1/?.lua;;';", env!("CARGO_MANIFEST_DIR"))
}

fn under_ours(command: &mut Command) {
    command.env("LD_PRELOAD", library()).env("EBBTIDE_MALLOC_CHECK", "1");
}

fn signal(name: &str, pid: u32) {
    succeed(Command::new("kill").args([name, &pid.to_string()]));
}

/// A connection that is kept, and made anew when a worker went away with it.
struct Client {
    socket: PathBuf,
    stream: Option<BufReader<UnixStream>>,
}

impl Client {
    /// The body of a good answer; `None` if the worker went away before it was whole.
    fn ask(&mut self, path: &str) -> Option<String> {
        let connect = || BufReader::new(UnixStream::connect(&self.socket).unwrap());
        let mut stream = self.stream.take().unwrap_or_else(connect);
        write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").ok()?;
        let (mut length, mut line) = (0, String::new());
        for n in 0.. {
            line.clear();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            assert!(n > 0 || line.starts_with("HTTP/1.1 200 "), "{path}: {line}");
            match line.trim_end().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().unwrap(),
                None if n > 0 => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        self.stream = Some(stream);
        Some(String::from_utf8(body).unwrap())
    }
}

/// What `handlers.lua` answers, and what for.
fn expected(k: u64) -> (&'static str, String) {
    let rows = || (1..=k % 300).map(|i| i * k).sum::<u64>().to_string();
    match k % 400 {
        0 => ("execute", (k % 7).to_string()),
        200 => ("popen", k.to_string()),
        n => match n % 6 {
            0 => ("tables", rows()),
            1 => ("strings", format!("{k},").repeat((k % 200) as usize)),
            2 => ("routines", (1..=k % 100).sum::<u64>().to_string()),
            3 => ("sleep", rows()),
            4 => ("cdata", (k + k % 500).to_string()),
            _ => ("shared", format!("v{}", k % 1000).len().to_string()),
        },
    }
}

/// Sends requests until `last` is answered; how often a worker went away with one. Says at each multiple of `step`.
fn send(socket: PathBuf, next: &AtomicU64, last: u64, step: u64, trouble: &Sender<()>) -> u64 {
    let mut client = Client { socket, stream: None };
    let mut lost = 0;
    loop {
        let k = next.fetch_add(1, Ordering::Relaxed);
        if k > last {
            return lost;
        }
        if k.is_multiple_of(step) {
            trouble.send(()).unwrap();
        }
        let (what, answer) = expected(k);
        let path = format!("/?what={what}&k={k}");
        let said = (0..50).find_map(|_| {
            let said = client.ask(&path);
            lost += u64::from(said.is_none());
            said
        });
        assert_eq!(said.as_deref().map(str::trim_end), Some(&*answer), "{path}");
    }
}

/// Reloads, and kills a worker, in turns, whenever told to; how many were killed.
fn make_trouble(nginx: &mut Nginx, told: &Receiver<()>) -> usize {
    let mut workers = nginx.workers();
    let mut killed = 0;
    for n in 0.. {
        if told.recv().is_err() {
            return killed;
        }
        if n % 2 == 0 {
            signal("-HUP", nginx.pid());
            workers = vec![nginx.await_worker(), nginx.await_worker()];
        } else {
            signal("-SEGV", workers.remove(0));
            workers.push(nginx.await_worker());
            killed += 1;
        }
    }
    killed
}

#[test]
fn every_request_is_answered_through_reloads_crashes_and_forks() {
    let requests = std::env::var("EBBTIDE_REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let plan = Plan {
        workers: 2,
        http: format!("lua_shared_dict test 1m; keepalive_requests 1000; {}", lua_path()),
        server: "location / { content_by_lua_block { require('handlers').answer() } }".into(),
        ..Plan::default()
    };
    let Some(mut nginx) = Nginx::serve(&plan, under_ours) else { return };
    let (next, step, socket) = (AtomicU64::new(1), (requests / 6).clamp(1, CALM), nginx.socket());
    let (killed, lost) = std::thread::scope(|scope| {
        let (trouble, told) = channel();
        let client = |trouble: Sender<()>| {
            let (next, socket) = (&next, socket.clone());
            move || send(socket, next, requests, step, &trouble)
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client(trouble.clone()))).collect();
        drop(trouble);
        let killed = make_trouble(&mut nginx, &told);
        (killed, clients.into_iter().map(|c| c.join().unwrap()).sum::<u64>())
    });
    println!("{requests} requests, {killed} workers killed, {lost} requests sent again");
    let errors = nginx.errors();
    let serious = ["[error]", "[crit]", "[alert]", "[emerg]"];
    let (crashes, others): (Vec<&str>, Vec<&str>) = errors
        .lines()
        .filter(|line| serious.iter().any(|level| line.contains(level)))
        // A worker was killed while it held the shared dictionary's lock, and nginx took that from it.
        .filter(|line| !line.contains("was locked by"))
        .partition(|line| line.contains("exited on signal 11"));
    assert_eq!((crashes.len(), &others[..]), (killed, &[][..]), "{errors}");
}

/// nginx with `idle.lua`, and what its finalisers say.
struct Idle {
    nginx: Nginx,
    said: Receiver<u8>,
    _dir: tempfile::TempDir,
}

impl Idle {
    fn start(prepare: impl FnOnce(&mut Command)) -> Option<Idle> {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        succeed(Command::new("mkfifo").arg(&fifo));
        // Opened for both, so that neither side waits for the other.
        let mut reader = File::options().read(true).write(true).open(&fifo).unwrap();
        let location =
            |name| format!("location /{name} {{ content_by_lua_block {{ require('idle').{name}() }} }}\n");
        let plan = Plan {
            workers: 1,
            http: lua_path(),
            server: ["litter", "report", "inside", "suspended", "raise", "stop"].map(location).concat(),
            init_worker: format!("require('idle').begin('{}')", fifo.display()),
            ..Plan::default()
        };
        let nginx = Nginx::serve(&plan, |command| {
            under_ours(command);
            prepare(command);
        })?;
        let (tell, said) = channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while reader.read_exact(&mut byte).is_ok() && tell.send(byte[0]).is_ok() {}
        });
        Some(Idle { nginx, said, _dir: dir })
    }

    /// Waits until finalisers have said "." so often; false if they are silent for so long before.
    fn dots(&self, count: usize, patience: Duration) -> bool {
        (0..count).all(|_| match self.said.recv_timeout(patience) {
            Ok(byte) => {
                assert_eq!(char::from(byte), '.', "a finaliser ran while Lua did");
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => panic!("the FIFO is gone"),
        })
    }

    /// The worker is still the same, and nothing was logged.
    fn unharmed(&self, worker: &[u32]) {
        assert_eq!(self.nginx.workers(), worker, "{}", self.nginx.errors());
        assert_eq!(self.nginx.errors(), "");
    }
}

/// Far longer than a collection takes to begin.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a collection takes to begin, as the tests beside see it.
const SILENCE: Duration = Duration::from_secs(4);

#[test]
fn garbage_is_collected_while_a_worker_waits_and_never_under_lua() {
    if !support::defines("epoll_wait") {
        return;
    }
    let Some(idle) = Idle::start(|_| ()) else { return };
    let worker = idle.nginx.workers();
    assert_eq!(idle.nginx.get("/litter"), "20000 made, 0 ended");
    assert!(idle.dots(19, PATIENCE), "garbage was not collected: {}", idle.nginx.get("/report"));
    assert_eq!(idle.nginx.get("/inside"), "0 ended");
    assert!(idle.dots(19, PATIENCE), "garbage was not collected: {}", idle.nginx.get("/report"));
    assert_eq!(idle.nginx.get("/suspended"), "most ended");
    println!("{}", idle.nginx.get("/report"));
    idle.unharmed(&worker);
}

/// What the test above is worth: a library that runs steps whenever epoll_wait is called is found out.
#[test]
fn a_careless_collector_is_noticed() {
    let Some((_dir, careless)) = support::compile("careless.c", &["-shared", "-fPIC"]) else { return };
    let preload = |command: &mut Command| {
        command.env("LD_PRELOAD", &careless);
    };
    let Some(idle) = Idle::start(preload) else { return };
    assert_eq!(idle.nginx.get("/litter"), "20000 made, 0 ended");
    assert!(idle.dots(19, PATIENCE));
    assert_ne!(idle.nginx.get("/inside?once"), "0 ended");
    let mut said = std::iter::from_fn(|| idle.said.recv_timeout(PATIENCE).ok());
    assert!(said.any(|byte| byte == b'!'));
}

#[test]
fn an_error_in_a_finaliser_ends_there() {
    if !support::defines("epoll_wait") {
        return;
    }
    let Some(idle) = Idle::start(|_| ()) else { return };
    let worker = idle.nginx.workers();
    assert_eq!(idle.nginx.get("/raise"), "made");
    assert!(idle.dots(2, PATIENCE), "garbage was not collected: {}", idle.nginx.get("/report"));
    let report = idle.nginx.get("/report");
    assert!(report.starts_with("0 ended, ") && !report.contains(" 0 raised"), "{report}");
    idle.unharmed(&worker);
}

#[test]
fn a_collector_that_lua_stopped_stays_stopped() {
    let Some(idle) = Idle::start(|_| ()) else { return };
    assert_eq!(idle.nginx.get("/stop"), "stopped");
    assert!(!idle.dots(1, SILENCE));
    assert!(idle.nginx.get("/report").starts_with("0 ended"));
}

#[test]
fn nothing_is_collected_where_that_is_off() {
    for off in ["EBBTIDE_LUA_COLLECT", "EBBTIDE_LUA"] {
        let set = |command: &mut Command| {
            command.env(off, "off");
        };
        let Some(idle) = Idle::start(set) else { return };
        assert_eq!(idle.nginx.get("/litter"), "20000 made, 0 ended");
        assert!(!idle.dots(1, SILENCE), "collected in spite of {off}=off");
        assert!(idle.nginx.get("/report").starts_with("0 ended"));
    }
}
