//! What the watcher's thread and the readers share: the level, the source, and each reader's queue.
//!
//! Invariant: a reader's descriptor is readable exactly while its queue is not empty; both change under the queue's lock.

use crate::queue::Queue;
use crate::{Event, Level, PassedOver, Source};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// What is watched, and why nothing better.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) source: Source,
    pub(crate) passed_over: Vec<PassedOver>,
}

#[derive(Debug)]
pub(crate) struct Hub {
    level: AtomicU8,
    choice: Mutex<Choice>,
    told: Mutex<Told>,
}

/// Who is told, and what was told last: to be known to who comes later.
#[derive(Debug, Default)]
struct Told {
    readers: Vec<Weak<Inbox>>,
    last: Option<Event>,
}

impl Hub {
    pub(crate) fn new(choice: Choice) -> Hub {
        Hub { level: AtomicU8::new(0), choice: Mutex::new(choice), told: Mutex::default() }
    }

    pub(crate) fn level(&self) -> Level {
        Level::of(self.level.load(Ordering::Relaxed))
    }

    pub(crate) fn set_level(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
    }

    pub(crate) fn choice(&self) -> Choice {
        lock(&self.choice).clone()
    }

    pub(crate) fn choose(&self, choice: Choice) {
        *lock(&self.choice) = choice;
    }

    /// A new reader. It is told of pressure that there is already.
    pub(crate) fn reader(&self) -> Result<Arc<Inbox>, Errno> {
        let inbox = Arc::new(Inbox::new()?);
        let mut told = lock(&self.told);
        if let Some(last) = told.last.as_ref().filter(|last| last.level > Level::None) {
            inbox.push(Event { merged: 1, ..last.clone() });
        }
        let readers = &mut told.readers;
        if readers.len() == readers.capacity() {
            // Without events nobody else clears out those that are gone. As much room again as is left makes that rare.
            readers.retain(|reader| reader.strong_count() > 0);
            let alive = readers.len();
            readers.reserve(alive);
        }
        readers.push(Arc::downgrade(&inbox));
        Ok(inbox)
    }

    /// Tells every reader. Only the watcher's thread does, so that events keep their order without the lock.
    pub(crate) fn tell(&self, event: Event) {
        let mut told = lock(&self.told);
        told.readers.retain(|reader| reader.strong_count() > 0);
        let readers: Vec<_> = told.readers.iter().filter_map(Weak::upgrade).collect();
        told.last = Some(event.clone());
        drop(told);
        readers.iter().for_each(|inbox| inbox.push(event.clone()));
    }
}

/// One reader's unread events.
#[derive(Debug)]
pub(crate) struct Inbox {
    unread: Mutex<Unread>,
    more: Condvar,
    ready: OwnedFd,
}

#[derive(Debug, Default)]
struct Unread {
    queue: Queue,
    /// Futures that wait for more, by their numbers, and the tasks to be woken.
    waiting: Vec<(u64, Waker)>,
    /// How many numbers were given out.
    numbers: u64,
}

impl Inbox {
    fn new() -> Result<Inbox, Errno> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Inbox { unread: Mutex::default(), more: Condvar::new(), ready })
    }

    /// Readable while there is something to read.
    pub(crate) fn ready(&self) -> &OwnedFd {
        &self.ready
    }

    fn push(&self, event: Event) {
        let mut unread = lock(&self.unread);
        let was_empty = unread.queue.is_empty();
        unread.queue.push(event);
        if was_empty {
            // Cannot fail: the counter is 0, and 1 fits.
            let _ = rustix::io::write(&self.ready, &1_u64.to_ne_bytes());
            self.more.notify_all();
        }
        let waiting = std::mem::take(&mut unread.waiting);
        // An executor may run the task within wake(), and the task read.
        drop(unread);
        waiting.into_iter().for_each(|(_, task)| task.wake());
    }

    pub(crate) fn pop(&self) -> Option<Event> {
        self.take(&mut lock(&self.unread))
    }

    /// The next event for a future, whose task is woken when there is one, and which has a number once it waits.
    pub(crate) fn poll(&self, number: &mut Option<u64>, task: &mut Context<'_>) -> Poll<Event> {
        let mut unread = lock(&self.unread);
        if let Some(event) = self.take(&mut unread) {
            return Poll::Ready(event);
        }
        let number = *number.get_or_insert_with(|| {
            unread.numbers += 1;
            unread.numbers
        });
        let known = unread.waiting.iter_mut().find(|(other, _)| *other == number);
        let old = match known {
            Some((_, known)) if known.will_wake(task.waker()) => None,
            Some((_, known)) => Some(std::mem::replace(known, task.waker().clone())),
            None => {
                unread.waiting.push((number, task.waker().clone()));
                None
            }
        };
        // A task that ends with its last waker may have such a future: see `forget`.
        drop(unread);
        drop(old);
        Poll::Pending
    }

    /// The future with this number is gone.
    pub(crate) fn forget(&self, number: u64) {
        let mut unread = lock(&self.unread);
        let at = unread.waiting.iter().position(|(other, _)| *other == number);
        let gone = at.map(|at| unread.waiting.swap_remove(at));
        drop(unread);
        drop(gone);
    }

    fn take(&self, unread: &mut Unread) -> Option<Event> {
        let event = unread.queue.pop()?;
        if unread.queue.is_empty() {
            // Cannot fail either, unless somebody else has read it, against which nothing helps and nothing is lost.
            let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        }
        Some(event)
    }

    /// The next event; `None` once `timeout` is over.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<Event> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut unread = lock(&self.unread);
        loop {
            if let Some(event) = self.take(&mut unread) {
                return Some(event);
            }
            unread = match deadline {
                None => self.more.wait(unread).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left =
                        deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
                    self.more.wait_timeout(unread, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// The data of a mutex, also after a panic: nothing here is left half-done by one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    fn hub() -> Hub {
        Hub::new(Choice { source: Source::bare(Kind::Nothing), passed_over: Vec::new() })
    }

    #[test]
    fn readers_that_come_and_go_without_an_event_leave_nothing() {
        let hub = hub();
        let stays: Vec<_> = (0..10).map(|_| hub.reader().unwrap()).collect();
        for _ in 0..10_000 {
            hub.reader().unwrap();
        }
        let told = lock(&hub.told);
        assert!(told.readers.len() < 100 && told.readers.capacity() < 100, "{}", told.readers.len());
        assert_eq!(told.readers.iter().filter_map(Weak::upgrade).count(), stays.len());
    }
}
