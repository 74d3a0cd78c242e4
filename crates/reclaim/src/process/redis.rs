//! Redis and Valkey, asked over a socket of their own: nothing is borrowed, no thread stopped by us.
//!
//! MEMORY PURGE makes the same call of jemalloc that a borrowed thread would (src/object.c), in the one thread that
//! answers clients: it is the way where nothing can be called in the process. `activedefrag` has Redis move what lives on
//! half empty pages together, which no one can do from outside; it is on only while [`defragment`] looks on.
//!
//! Invariants: who answers is the process meant, by the kernel's word and by its own id; what was set is set back, also
//! when ebb is interrupted; if ebb is killed meanwhile it stays set, which the plan says, with the command that helps.

mod client;
mod socket;

use super::{Done, Options};
use crate::report::Lever;
use client::Client;
use ebbtide_observe::Bytes;
use ebbtide_observe::process::Process;
use ebbtide_sys::interrupt::Interrupts;
use socket::Address;
use std::time::{Duration, Instant};

/// Between two looks how far it has come; Redis itself looks ten times a second (server.hz).
const PAUSE: Duration = Duration::from_millis(200);

/// An answer may take so long, even where threads at rest are not waited for.
const ANSWER_LEAST: Duration = Duration::from_secs(1);

/// The server's program, which is the same as that of its tools; Debian's is called after one of these.
const PROGRAMS: [&str; 4] = ["redis-server", "redis-check-rdb", "valkey-server", "valkey-check-rdb"];

/// Whether `process` runs Redis or Valkey, by its program's name.
pub(super) fn is_server(process: &Process) -> bool {
    let exe = process.exe().unwrap_or_default();
    // After an upgrade "redis-server (deleted)".
    let name = exe.rsplit('/').next().and_then(|name| name.split(' ').next());
    name.is_some_and(|name| PROGRAMS.contains(&name))
}

/// A connection to `process`, and where.
fn connect(process: &Process, patience: Duration) -> Result<(Client, Address), String> {
    let id = process.status().map_err(|e| e.to_string())?.namespace_pid.unwrap_or(process.pid());
    let mut why = "it listens nowhere that is known".to_owned();
    for address in socket::listening(process).map_err(|e| e.to_string())? {
        let hello = |address: &Address| {
            let stream = socket::connect(process, address, patience.max(ANSWER_LEAST))?;
            let password = std::env::var("REDISCLI_AUTH").ok().filter(|password| !password.is_empty());
            let mut client = Client::new(stream, password);
            match client.info("server", "process_id")?.parse() == Ok(id) {
                true => Ok(client),
                false => Err("another process answers there".to_owned()),
            }
        };
        match hello(&address) {
            Ok(client) => return Ok((client, address)),
            Err(error) => why = format!("redis-cli {address}: {error}"),
        }
    }
    Err(why)
}

/// Has it purge. It answers nobody else meanwhile: so long was it held up at most.
pub(super) fn purge(process: &Process, options: &Options) -> Done {
    let purge = |(mut client, _): (Client, Address)| {
        let began = Instant::now();
        client.call(&["MEMORY", "PURGE"]).map(|_| began.elapsed())
    };
    match connect(process, options.patience).and_then(purge) {
        Ok(longest_stop) => Done { longest_stop, stops: 1, ..Done::default() },
        Err(why) => Done { short: Some(why), ..Done::default() },
    }
}

/// What defragmenting would return at least: where Redis is content it stops, and it may have come further. Of 203 MiB
/// in fragments, with the 100 MiB that it leaves by default, 146 MiB came back in 9 s (Redis 7.0.15 with its own jemalloc).
pub(super) fn defragmentation(process: &Process, options: &Options) -> Lever {
    let on = "fragments (allocator_frag_bytes)".to_owned();
    let cost = "Redis spends up to active-defrag-cycle-max percent of its time on it; if ebb is killed meanwhile, it \
                stays on";
    let mut lever = Lever::planned("redis-defrag", on, Bytes::ZERO, cost);
    let state = connect(process, options.patience).and_then(|(mut client, address)| {
        lever.undo = Some(format!("redis-cli {address} CONFIG SET activedefrag no"));
        State::read(&mut client)
    });
    match state {
        Ok(state) => {
            lever.predicted = state.fragmented - state.left();
            let (all, left) = (state.fragmented, state.left());
            lever.on = format!("fragments, {all} in all; Redis leaves {left} at most");
            if state.is_on {
                lever.short = Some("activedefrag is on already".to_owned());
            } else if !state.is_worth_it() {
                lever.short = Some(format!(
                    "{} in fragments is less than Redis acts on (active-defrag-ignore-bytes {}, \
                     active-defrag-threshold-lower {}%)",
                    state.fragmented, state.least, state.least_percent
                ));
            }
        }
        Err(why) => lever.short = Some(why),
    }
    if lever.short.is_some() {
        lever.undo = None;
    }
    lever
}

/// Has it defragment until there is little left to gain, or `patience` ends; `undo` is taken away when all is as before.
pub(super) fn defragment(process: &Process, patience: Duration, undo: &mut Option<String>) -> Done {
    let failed = connected(process, patience).err();
    if !failed.as_ref().is_some_and(|failed| failed.stays_on) {
        *undo = None;
    }
    let said = |Failed { why, stays_on }| match stays_on {
        true => format!("activedefrag stays on: {why}"),
        false => why,
    };
    Done { short: failed.map(said), ..Done::default() }
}

/// Why it did not go to the end, and whether the setting stays.
#[derive(Debug, PartialEq, Eq)]
struct Failed {
    why: String,
    stays_on: bool,
}

impl From<String> for Failed {
    fn from(why: String) -> Failed {
        Failed { why, stays_on: false }
    }
}

fn connected(process: &Process, patience: Duration) -> Result<(), Failed> {
    let (mut client, _) = connect(process, patience)?;
    let signals = Interrupts::catch().map_err(|e| format!("signalfd: {e}"))?;
    run(&mut client, patience, &mut |pause| signals.wait(pause))
}

/// Sets, looks on, sets back; `wait` says whether to stop.
fn run(
    client: &mut Client,
    patience: Duration,
    wait: &mut dyn FnMut(Duration) -> bool,
) -> Result<(), Failed> {
    let before = client.setting("activedefrag")?;
    client.call(&["CONFIG", "SET", "activedefrag", "yes"])?;
    let looked = look_on(client, patience, wait);
    let stays = |why| Failed { why, stays_on: true };
    client.call(&["CONFIG", "SET", "activedefrag", &before]).map_err(stays)?;
    Ok(looked?)
}

fn look_on(
    client: &mut Client,
    patience: Duration,
    wait: &mut dyn FnMut(Duration) -> bool,
) -> Result<(), String> {
    let began = Instant::now();
    loop {
        if wait(PAUSE) {
            return Err("interrupted".to_owned());
        }
        let state = State::read(client)?;
        if !state.is_worth_it() && !state.is_running {
            // What it left free.
            return client.call(&["MEMORY", "PURGE"]).map(drop);
        }
        if began.elapsed() > patience {
            return Err(format!("{} still in fragments after {patience:?} (--patience)", state.fragmented));
        }
    }
}

/// How fragmented it is, and what it does about it (computeDefragCycles, src/defrag.c, Redis 7).
#[derive(Debug, PartialEq, Eq)]
struct State {
    is_on: bool,
    is_running: bool,
    fragmented: Bytes,
    allocated: Bytes,
    least: Bytes,
    /// In percent of what is allocated.
    least_percent: u64,
}

impl State {
    fn read(client: &mut Client) -> Result<State, String> {
        let allocator = client.info("memory", "mem_allocator")?;
        if !allocator.starts_with("jemalloc") {
            return Err(format!("it allocates by {allocator}, which knows no defragmentation"));
        }
        let (allocated, active) = (client.memory("allocator_allocated")?, client.memory("allocator_active")?);
        let number = |text: String| text.parse().map_err(|_| format!("{text} is no number"));
        Ok(State {
            is_on: client.setting("activedefrag")? == "yes",
            is_running: client.memory("active_defrag_running")? > 0,
            fragmented: Bytes(active) - Bytes(allocated),
            allocated: Bytes(allocated),
            least: Bytes(client.setting("active-defrag-ignore-bytes").and_then(number)?),
            least_percent: client.setting("active-defrag-threshold-lower").and_then(number)?,
        })
    }

    /// With how much in fragments it is content.
    fn left(&self) -> Bytes {
        self.least.max(self.allocated.scaled(self.least_percent as f64 / 100.0))
    }

    /// Whether Redis would begin.
    fn is_worth_it(&self) -> bool {
        self.fragmented >= self.left()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::tests::served;
    use std::sync::{Arc, Mutex};

    /// A Redis that has 300 MiB of fragments, fewer by 10 MiB at each INFO once activedefrag is on, and ends after so
    /// many commands.
    fn fragmented(gone_after: usize) -> (Client, Arc<Mutex<(bool, u64)>>) {
        let state = Arc::new(Mutex::new((false, 300_u64)));
        let (of_server, mut commands) = (state.clone(), 0);
        let client = served(None, move |words| {
            commands += 1;
            if commands > gone_after {
                return String::new();
            }
            let (is_on, fragments) = &mut *of_server.lock().unwrap();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
            match words[..] {
                ["CONFIG", "SET", "activedefrag", value] => {
                    *is_on = value == "yes";
                    "+OK\r\n".to_owned()
                }
                ["CONFIG", "GET", name] => {
                    let value = match name {
                        "activedefrag" if *is_on => "yes",
                        "activedefrag" => "no",
                        "active-defrag-ignore-bytes" => "104857600",
                        _ => "10",
                    };
                    format!("*2\r\n{}{}", bulk(name), bulk(value))
                }
                ["INFO", _] => {
                    if *is_on {
                        *fragments = fragments.saturating_sub(10);
                    }
                    bulk(&format!(
                        "# Memory\r\nmem_allocator:jemalloc-5.3.0\r\nallocator_allocated:{}\r\nallocator_active:{}\r\n\
                         active_defrag_running:{}\r\n",
                        500 << 20,
                        (500 + *fragments) << 20,
                        u8::from(*is_on && *fragments > 0)
                    ))
                }
                _ => "+OK\r\n".to_owned(),
            }
        });
        (client, state)
    }

    #[test]
    fn what_was_set_is_set_back() {
        let patience = Duration::from_secs(60);
        let (mut client, server) = fragmented(usize::MAX);
        let state = State::read(&mut client).unwrap();
        assert!(state.is_worth_it() && !state.is_on, "{state:?}");
        assert_eq!(state.fragmented, Bytes::from_mib(300));
        let interrupted = run(&mut client, patience, &mut |_| true);
        assert_eq!(interrupted, Err("interrupted".to_owned().into()));
        assert!(!server.lock().unwrap().0);
        let impatient = run(&mut client, Duration::ZERO, &mut |_| false).unwrap_err();
        assert!(impatient.why.contains("--patience") && !impatient.stays_on, "{impatient:?}");
        assert!(!server.lock().unwrap().0);
        run(&mut client, patience, &mut |_| false).unwrap();
        assert_eq!(*server.lock().unwrap(), (false, 0));
    }

    #[test]
    fn a_server_that_is_lost_is_said_to_keep_it() {
        let (mut client, server) = fragmented(4);
        let lost = run(&mut client, Duration::from_secs(60), &mut |_| false).unwrap_err();
        assert!(lost.stays_on, "{lost:?}");
        assert!(server.lock().unwrap().0);
    }
}
