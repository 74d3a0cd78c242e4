//! The example queue server, from outside: by redis-benchmark and redis-cli, and by a client that checks every byte.
//!
//! Invariant: servers end with their test. Waiting is for a reply; where there is none to wait for (the resident set, a
//! connection that closes) it is asked again, with an end.
#![allow(clippy::unwrap_used)]

#[path = "../examples/queue-server/resp.rs"]
#[allow(dead_code, reason = "its replies are seen from outside")]
mod resp;

use ebbtide_testkit::child::{Child, installed};
use proptest::prelude::*;
use resp::{Limits, Parser, Wrong};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// When a test has waited in vain: not a measurement.
const END: Duration = Duration::from_secs(30);

struct Server {
    child: Child,
    port: String,
    dir: tempfile::TempDir,
}

impl Server {
    fn start(options: &[&str]) -> Server {
        // target/debug/deps/queue_server-1234 and target/debug/examples/queue-server.
        let program = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples");
        let program = program.join("queue-server");
        assert!(program.exists(), "cargo build -p ebbtide-shrink --example queue-server");
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("pressure");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).args(["--port", "0"]).args(options);
        command.env("MEMORY_PRESSURE_WATCH", &fifo).env("MEMORY_PRESSURE_WRITE", "");
        let child = Child::spawn(command.env("TMPDIR", dir.path()));
        let port = child.said().split([':', ' ']).nth(1).unwrap().to_owned();
        Server { child, port, dir }
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(format!("127.0.0.1:{}", self.port)).unwrap();
        stream.set_read_timeout(Some(END)).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    fn fifo(&self) -> PathBuf {
        self.dir.path().join("pressure")
    }

    /// What systemd does at memory pressure.
    fn press(&self) {
        let mut fifo = std::fs::OpenOptions::new().read(true).write(true).open(self.fifo()).unwrap();
        fifo.write_all(b"x").unwrap();
    }

    /// KiB.
    fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// KiB once all threads have come to wait: what is a thread's own comes with its first steps.
    fn fresh(&self) -> u64 {
        let tasks = format!("/proc/{}/task", self.child.pid());
        let waits = |task: std::io::Result<std::fs::DirEntry>| {
            // The name, in parentheses, may hold anything; the state comes behind it.
            let stat = std::fs::read_to_string(task?.path().join("stat"))?;
            Ok::<_, std::io::Error>(stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')))
        };
        until("all threads wait", || {
            std::fs::read_dir(&tasks).unwrap().all(|task| waits(task).unwrap_or(false))
        });
        self.rss()
    }

    fn tool(&self, name: &str, args: &[&str]) -> String {
        let output = Command::new(name).args(["-p", &self.port]).args(args).output().unwrap();
        assert!(output.status.success(), "{name} {args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[derive(Debug, PartialEq)]
enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

use Reply::{Array, Bulk, Error, Integer, Nil, Simple};

struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn send(&mut self, words: &[&[u8]]) {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend_from_slice(word);
            request.extend(b"\r\n");
        }
        self.stream.get_mut().write_all(&request).unwrap();
    }

    fn read(&mut self) -> Reply {
        let mut line = String::new();
        assert_ne!(self.stream.read_line(&mut line).unwrap(), 0, "the server closed");
        let line = line.trim_end();
        let number = || line[1..].parse::<i64>().unwrap();
        match line.as_bytes()[0] {
            b'+' => Simple(line[1..].to_owned()),
            b'-' => Error(line[1..].to_owned()),
            b':' => Integer(number()),
            _ if number() < 0 => Nil,
            b'*' => Array((0..number()).map(|_| self.read()).collect()),
            _ => {
                let mut body = vec![0; usize::try_from(number()).unwrap() + 2];
                self.stream.read_exact(&mut body).unwrap();
                body.truncate(body.len() - 2);
                Bulk(body)
            }
        }
    }

    fn call(&mut self, command: &str) -> Reply {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        self.send(&words);
        self.read()
    }

    /// A figure of INFO.
    fn info(&mut self, field: &str) -> u64 {
        let Bulk(info) = self.call("INFO") else { panic!("no INFO") };
        let info = String::from_utf8(info).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.parse().unwrap()
    }
}

fn bulk(text: &str) -> Reply {
    Bulk(text.into())
}

/// Asks until it is so.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < END, "not within {END:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn memory_comes_back_and_clients_do_not_notice() {
    if !installed("redis-benchmark") {
        println!("skipped: no redis-benchmark (apt install redis-tools)");
        return;
    }
    let server = Server::start(&[]);
    let fresh = server.fresh();
    let mut client = server.client();
    for n in 0..1000 {
        assert_eq!(client.call(&format!("LPUSH kept message-{n}")), Integer(n + 1));
    }
    // It keeps on waiting while memory goes.
    let mut waiting = server.client();
    waiting.send(&[b"BRPOP", b"later", b"0"]);
    server.tool("redis-benchmark", &["-q", "-n", "100000", "-d", "512", "-P", "50", "-t", "lpush"]);
    let (full, pushed) = (server.rss(), client.call("LLEN mylist"));
    server.tool("redis-benchmark", &["-q", "-n", "100000", "-P", "50", "-t", "rpop"]);
    let drained = server.rss();
    assert_eq!((pushed, client.call("LLEN mylist")), (Integer(100_000), Integer(0)));
    assert!(full > fresh + 50_000, "{full} KiB hold 100,000 messages?");
    server.press();
    let began = Instant::now();
    let mut n = 0;
    until("resident set at most 1.5 times its beginning", || {
        assert_eq!(client.call(&format!("LPUSH busy {n}")), Integer(1));
        assert_eq!(client.call("RPOP busy"), bulk(&n.to_string()));
        n += 1;
        server.rss() * 2 <= fresh * 3
    });
    println!(
        "KiB: fresh {fresh}, full {full}, drained {drained}, {} after {:?}",
        server.rss(),
        began.elapsed()
    );
    for n in 0..1000 {
        assert_eq!(client.call("RPOP kept"), bulk(&format!("message-{n}")));
    }
    client.call("LPUSH later now");
    assert_eq!(waiting.read(), Array(vec![bulk("later"), bulk("now")]));
    until("the cascade ends", || client.info("cascades") >= 1);
    assert!(client.info("returned") > 1_000_000);
    let Bulk(metrics) = client.call("METRICS") else { panic!("no metrics") };
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("place=\"server.vhosts[*].queues[*].ready\",type=\"VecDeque\""), "{metrics}");
}

#[test]
fn order_ends_and_vhosts() {
    let server = Server::start(&["--vhosts", "2"]);
    let mut client = server.client();
    assert_eq!(client.call("RPUSH q a b c"), Integer(3));
    assert_eq!(client.call("LPUSH q z"), Integer(4));
    assert_eq!(client.call("SELECT 1"), Simple("OK".into()));
    assert_eq!((client.call("LLEN q"), client.call("LPOP q")), (Integer(0), Nil));
    assert_eq!(client.call("SELECT 2"), Error("ERR DB index is out of range".into()));
    assert_eq!(client.call("SELECT 0"), Simple("OK".into()));
    assert_eq!(client.call("LPOP q"), bulk("z"));
    assert_eq!(client.call("RPOP q 5"), Array(vec![bulk("c"), bulk("b"), bulk("a")]));
    assert_eq!((client.call("RPOP q 5"), client.call("RPOP q")), (Nil, Nil));
    assert_eq!((client.call("DEL q x"), client.call("DEL q")), (Integer(1), Integer(0)));
    assert_eq!(client.call("PING"), Simple("PONG".into()));
    assert_eq!(client.call("ping \u{1}"), bulk("\u{1}"));
    assert!(matches!(client.call("HELLO 3"), Error(text) if text.starts_with("NOPROTO")));
    assert!(matches!(client.call("LPUSH q"), Error(text) if text.contains("number of arguments")));
    assert!(
        matches!(client.call("NON\r\nSENSE"), Error(text) if text.contains("unknown command 'NON\\r\\nSENSE'"))
    );
    client.stream.get_mut().write_all(b"llen q\r\n\r\nPING\n").unwrap();
    assert_eq!((client.read(), client.read()), (Integer(0), Simple("PONG".into())));
    assert_eq!(client.call("QUIT"), Simple("OK".into()));
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    if installed("redis-cli") {
        assert_eq!(server.tool("redis-cli", &["rpush", "q", "one two", ""]).trim(), "2");
        assert_eq!(server.tool("redis-cli", &["brpop", "none", "q", "1"]).lines().nth(1), Some(""));
        assert_eq!(server.tool("redis-cli", &["lpop", "q"]).trim(), "one two");
    }
}

#[test]
fn a_password_is_asked_for() {
    let server = Server::start(&["--password", "a secret"]);
    let mut client = server.client();
    assert_eq!(client.call("LLEN q"), Error("NOAUTH Authentication required.".into()));
    assert!(matches!(client.call("AUTH a"), Error(text) if text.starts_with("WRONGPASS")));
    client.send(&[b"AUTH", b"default", b"a secret"]);
    assert_eq!(client.read(), Simple("OK".into()));
    assert_eq!(client.call("LLEN q"), Integer(0));
    // Who has not said it may send little, and guess a few times.
    let mut other = server.client();
    other.stream.get_mut().write_all(b"*2\r\n$4\r\nAUTH\r\n$1000000\r\n").unwrap();
    assert_eq!(other.read(), Error("ERR Protocol error: invalid bulk length".into()));
    assert_eq!(other.stream.read(&mut [0]).unwrap(), 0);
    let mut other = server.client();
    for _ in 0..10 {
        assert!(matches!(other.call("AUTH x"), Error(_)));
    }
    assert_eq!(other.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn what_is_not_acknowledged_comes_back() {
    let server = Server::start(&[]);
    let (mut client, mut worker) = (server.client(), server.client());
    client.call("LPUSH jobs 1 2 3 4 5");
    let Array(got) = worker.call("RESERVE jobs 4") else { panic!("nothing delivered") };
    let tags: Vec<i64> =
        got.iter().filter_map(|r| if let Integer(n) = r { Some(*n) } else { None }).collect();
    let bodies: Vec<&Reply> = got.iter().skip(1).step_by(2).collect();
    assert_eq!(bodies, [&bulk("1"), &bulk("2"), &bulk("3"), &bulk("4")]);
    assert_eq!((client.call("LLEN jobs"), client.info("unacked")), (Integer(1), 4));
    // Not another client's.
    assert_eq!(client.call(&format!("ACK {}", tags[0])), Integer(0));
    assert_eq!(worker.call(&format!("ACK {} {}", tags[0], tags[0])), Integer(1));
    assert_eq!(worker.call(&format!("NACK {}", tags[1])), Integer(1));
    assert_eq!(client.call("RPOP jobs"), bulk("2"));
    drop(worker);
    until("the rest is back", || client.info("unacked") == 0);
    for n in 3..6 {
        assert_eq!(client.call("BRPOP jobs 30"), Array(vec![bulk("jobs"), bulk(&n.to_string())]));
    }
    assert_eq!(client.info("ready"), 0);
}

/// What a connection owns is shrunk by its own task, or not, as it was set when the connection came.
#[test]
fn connections_shrink_if_it_is_set() {
    let server = Server::start(&[]);
    let mut control = server.client();
    let mut client = |setting| {
        assert_eq!(control.call(&format!("CONFIG SET shrink {setting}")), Simple("OK".into()));
        let mut client = server.client();
        assert_eq!(client.call("PING"), Simple("PONG".into()));
        client
    };
    let (mut without, mut with) = (client("off"), client("on"));
    server.press();
    until("cascades", || control.info("cascades") >= 3);
    // Each polls between two requests.
    for _ in 0..2 {
        assert_eq!(without.call("PING"), Simple("PONG".into()));
        assert_eq!(with.call("PING"), Simple("PONG".into()));
    }
    // The server's, that of `control` and that of `with`.
    assert_eq!(control.info("cascades"), 3);
    assert!(matches!(control.call("CONFIG SET shrink maybe"), Error(_)));
    assert!(matches!(Server::start(&["--shrink", "off"]).client().call("CONFIG SET shrink on"), Error(_)));
}

#[test]
fn who_waits_is_served_in_turn() {
    let server = Server::start(&[]);
    let mut client = server.client();
    let mut waiting: Vec<Client> = (0..4)
        .map(|_| {
            let mut waiting = server.client();
            waiting.send(&[b"PING"]);
            waiting.send(&[b"BRPOP", b"none", b"q", b"0"]);
            assert_eq!(waiting.read(), Simple("PONG".into()));
            waiting
        })
        .collect();
    until("all wait", || client.info("waiting") == 8);
    // One gives up in the middle.
    drop(waiting.remove(0));
    until("it is gone", || client.info("waiting") == 6);
    assert!(matches!(client.call("LPUSH q 1 2 3"), Integer(3)));
    let mut got: Vec<Reply> = waiting.iter_mut().map(Client::read).collect();
    got.sort_by_key(|reply| format!("{reply:?}"));
    assert_eq!(got, ["1", "2", "3"].map(|n| Array(vec![bulk("q"), bulk(n)])));
    assert_eq!((client.info("waiting"), client.call("LLEN q")), (0, Integer(0)));
    assert_eq!(client.call("BLPOP q 0.01"), Nil);
    assert!(matches!(client.call("BLPOP q nan"), Error(_)));
    // What is sent behind is served afterwards; too much of it is not kept.
    let mut last = waiting.remove(0);
    last.send(&[b"BLPOP", b"q", b"0"]);
    last.send(&[b"PING"]);
    client.call("RPUSH q 4");
    assert_eq!((last.read(), last.read()), (Array(vec![bulk("q"), bulk("4")]), Simple("PONG".into())));
    last.send(&[b"BLPOP", b"q", b"0"]);
    let flood = vec![b'x'; 64 << 10];
    while last.stream.get_mut().write_all(&flood).is_ok() {}
    assert_eq!(client.call("PING"), Simple("PONG".into()));
}

#[test]
fn what_has_no_room_overflows_or_is_refused() {
    let body = |n: usize| format!("{n:0>1000}");
    let server = Server::start(&["--memory-limit", "1M"]);
    let mut client = server.client();
    let pushed =
        (0..4000).take_while(|n| matches!(client.call(&format!("LPUSH q {}", body(*n))), Integer(_)));
    assert!((500..1100).contains(&pushed.count()));
    assert_eq!(client.call("RPOP q"), bulk(&body(0)));
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&["--memory-limit", "1M", "--overflow", dir.path().to_str().unwrap()]);
    let mut client = server.client();
    for n in 0..4000 {
        assert!(matches!(client.call(&format!("LPUSH q {}", body(n))), Integer(_)), "{n}");
    }
    assert!(client.info("overflow_files") > 0);
    let Array(reserved) = client.call("RESERVE q 2") else { panic!("nothing delivered") };
    server.press();
    for n in 2..4000 {
        assert_eq!(client.call("RPOP q"), bulk(&body(n)));
    }
    for delivery in reserved.chunks(2) {
        let Integer(tag) = delivery[0] else { panic!("no tag") };
        assert_eq!(client.call(&format!("ACK {tag}")), Integer(1));
    }
    assert_eq!((client.info("overflow_files"), client.info("ready")), (0, 0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(client.call("DEL q"), Integer(1));
    until("nothing is charged", || client.info("used_memory") == 0);
}

#[test]
fn nonsense_ends_in_an_error() {
    let server = Server::start(&[]);
    for (bytes, says) in [
        (&b"*99999999999\r\n"[..], "invalid multibulk length"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*1\r\n:1\r\n", "expected '$'"),
        (b"*1\r\n$-5\r\n", "invalid bulk length"),
        (b"*1\r\n$9223372036854775807\r\n", "invalid bulk length"),
        (b"*1\r\n$+4\r\nPING\r\n", "invalid bulk length"),
        (b"*1\r\n$4\r\nPINGPONG", "expected CRLF"),
    ] {
        let mut client = server.client();
        client.stream.get_mut().write_all(bytes).unwrap();
        assert!(matches!(client.read(), Error(text) if text.contains(says)), "{}", bytes.escape_ascii());
        assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let requests = proptest::collection::vec(word(), 1..12);
    let check = |words: Vec<Vec<u8>>| {
        let mut client = server.client();
        // It may have closed before it has all.
        let _ = client.stream.get_mut().write_all(&words.concat());
        let _ = client.stream.get_mut().shutdown(Shutdown::Write);
        // Ends in a close: not by the timeout.
        if let Err(error) = client.stream.read_to_end(&mut Vec::new()) {
            prop_assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        Ok(())
    };
    runner.run(&requests, check).unwrap();
    let mut client = server.client();
    assert_eq!(client.call("PING"), Simple("PONG".into()));
    until("the others are gone", || client.info("connected_clients") == 1);
    assert_eq!(client.info("waiting"), 0);
}

#[test]
fn who_never_stops_sending_keeps_nobody_waiting() {
    let server = Server::start(&["--threads", "1"]);
    let stream = server.client().stream.into_inner();
    let (mut flood, mut replies) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let pings = b"PING\r\n".repeat(16 << 10);
            while flood.write_all(&pings).is_ok() {}
        });
        let mut first = [0; 7];
        replies.read_exact(&mut first).unwrap();
        scope.spawn(move || std::io::copy(&mut replies, &mut std::io::sink()));
        let _ends = Ends(&stream);
        for _ in 0..100 {
            assert_eq!(server.client().call("PING"), Simple("PONG".into()));
        }
    });
}

/// Ends a connection also where the test fails, so that nobody goes on sending.
struct Ends<'s>(&'s TcpStream);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[test]
fn a_request_that_never_ends_is_not_waited_for() {
    let server = Server::start(&["--patience", "1"]);
    let mut client = server.client();
    client.stream.get_mut().write_all(b"*2\r\n$4\r\nPING\r\n$9999\r\n").unwrap();
    // A byte now and then, and pressure in between, do not make it a new one.
    until("the server has closed", || {
        server.press();
        client.stream.get_mut().write_all(b"x").is_err()
    });
}

/// What a client may send, more or less.
fn word() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::string::bytes_regex(r"[*$][0-9+-]{0,20}\r\n").unwrap(),
        proptest::string::bytes_regex(
            r"(?i)(LPUSH|BRPOP|RPOP|RESERVE|ACK|DEL|SELECT|AUTH|INFO) ?[a-z0-9 -]{0,9}\r?\n"
        )
        .unwrap(),
        Just(b"*2\r\n$5\r\nBRPOP\r\n".to_vec()),
        Just(b"$1\r\n0\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_is_the_same_however_it_comes(words in proptest::collection::vec(word(), 1..12)) {
        let input = words.concat();
        let limits = Limits { bulk: 100, args: 10, request: 200 };
        let all = |step: usize| -> (Vec<Vec<Vec<u8>>>, Option<Wrong>) {
            let (mut parser, mut done, mut requests) = (Parser::default(), 0, Vec::new());
            for end in (0..input.len()).step_by(step).chain([input.len()]) {
                loop {
                    match parser.parse(&input[done..end], &limits) {
                        Ok(false) => break,
                        Ok(true) => {
                            let args = parser.args().iter().map(|range| input[done..end][range.clone()].to_vec());
                            requests.push(args.collect());
                            done += parser.len();
                            parser.clear();
                        }
                        Err(wrong) => return (requests, Some(wrong)),
                    }
                }
            }
            (requests, None)
        };
        prop_assert_eq!(all(1), all(input.len().max(1)));
    }
}
