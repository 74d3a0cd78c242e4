//! The commands. Queues are made by the first push, and stay until they are deleted.
//!
//! Beyond Redis': `RESERVE key [count]` delivers from the right end, as an array of tag and message in turn; `ACK tag ...`
//! and `NACK tag ...` say how many deliveries of this client are done, or back in their queue; `METRICS`; `CONFIG SET
//! shrink on|off` says whether connections that come after it shrink what they own.

use crate::info;
use crate::options::Mode;
use crate::queue::{End, Queue};
use crate::resp::{self, number};
use crate::session::{Blocked, Next, Session};
use crate::vhost::Name;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Messages of one reply take about so much at most: LPOP, RPOP and RESERVE with a count may answer with fewer.
const REPLY: usize = 1 << 20;
/// Deliveries that a client may have and not acknowledge.
const MOST_TAGS: usize = 1 << 16;
/// Keys in one BRPOP, and the longest name: what a waiting client holds is not charged to the budget.
const MOST_KEYS: usize = 16;
const LONGEST_NAME: usize = 1024;

/// A request's arguments.
#[derive(Clone, Copy)]
pub(crate) struct Args<'a> {
    input: &'a [u8],
    ranges: &'a [Range<usize>],
}

impl<'a> Args<'a> {
    pub(crate) fn new(input: &'a [u8], ranges: &'a [Range<usize>]) -> Args<'a> {
        Args { input, ranges }
    }
    fn len(&self) -> usize {
        self.ranges.len()
    }
    fn get(&self, index: usize) -> &'a [u8] {
        self.ranges.get(index).and_then(|range| self.input.get(range.clone())).unwrap_or(&[])
    }
    fn from(self, first: usize) -> impl Iterator<Item = &'a [u8]> {
        (first..self.len()).map(move |index| self.get(index))
    }
}

const SYNTAX: &str = "ERR syntax error";
const NOT_A_NUMBER: &str = "ERR value is not an integer or out of range";

/// Carries out one command and writes its reply.
pub(crate) fn run(session: &mut Session, args: Args<'_>, out: &mut Vec<u8>) -> Next {
    let mut name = [0_u8; 16];
    let given = args.get(0);
    let name = match name.get_mut(..given.len()) {
        Some(name) if !given.is_empty() => name,
        _ => return refuse(given, out),
    };
    name.copy_from_slice(given);
    name.make_ascii_uppercase();
    let (name, count) = (&*name, args.len());
    if !session.trusted && !matches!(name, b"AUTH" | b"QUIT" | b"HELLO") {
        resp::error(out, "NOAUTH Authentication required.");
        return Next::Go;
    }
    let result = match (name, count) {
        (b"AUTH", 2 | 3) => return authenticate(session, args, out),
        (b"QUIT", _) => {
            resp::simple(out, "OK");
            return Next::Quit;
        }
        (b"BLPOP", 3..) => return block(session, End::Left, args, out),
        (b"BRPOP", 3..) => return block(session, End::Right, args, out),
        (b"LPUSH", 3..) => push(session, End::Left, args, out),
        (b"RPUSH", 3..) => push(session, End::Right, args, out),
        (b"LPOP", 2 | 3) => pop(session, End::Left, args, out),
        (b"RPOP", 2 | 3) => pop(session, End::Right, args, out),
        (b"RESERVE", 2 | 3) => reserve(session, args, out),
        (b"ACK", 2..) => settle(session, args, Queue::acknowledge, out),
        (b"NACK", 2..) => settle(session, args, Queue::requeue, out),
        (b"LLEN", 2) => {
            let len =
                session.server.vhost(session.vhost).queues.get(args.get(1)).map(|queue| queue.ready.len());
            resp::integer(out, len.unwrap_or(0));
            Ok(())
        }
        (b"DEL" | b"UNLINK", 2..) => delete(session, args, out),
        (b"SELECT", 2) => select(session, args, out),
        (b"CONFIG", 4) if args.get(1).eq_ignore_ascii_case(b"SET") => set(session, args, out),
        _ => about(session, name, args, out),
    };
    if let Err(text) = result {
        resp::error(out, text);
    }
    Next::Go
}

/// What tells of the server and changes nothing.
fn about(session: &Session, name: &[u8], args: Args<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    match (name, args.len()) {
        (b"PING", 1) => resp::simple(out, "PONG"),
        (b"PING" | b"ECHO", 2) => resp::bulk(out, args.get(1)),
        (b"INFO", 1 | 2) => resp::bulk(out, info::info(&session.server).as_bytes()),
        (b"METRICS", 1) => resp::bulk(out, info::metrics(&session.server).as_bytes()),
        // redis-cli asks for what it could complete, redis-benchmark for two settings, clients tell their names.
        (b"COMMAND", _) => resp::array(out, 0),
        (b"CONFIG", 3) if args.get(1).eq_ignore_ascii_case(b"GET") => {
            resp::array(out, 2);
            resp::bulk(out, args.get(2));
            resp::bulk(out, b"");
        }
        (b"CLIENT", 3 | 4) => resp::simple(out, "OK"),
        (b"HELLO", _) => return Err("NOPROTO this server speaks RESP2 only"),
        (
            b"AUTH" | b"BLPOP" | b"BRPOP" | b"LPUSH" | b"RPUSH" | b"LPOP" | b"RPOP" | b"RESERVE" | b"ACK"
            | b"NACK" | b"LLEN" | b"DEL" | b"UNLINK" | b"SELECT" | b"PING" | b"ECHO" | b"INFO" | b"METRICS"
            | b"CONFIG" | b"CLIENT",
            _,
        ) => return Err("ERR wrong number of arguments"),
        _ => {
            refuse(args.get(0), out);
        }
    }
    Ok(())
}

fn set(session: &Session, args: Args<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let server = &session.server;
    let on = match (args.get(2), args.get(3)) {
        (b"shrink", b"on") if server.options.shrink == Mode::On => true,
        (b"shrink", b"off") => false,
        (b"shrink", b"on") => return Err("ERR this server was not started with --shrink on"),
        _ => return Err(SYNTAX),
    };
    server.members.store(on, Ordering::Relaxed);
    resp::simple(out, "OK");
    Ok(())
}

fn refuse(name: &[u8], out: &mut Vec<u8>) -> Next {
    if !name.is_empty() {
        let shown = name.get(..64).unwrap_or(name).escape_ascii();
        resp::error(out, &format!("ERR unknown command '{shown}'"));
    }
    Next::Go
}

fn authenticate(session: &mut Session, args: Args<'_>, out: &mut Vec<u8>) -> Next {
    let Some(password) = &session.server.options.password else {
        resp::error(out, "ERR Client sent AUTH, but no password is set");
        return Next::Go;
    };
    let (given, password) = (args.get(args.len() - 1), password.as_bytes());
    let user = args.len() == 2 || args.get(1) == b"default";
    // All bytes are looked at, so that the time says nothing of how many were right.
    let differs =
        given.iter().zip(password).fold(given.len() ^ password.len(), |d, (a, b)| d | usize::from(a ^ b));
    if user && differs == 0 {
        session.trusted = true;
        resp::simple(out, "OK");
        return Next::Go;
    }
    session.wrong += 1;
    resp::error(out, "WRONGPASS invalid username-password pair");
    if session.wrong < 10 { Next::Go } else { Next::Quit }
}

fn select(session: &mut Session, args: Args<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let number = number(args.get(1)).and_then(|number| usize::try_from(number).ok());
    session.vhost =
        number.filter(|n| *n < session.server.vhosts.len()).ok_or("ERR DB index is out of range")?;
    resp::simple(out, "OK");
    Ok(())
}

fn push(session: &Session, end: End, args: Args<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    const FULL: &str = "OOM the memory limit is reached and nothing can overflow";
    let key = args.get(1);
    if key.len() > LONGEST_NAME {
        return Err("ERR the name is too long");
    }
    let mut vhost = session.server.vhost(session.vhost);
    let queue = vhost.declare(key, &session.server.store).map_err(|_| FULL)?;
    let before = queue.ready.len();
    let result = args.from(2).try_for_each(|body| queue.push(end, body));
    let after = queue.ready.len();
    if after > before {
        vhost.wake(key, after - before);
    }
    drop(vhost);
    // As Redis has no half-way answer: those before the one that was refused are in.
    result.map_err(|_| FULL)?;
    resp::integer(out, after);
    Ok(())
}

/// The third argument: how many.
fn wanted(args: Args<'_>) -> Result<Option<usize>, &'static str> {
    if args.len() < 3 {
        return Ok(None);
    }
    let count = number(args.get(2)).and_then(|count| usize::try_from(count).ok());
    count.map(Some).ok_or(NOT_A_NUMBER)
}

fn pop(session: &Session, end: End, args: Args<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let wanted = wanted(args)?;
    let mut vhost = session.server.vhost(session.vhost);
    let Some(queue) = vhost.queues.get_mut(args.get(1)).filter(|queue| !queue.ready.is_empty()) else {
        if wanted.is_some() {
            resp::nil_array(out)
        } else {
            resp::nil(out)
        }
        return Ok(());
    };
    let Some(wanted) = wanted else {
        queue.pop(end, |body| resp::bulk(out, body));
        return Ok(());
    };
    let mut popped = Vec::new();
    let mut count = 0;
    while count < wanted && popped.len() < REPLY && queue.pop(end, |body| resp::bulk(&mut popped, body)) {
        count += 1;
    }
    drop(vhost);
    resp::array(out, count);
    out.extend_from_slice(&popped);
    Ok(())
}

fn reserve(session: &mut Session, args: Args<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let wanted = wanted(args)?.unwrap_or(1);
    let (server, key) = (&session.server, args.get(1));
    let mut delivered = Vec::new();
    let mut count = 0;
    let mut vhost = server.vhost(session.vhost);
    if let Some((name, _)) = vhost.queues.get_key_value(key) {
        let name = name.clone();
        while count < wanted && delivered.len() < REPLY {
            if session.tags.len() >= MOST_TAGS {
                break;
            }
            let tag = server.counts.delivered.fetch_add(1, Ordering::Relaxed) + 1;
            let Some(queue) = vhost.queues.get_mut(key) else { break };
            let reply = |body: &[u8]| {
                resp::integer(&mut delivered, usize::try_from(tag).unwrap_or(usize::MAX));
                resp::bulk(&mut delivered, body);
            };
            if !queue.reserve(tag, reply) {
                break;
            }
            session.tags.insert(tag, (session.vhost, name.clone()));
            count += 1;
        }
    }
    drop(vhost);
    resp::array(out, 2 * count);
    out.extend_from_slice(&delivered);
    Ok(())
}

fn settle(
    session: &mut Session,
    args: Args<'_>,
    settle: impl Fn(&mut Queue, u64) -> bool,
    out: &mut Vec<u8>,
) -> Result<(), &'static str> {
    let mut settled = 0;
    for tag in args.from(1) {
        let tag = number(tag).and_then(|tag| u64::try_from(tag).ok()).ok_or(NOT_A_NUMBER)?;
        // Only its own; the queue may have been deleted meanwhile.
        let Some((vhost, name)) = session.tags.remove(&tag) else { continue };
        let mut vhost = session.server.vhost(vhost);
        if vhost.queues.get_mut(name.bytes()).is_some_and(|queue| settle(queue, tag)) {
            settled += 1;
            let ready = vhost.queues.get(name.bytes()).is_some_and(|queue| !queue.ready.is_empty());
            vhost.wake(name.bytes(), usize::from(ready));
        }
    }
    resp::integer(out, settled);
    Ok(())
}

fn delete(session: &Session, args: Args<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let mut deleted = 0;
    for key in args.from(1) {
        let queue = session.server.vhost(session.vhost).delete(key, &session.server.store);
        if let Some(queue) = queue {
            deleted += 1;
            // A million messages take a while to free: not on a thread that serves.
            tokio::task::spawn_blocking(move || drop(queue));
        }
    }
    resp::integer(out, deleted);
    Ok(())
}

fn block(session: &Session, end: End, args: Args<'_>, out: &mut Vec<u8>) -> Next {
    let last = args.len() - 1;
    let seconds = std::str::from_utf8(args.get(last)).ok().and_then(|text| text.parse::<f64>().ok());
    let Some(seconds) = seconds.filter(|seconds| (0.0..=1e9).contains(seconds)) else {
        resp::error(out, "ERR timeout is not a float or out of range");
        return Next::Go;
    };
    if last > MOST_KEYS || args.from(1).any(|key| key.len() > LONGEST_NAME) {
        resp::error(out, SYNTAX);
        return Next::Go;
    }
    let deadline = (seconds > 0.0).then(|| Instant::now() + Duration::from_secs_f64(seconds));
    let keys = args.from(1).take(last - 1).map(Name::new).collect();
    let blocked = Blocked::new(session, keys, end, deadline);
    if blocked.poll(false, out) { Next::Go } else { Next::Wait(blocked) }
}
