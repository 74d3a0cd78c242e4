//! What all connections share: the tree that the cascade goes through.

use crate::budget::Budget;
use crate::options::{Mode, Options};
use crate::queue::Store;
use crate::resp::{Limits, Parser};
use crate::vhost::Vhost;
use ebbtide_shrink::{Bytes, Policy, Pool, Registry, Shrink, ShrinkShared};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a buffer may have when it goes back to the pool: two reads.
pub(crate) const KEEP: usize = 128 << 10;

#[derive(ShrinkShared)]
pub(crate) struct Server {
    pub(crate) vhosts: Vec<Mutex<Vhost>>,
    pub(crate) buffers: Pool<Buffers>,
    #[shrink(skip)]
    pub(crate) store: Arc<Store>,
    #[shrink(skip)]
    pub(crate) registry: Registry,
    #[shrink(skip)]
    pub(crate) options: Options,
    /// Whether connections that come are members: `CONFIG SET shrink`.
    pub(crate) members: AtomicBool,
    pub(crate) counts: Counts,
}

#[derive(ShrinkShared, Default)]
pub(crate) struct Counts {
    pub(crate) connections: AtomicU64,
    pub(crate) clients: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) refused: AtomicU64,
    /// Also the last tag of a delivery.
    pub(crate) delivered: AtomicU64,
}

/// What a connection needs only while there is something to read or to write.
#[derive(Shrink, Default)]
pub(crate) struct Buffers {
    pub(crate) input: Vec<u8>,
    pub(crate) output: Vec<u8>,
    #[shrink(skip)]
    pub(crate) parser: Parser,
}

impl Buffers {
    fn reset(&mut self) {
        for buffer in [&mut self.input, &mut self.output] {
            if buffer.capacity() > KEEP {
                *buffer = Vec::new();
            }
            buffer.clear();
        }
        self.parser.reset();
    }

    fn size(&self) -> Bytes {
        Bytes(self.input.capacity() + self.output.capacity())
    }
}

impl Server {
    pub(crate) fn new(options: Options) -> Server {
        let budget = Budget::new(options.memory_limit);
        let most = usize::try_from(options.clients).unwrap_or(usize::MAX);
        let buffers = Pool::builder(Buffers::default).most(most).reset(Buffers::reset).size(Buffers::size);
        Server {
            vhosts: (0..options.vhosts).map(|_| Mutex::default()).collect(),
            buffers: buffers.build(),
            store: Arc::new(Store { budget, overflow: options.overflow.clone() }),
            registry: Registry::with_allocator(Policy::default(), || {
                ebbtide_malloc::trim();
            }),
            members: AtomicBool::new(options.shrink == Mode::On),
            options,
            counts: Counts::default(),
        }
    }

    /// The lock is held for one command; nothing that waits is done under it.
    pub(crate) fn vhost(&self, number: usize) -> MutexGuard<'_, Vhost> {
        // SELECT has checked the number.
        self.vhosts[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request may be: little, before the password is given.
    pub(crate) fn limits(&self, trusted: bool) -> Limits {
        let largest = self.options.largest;
        if trusted {
            Limits { bulk: largest, args: 1 << 16, request: largest + (4 << 20) }
        } else {
            Limits { bulk: 4 << 10, args: 8, request: 16 << 10 }
        }
    }
}
