//! Redis asked over its sockets, where nothing may be called in it: under a seccomp filter.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{SLACK, build_as, give_back_with};
use ebbtide_observe::Bytes;
use ebbtide_reclaim::Lever;
use ebbtide_reclaim::process::Options;
use ebbtide_testkit::{Redis, child};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Variables that put a Redis under a filter and let it keep what is freed.
fn filtered() -> Vec<(&'static str, String)> {
    let library = build_as("filtered.so", "tests/programs/filtered.c", &["-shared", "-fPIC"]);
    vec![("LD_PRELOAD", library.display().to_string()), ("MALLOC_CONF", "dirty_decay_ms:-1".to_owned())]
}

/// Such a Redis, with much to purge.
fn start(options: &[&str]) -> Option<Redis> {
    let environment = filtered();
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let options = [&["--jemalloc-bg-thread", "no"], options].concat();
    Redis::start(&options, &environment)
}

fn fill(redis: &mut Redis) {
    redis.call("DEBUG POPULATE 100000 key 700");
    redis.call("EVAL \"for i = 0, 99999 do if i % 100 > 0 then redis.call('DEL', 'key:' .. i) end end\" 0");
}

fn only_lever(pid: u32, options: &Options) -> Lever {
    let report = give_back_with(pid, &Options { max_stop: Duration::from_secs(1), ..*options });
    assert_eq!(report.levers.len(), 1, "{report:#?}");
    report.levers[0].clone()
}

fn purged(lever: &Lever) {
    println!("{}: {} of {:?}, {:?}", lever.on, lever.predicted, lever.returned, lever.longest_stop);
    assert_eq!((lever.id, &lever.short), ("redis-purge", &None), "{lever:#?}");
    let off = Bytes(lever.predicted.0.abs_diff(lever.returned.unwrap().0));
    assert!(lever.predicted >= Bytes::from_mib(10) && (off <= SLACK || off <= lever.predicted.scaled(0.02)));
}

#[test]
fn over_its_path_and_over_its_port() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let Some(mut redis) = start(&["--port", &port]) else { return };
    fill(&mut redis);
    let digest = redis.call("DEBUG DIGEST");
    let refused = give_back_with(redis.pid(), &Options { max_stop: Duration::ZERO, ..Options::default() });
    assert!(refused.levers[0].short.as_ref().is_some_and(|why| why.contains("--max-stop")), "{refused:#?}");
    purged(&only_lever(redis.pid(), &Options::default()));
    redis.call("FLUSHALL");
    fill(&mut redis);
    std::fs::remove_file(redis.socket()).unwrap();
    purged(&only_lever(redis.pid(), &Options::default()));
    assert_eq!(redis.call("DEBUG DIGEST"), digest);
}

/// Where no thread of it is at rest just then, it is asked.
#[test]
fn while_it_has_much_to_do() {
    if !child::installed("redis-benchmark") {
        return println!("skipped: redis-benchmark is not installed");
    }
    let options = ["--jemalloc-bg-thread", "no"];
    let Some(mut redis) = Redis::start(&options, &[("MALLOC_CONF", "dirty_decay_ms:-1")]) else { return };
    // Its client does not take the processor from it.
    let mut load = Command::new("nice");
    load.args(["redis-benchmark", "-s"]).arg(redis.socket());
    load.args(["-c", "20", "-P", "16", "-n", "1000000000", "-t", "set", "-q"]);
    let mut load = load.stdout(Stdio::null()).spawn().unwrap();
    let (max_stop, patience) = (Duration::from_secs(1), Duration::ZERO);
    let options = Options { max_stop, patience, ..Options::default() };
    for _ in 0..3 {
        fill(&mut redis);
        let report = give_back_with(redis.pid(), &options);
        let lever = &report.levers[0];
        println!("{}: {} of {}", lever.id, lever.returned.unwrap(), lever.on);
        assert!(
            ["jemalloc-purge", "redis-purge"].contains(&lever.id) && lever.short.is_none(),
            "{report:#?}"
        );
        assert!(lever.returned >= Some(lever.predicted.scaled(0.8)), "{report:#?}");
    }
    load.kill().unwrap();
    load.wait().unwrap();
}

#[test]
fn what_it_refuses_is_said() {
    for (options, said) in [
        (["--requirepass", "sesame"].as_slice(), "REDISCLI_AUTH"),
        (&["--rename-command", "MEMORY", "\"\""], "rename-command"),
        (&["--rename-command", "INFO", "\"\""], "rename-command"),
    ] {
        let Some(mut redis) = start(options) else { return };
        if options[0] == "--requirepass" {
            redis.call("AUTH sesame");
        }
        fill(&mut redis);
        let lever = only_lever(redis.pid(), &Options::default());
        assert!(lever.short.as_ref().is_some_and(|why| why.contains(said)), "{lever:#?}");
        assert_eq!(redis.call("DBSIZE"), "1000");
    }
}

/// Debian's jemalloc is not Redis's own, without which there is no activedefrag.
#[test]
fn activedefrag_that_it_cannot_do() {
    let Some(mut redis) = start(&[]) else { return };
    let options = Options { defragment: Some(Duration::from_secs(20)), ..Options::default() };
    let short = |redis: &Redis| {
        let report = give_back_with(redis.pid(), &options);
        let lever = report.levers.iter().find(|lever| lever.id == "redis-defrag").unwrap().clone();
        assert_eq!(lever.undo, None, "{lever:#?}");
        lever.short.unwrap_or_default()
    };
    assert!(short(&redis).contains("less than Redis acts on"));
    fill(&mut redis);
    redis.call("CONFIG SET active-defrag-ignore-bytes 1mb");
    let why = short(&redis);
    println!("{why}");
    if !why.is_empty() {
        assert!(why.contains("modified Jemalloc"), "{why}");
    }
    assert_eq!(redis.info("active_defrag_running"), 0);
}

/// Its port is one of another network.
#[test]
fn in_a_network_namespace_of_its_own() {
    if !child::is_root() || !["redis-server", "unshare", "ip", "setpriv"].iter().all(child::installed) {
        return println!("skipped: takes root, redis-server, unshare, ip and setpriv");
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c"]);
    command.arg("ip link set lo up && exec redis-server --port 6379 --save '' --jemalloc-bg-thread no");
    let mut server = command.envs(filtered()).stdout(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(server.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("eady to accept connections") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "redis-server ended");
    }
    let lua = "for i = 1, 99999 do redis.call('SET', i, string.rep('x', 700)) end \
               for i = 1, 99999 do redis.call('DEL', i) end";
    let id = server.id().to_string();
    let cli =
        Command::new("nsenter").args(["-t", &id, "-n", "redis-cli", "EVAL", lua, "0"]).output().unwrap();
    println!("{}", String::from_utf8_lossy(&cli.stdout));
    let lever = only_lever(server.id(), &Options::default());
    server.kill().unwrap();
    server.wait().unwrap();
    purged(&lever);
}
