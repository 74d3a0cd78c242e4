//! The registry: one bell, and owners who come when it has rung.
//!
//! The pressure thread only rings. Owners shrink what is theirs on their own thread ([`Member`]); what is shared is
//! shrunk through its locks by whichever thread polls ([`Registry::share`], [`Registry::poll`]). When owners are done,
//! the allocator is asked to return pages.
//!
//! Invariants: the registry keeps no owner alive; no owner waits for another; at most one thread works on the shared
//! ones.

pub(crate) mod bell;
#[cfg(feature = "pressure")]
mod listen;
pub(crate) mod member;
mod shares;
pub(crate) mod tidy;

use crate::allocator;
use crate::{Policy, Report, ShrinkShared};
use bell::Bell;
use member::{Member, Turn};
use shares::Shares;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tidy::Tidy;

crate::std_impls::flat! { [] Registry, [] Member }

/// Where owners of memory and those who notice pressure meet. Cloning it is cheap and gives the same registry.
///
/// ```
/// use ebbtide_shrink::{Registry, Turn};
///
/// let registry = Registry::new();
/// let mut backlog: Vec<u8> = Vec::with_capacity(1 << 20);
/// let mut member = registry.member("backlog");
///
/// // Once for each turn of the owner's loop: one load, unless there is pressure.
/// assert!(matches!(member.poll(&mut backlog), Turn::Quiet));
///
/// // Any other thread, at pressure:
/// registry.flag();
///
/// let Turn::Done(report) = member.poll(&mut backlog) else { panic!("a slice was not enough") };
/// assert_eq!(report.returned.0, 1 << 20);
/// ```
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

type GiveBack = Box<dyn Fn() + Send + Sync>;

pub(crate) struct Shared {
    bell: Arc<Bell>,
    policy: Policy,
    tidy: Arc<Tidy>,
    /// In place of asking the allocators that are found.
    own: Arc<Option<GiveBack>>,
    shares: Shares,
    totals: Mutex<Report>,
    /// Threads that wait for pressure, woken to end when the registry does.
    #[cfg(feature = "pressure")]
    listeners: Mutex<Vec<std::thread::Thread>>,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::new()
    }
}

impl Registry {
    /// A registry with the default policy.
    pub fn new() -> Registry {
        Registry::with_policy(Policy::default())
    }

    /// A registry whose owners follow this policy.
    pub fn with_policy(policy: Policy) -> Registry {
        Registry::build(policy, None)
    }

    /// A registry that calls this after a cascade, in place of asking the allocators it finds in the process: for an
    /// allocator it does not know, or none at all. `ebbtide_malloc::trim`, for one.
    pub fn with_allocator(policy: Policy, give_back: impl Fn() + Send + Sync + 'static) -> Registry {
        Registry::build(policy, Some(Box::new(give_back)))
    }

    fn build(policy: Policy, own: Option<GiveBack>) -> Registry {
        let shared = Shared {
            bell: Arc::default(),
            policy,
            tidy: Arc::new(Tidy::new(tidy::APART, tidy::PATIENCE)),
            own: Arc::new(own),
            shares: Shares::default(),
            totals: Mutex::default(),
            #[cfg(feature = "pressure")]
            listeners: Mutex::default(),
        };
        Registry { shared: Arc::new(shared) }
    }

    /// A place for an owner whose value nobody else touches. The name is where paths in its reports begin; many
    /// owners may have the same ("connection"). It serves onsets from now on.
    pub fn member(&self, name: &'static str) -> Member {
        Member::new(Arc::clone(&self.shared), name)
    }

    /// Registers a value that has locks inside: it is shrunk by [`poll`](Registry::poll), and forgotten when its last
    /// `Arc` is gone.
    pub fn share<T: ShrinkShared + Send + Sync + 'static>(&self, name: &'static str, value: &Arc<T>) {
        let weak: Weak<T> = Arc::downgrade(value);
        self.shared.shares.add(name, weak, self.shared.bell.rung());
    }

    /// Says that there is pressure: nothing else is done on this thread but to wake tasks that wait in
    /// [`Member::flagged`].
    pub fn flag(&self) {
        self.shared.flag();
    }

    /// Does one slice on the shared values, if there is pressure and no other thread is at it. Without pressure this
    /// is two loads.
    #[inline]
    pub fn poll(&self) -> Turn {
        if self.shared.shares.served(self.shared.bell.rung()) {
            return Turn::Quiet;
        }
        self.slice()
    }

    #[cold]
    fn slice(&self) -> Turn {
        self.shared.shares.slice(&self.shared)
    }

    /// Starts a thread that wakes sleeping tasks, 64 each millisecond, and asks the allocator to return pages after
    /// cascades, once for all that end together, so that owners need not: glibc's `malloc_trim` takes 0.2 us for each
    /// page it returns. It ends with the registry. Calling this again does nothing. Without a keeper all sleepers are
    /// woken at once, and the owner that ends last asks, or whoever ends more than 200 ms after the first, at most ten
    /// times a second.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn keeper(&self) -> std::io::Result<()> {
        if !self.shared.tidy.employ() {
            return Ok(());
        }
        let Shared { tidy, bell, own, .. } = &*self.shared;
        let (tidy, bell, own) = (Arc::clone(tidy), Arc::clone(bell), Arc::clone(own));
        let wake = move || bell.wake(|| std::thread::sleep(Duration::from_millis(1)));
        let keeper = move || tidy.keep(wake, || give_back(&own));
        let spawned = std::thread::Builder::new().name("shrink-keeper".into()).spawn(keeper);
        spawned.map(drop).inspect_err(|_| self.shared.tidy.dismiss())
    }

    /// Watches for memory pressure, by the best source this machine has, and rings when it begins, gets worse or lasts
    /// ([`Level::Low`](ebbtide_pressure::Level::Low) only when it begins: a container whose page cache fills its limit
    /// would be told every 15 s). Starts the [`keeper`](Registry::keeper), too. That there is no source is no error: then
    /// nothing rings. It takes three threads that sleep: the source's, one that rings, and the keeper.
    ///
    /// # Errors
    /// Where no thread or file descriptor can be had.
    #[cfg(feature = "pressure")]
    pub fn watch(&self) -> std::io::Result<ebbtide_pressure::Source> {
        let pressure = ebbtide_pressure::Pressure::open(ebbtide_pressure::Options::new())?;
        let source = pressure.source();
        self.connect(pressure)?;
        Ok(source)
    }

    /// The same with a source that was opened with options of its own. The thread that waits for it ends with the
    /// registry.
    ///
    /// # Errors
    /// Where no thread can be had.
    #[cfg(feature = "pressure")]
    pub fn connect(&self, pressure: ebbtide_pressure::Pressure) -> std::io::Result<()> {
        self.keeper()?;
        let listener = listen::start(pressure, Arc::downgrade(&self.shared))?;
        self.shared.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        Ok(())
    }

    /// What all cascades so far did, together.
    pub fn totals(&self) -> Report {
        self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("rung", &self.shared.bell.rung()).finish_non_exhaustive()
    }
}

impl Shared {
    fn flag(&self) {
        self.bell.ring();
        if !self.tidy.rang() {
            self.bell.wake(|| {});
        }
    }

    fn finished(&self, name: &'static str, report: &Report) {
        #[cfg(feature = "tracing")]
        crate::trace::done(name, report);
        #[cfg(not(feature = "tracing"))]
        let _ = name;
        self.totals.lock().unwrap_or_else(PoisonError::into_inner).add(report);
        if self.own.is_none() {
            allocator::thread_idle();
        }
        self.tidy.end(|| self.give_back());
    }

    fn give_back(&self) {
        give_back(&self.own);
    }
}

fn give_back(own: &Option<GiveBack>) {
    match own {
        // A panic in it must not end the keeper, nor keep others from asking.
        Some(own) => _ = catch_unwind(AssertUnwindSafe(own)),
        None => _ = allocator::give_back(),
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tidy.close();
        #[cfg(feature = "pressure")]
        for listener in self.listeners.get_mut().unwrap_or_else(PoisonError::into_inner) {
            listener.unpark();
        }
    }
}
