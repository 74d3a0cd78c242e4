//! An owner of a value that nobody else touches: it shrinks on its own thread or task.
//!
//! Invariants: each onset is served once, late or not; what a slice leaves is taken up by the next poll; without
//! pressure a poll is one load and one comparison.

use crate::history::History;
use crate::registry::Shared;
use crate::registry::bell::{Bell, Sleeper};
use crate::{Job, Policy, Report, Shrink};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Until the next try where there is no memory for a cascade's bookkeeping.
const REFUSED: Duration = Duration::from_millis(1);

/// What a poll did; nothing needs to be done about it.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a box is an allocation in the middle of pressure")]
pub enum Turn {
    /// Nothing to do.
    Quiet,
    /// There is more to do, in later polls: one slice was done, or the pause after one is not over
    /// ([`Policy::duty`]).
    More,
    /// The last slice of a cascade, and what the cascade did.
    Done(Report),
}

impl Turn {
    /// Whether the next poll goes on.
    pub fn is_more(&self) -> bool {
        matches!(self, Turn::More)
    }
}

/// One owner's place in a [`Registry`](crate::Registry): made by [`Registry::member`](crate::Registry::member), kept
/// beside the value, polled with the value where the owner chooses.
#[must_use = "a member does nothing unless it is polled"]
pub struct Member {
    bell: Arc<Bell>,
    shared: Arc<Shared>,
    name: &'static str,
    policy: Policy,
    seen: u64,
    /// The count that the job at work answers.
    answers: u64,
    /// None or one: a box that can be refused.
    job: Vec<Job>,
    /// Not before then.
    next: Option<Instant>,
    history: History,
    /// Only who waits has one.
    sleeper: Option<Sleeper>,
}

impl Member {
    pub(crate) fn new(shared: Arc<Shared>, name: &'static str) -> Member {
        let (seen, policy) = (shared.bell.rung(), shared.policy);
        let (bell, history) = (Arc::clone(&shared.bell), History::default());
        Member {
            bell,
            shared,
            name,
            policy,
            seen,
            answers: seen,
            job: Vec::new(),
            next: None,
            history,
            sleeper: None,
        }
    }

    /// A policy of its own, in place of the registry's; from the next cascade on.
    pub fn with_policy(mut self, policy: Policy) -> Member {
        self.policy = policy;
        self
    }

    /// Does one slice if there is pressure; it must be the same value each time. Without pressure this is one relaxed
    /// load: call it once for each message, request or turn of the loop.
    #[inline]
    pub fn poll<T: Shrink + ?Sized>(&mut self, value: &mut T) -> Turn {
        if self.bell.rung() == self.seen {
            return Turn::Quiet;
        }
        self.turn(|job| job.slice(value))
    }

    #[cold]
    fn turn(&mut self, slice: impl FnOnce(&mut Job) -> bool) -> Turn {
        if self.next.is_some_and(|next| Instant::now() < next) {
            return Turn::More;
        }
        if self.job.is_empty() {
            if self.job.try_reserve_exact(1).is_err() {
                self.next = Some(Instant::now() + REFUSED);
                return Turn::More;
            }
            let history = std::mem::take(&mut self.history);
            self.job.push(Job::with_history(self.name, self.policy, history));
            self.answers = self.bell.rung();
            self.shared.tidy.begin();
        }
        if let Some(job) = self.job.last_mut()
            && slice(job)
        {
            self.next = Some(job.next());
            return Turn::More;
        }
        self.next = None;
        let Some(job) = std::mem::take(&mut self.job).pop() else { return Turn::Quiet };
        let (report, history) = job.into_parts();
        self.history = history;
        self.seen = self.answers;
        self.shared.finished(self.name, &report);
        Turn::Done(report)
    }

    /// How long until a poll does something, if the last one said [`Turn::More`]: for a task that has nothing else to do.
    pub fn pause(&self) -> Duration {
        self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()))
    }

    /// Waits until there is pressure, or goes on at once if there is something to do: for a task that waits for its
    /// peer most of the time, and would not come to poll.
    /// [`guide::threads`](crate::guide::threads) shows it in a `select!`. Cancel safe: dropping it loses
    /// nothing. After [`Turn::More`] there is something to do, though not before [`pause`](Member::pause) is over.
    pub fn flagged(&mut self) -> impl Future<Output = ()> + Send + '_ {
        Flagged(self)
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, pending) = (&self.name, &(self.bell.rung() != self.seen));
        f.debug_struct("Member").field("name", name).field("pending", pending).finish_non_exhaustive()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if !self.job.is_empty() {
            self.shared.tidy.end(|| self.shared.give_back());
        }
    }
}

struct Flagged<'a>(&'a mut Member);

impl Future for Flagged<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let member = &mut *self.0;
        if member.bell.rung() == member.seen {
            member.bell.sleep(member.sleeper.get_or_insert_default(), context.waker());
            if member.bell.rung() == member.seen {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}
