//! All CPUs' records as one stream of events in the order they happened.
//!
//! Every CPU has a buffer of its own, and a system call can begin on one and end on another. Records are read
//! in rounds; a round hands on what was written before it began and keeps later ones for the next, so that no
//! exit ever comes before its entry. Invariant: a round reads and holds at most [`MAX_ROUND`] bytes of records
//! and their events, however fast they come; what is not read in time the kernel drops and counts.

use super::event::{Catalogue, Event, PathAt};
use super::page::Records;
use crate::ReadError;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

/// Bytes of records that one round reads at most: what is in 32 MiB of buffers takes four rounds.
const MAX_ROUND: usize = 8 << 20;

/// More than a sub-buffer, which is one page unless somebody changed it for all instances.
const READ: usize = 64 << 10;

/// An event and when it happened, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timed {
    pub(super) time: u64,
    pub(super) event: Event,
}

/// One round's events.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In the order they happened.
    pub(super) events: Vec<Timed>,
    /// The texts that [`PathAt::Text`] refers to.
    pub(super) texts: Vec<u8>,
    /// Events that the next round hands on, and their texts.
    later: Vec<Timed>,
    later_texts: Vec<u8>,
}

/// The CPUs' buffers.
#[derive(Debug)]
pub(super) struct Stream {
    pipes: Vec<OwnedFd>,
    page: Vec<u8>,
    /// Records decoded so far, those of no interest included.
    pub(super) records: u64,
}

impl Stream {
    pub(super) fn new(pipes: Vec<OwnedFd>) -> Stream {
        Stream { pipes, page: vec![0; READ], records: 0 }
    }

    /// For polling: readable when a CPU has records.
    pub(super) fn pipes(&self) -> &[OwnedFd] {
        &self.pipes
    }

    /// Reads a round into `batch`. Returns whether more could be read at once.
    pub(super) fn round(&mut self, catalogue: &Catalogue, batch: &mut Batch) -> Result<bool, ReadError> {
        batch.begin();
        let mut until = now();
        let share = MAX_ROUND / self.pipes.len().max(1);
        let mut more = false;
        for at in 0..self.pipes.len() {
            let mut taken = 0;
            while let Some((len, last)) = self.read_page(at, catalogue, batch)? {
                taken += len;
                if taken >= share {
                    // The rest of this CPU's records is later than the last one read.
                    until = until.min(last);
                    more = true;
                    break;
                }
            }
        }
        batch.end(until);
        Ok(more)
    }

    /// Reads one sub-buffer of a CPU: its length and its last record's time, or `None` if it has none.
    fn read_page(
        &mut self,
        at: usize,
        catalogue: &Catalogue,
        batch: &mut Batch,
    ) -> Result<Option<(usize, u64)>, ReadError> {
        let len = match rustix::io::read(&self.pipes[at], &mut self.page[..]) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(None),
            Ok(len) => len,
            Err(Errno::INTR) => return Ok(Some((0, u64::MAX))),
            Err(e) => return Err(ReadError::new(format!("trace_pipe_raw of CPU {at}"), e)),
        };
        let mut last = 0;
        for record in Records::new(catalogue.header(), &self.page[..len]) {
            last = record.time;
            self.records += 1;
            if let Some(event) = catalogue.decode(&record, &mut batch.texts) {
                batch.events.push(Timed { time: record.time, event });
            }
        }
        Ok(Some((len, last)))
    }
}

impl Batch {
    /// Starts with what the round before kept.
    fn begin(&mut self) {
        self.events.clear();
        self.texts.clear();
        std::mem::swap(&mut self.events, &mut self.later);
        std::mem::swap(&mut self.texts, &mut self.later_texts);
    }

    /// Puts the events in order and keeps those from `until` on for the next round.
    fn end(&mut self, until: u64) {
        // Each CPU's are in order already, which a stable sort merges in one pass.
        self.events.sort_by_key(|e| e.time);
        let kept = self.events.partition_point(|e| e.time < until);
        for mut timed in self.events.drain(kept..) {
            if let Event::Enter { path, .. } | Event::Path { path, .. } | Event::Exec { path, .. } =
                &mut timed.event
                && let PathAt::Text { start, len } = *path
            {
                let text = &self.texts[start as usize..][..len as usize];
                *path = super::event::keep(text, &mut self.later_texts);
            }
            self.later.push(timed);
        }
    }
}

/// The trace clock's time: "mono" is CLOCK_MONOTONIC.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::event::keep;

    fn exec(time: u64, path: &[u8], batch: &mut Batch) {
        let path = keep(path, &mut batch.texts);
        batch.events.push(Timed { time, event: Event::Exec { tid: 1, path } });
    }

    fn texts(batch: &Batch) -> Vec<String> {
        let text = |e: &Timed| match e.event {
            Event::Exec { path: PathAt::Text { start, len }, .. } => {
                String::from_utf8_lossy(&batch.texts[start as usize..][..len as usize]).into_owned()
            }
            _ => String::new(),
        };
        batch.events.iter().map(text).collect()
    }

    #[test]
    fn later_events_wait_for_their_round_with_their_texts() {
        let mut batch = Batch::default();
        batch.begin();
        exec(30, b"third", &mut batch);
        exec(10, b"first", &mut batch);
        exec(40, b"fourth", &mut batch);
        batch.end(30);
        assert_eq!(texts(&batch), ["first"]);
        batch.begin();
        exec(20, b"second", &mut batch);
        batch.end(u64::MAX);
        assert_eq!(texts(&batch), ["second", "third", "fourth"]);
        batch.begin();
        batch.end(u64::MAX);
        assert!(batch.events.is_empty() && batch.texts.is_empty());
    }
}
