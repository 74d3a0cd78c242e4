//! What one client has: where it is, what it may, what was delivered to it, what it waits for.
//!
//! Invariant: when a client goes, what it has not acknowledged is back in its queue, in the order it was in.

use crate::queue::End;
use crate::resp;
use crate::server::Server;
use crate::vhost::{Name, Waiter};
use ebbtide_shrink::Shrink;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

#[derive(Shrink)]
pub(crate) struct Session {
    #[shrink(skip)]
    pub(crate) server: Arc<Server>,
    pub(crate) vhost: usize,
    pub(crate) trusted: bool,
    /// Wrong passwords so far.
    pub(crate) wrong: u32,
    /// Delivered and not acknowledged, by tag: the queue each came from.
    #[shrink(skip)]
    pub(crate) tags: BTreeMap<u64, (usize, Name)>,
}

/// How it goes on after a command.
pub(crate) enum Next {
    Go,
    Quit,
    Wait(Blocked),
}

/// A client in BRPOP or BLPOP.
pub(crate) struct Blocked {
    server: Arc<Server>,
    vhost: usize,
    keys: Vec<Name>,
    end: End,
    pub(crate) waiter: Arc<Waiter>,
    pub(crate) deadline: Option<Instant>,
}

impl Session {
    pub(crate) fn new(server: Arc<Server>) -> Session {
        let trusted = server.options.password.is_none();
        Session { server, vhost: 0, trusted, wrong: 0, tags: BTreeMap::new() }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The last one delivered stood next to those that remained.
        for (tag, (vhost, name)) in std::mem::take(&mut self.tags).into_iter().rev() {
            let mut vhost = self.server.vhost(vhost);
            if vhost.queues.get_mut(name.bytes()).is_some_and(|queue| queue.requeue(tag)) {
                vhost.wake(name.bytes(), 1);
            }
        }
    }
}

impl Blocked {
    pub(crate) fn new(session: &Session, keys: Vec<Name>, end: End, deadline: Option<Instant>) -> Blocked {
        let (server, waiter) = (Arc::clone(&session.server), Arc::default());
        Blocked { server, vhost: session.vhost, keys, end, waiter, deadline }
    }

    /// Replies with a message of the first queue that has one; else waits for one. Whether it replied.
    pub(crate) fn poll(&self, again: bool, out: &mut Vec<u8>) -> bool {
        let mut vhost = self.server.vhost(self.vhost);
        for key in &self.keys {
            let Some(queue) = vhost.queues.get_mut(key.bytes()) else { continue };
            let reply = |body: &[u8]| {
                resp::array(out, 2);
                resp::bulk(out, key.bytes());
                resp::bulk(out, body);
            };
            if queue.pop(self.end, reply) {
                return true;
            }
        }
        for key in &self.keys {
            vhost.wait(key, &self.waiter, again);
        }
        false
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let mut vhost = self.server.vhost(self.vhost);
        for key in &self.keys {
            vhost.leave(key.bytes(), &self.waiter);
        }
    }
}
