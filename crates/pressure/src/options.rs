//! What can be chosen. The defaults suit a service that gives back caches; each says where its figure is from.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More than that is taken for that: it may be added to any time of the clock.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// How pressure is watched.
///
/// ```
/// use ebbtide_pressure::Options;
/// use std::time::Duration;
///
/// let options = Options::new().cooldown(Duration::from_secs(30));
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Options {
    pub(crate) root: PathBuf,
    pub(crate) variables: Option<HashMap<String, OsString>>,
    pub(crate) medium: Duration,
    pub(crate) critical: Duration,
    pub(crate) pace: Pace,
}

/// When what is heard is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) cooldown: Duration,
    pub(crate) settle: Duration,
    pub(crate) quiet: Duration,
    pub(crate) look_every: Duration,
}

impl Default for Options {
    fn default() -> Options {
        let pace = Pace {
            cooldown: Duration::from_secs(15),
            settle: Duration::from_secs(3),
            quiet: Duration::from_secs(10),
            look_every: Duration::from_secs(1),
        };
        let tenth = Duration::from_millis(100);
        Options { root: "/".into(), variables: None, medium: tenth, critical: tenth, pace }
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Options {
        Options::default()
    }

    /// How much of a second *some* task may wait for memory before it is [`Level::Medium`](crate::Level::Medium).
    /// Default: 100 ms, the share that systemd's services get (`DefaultMemoryPressureThresholdSec=200ms` in 2 s).
    /// Kept between 1 ms and 1 s. Where the service manager gives the trigger, its own holds.
    pub fn medium(mut self, stall: Duration) -> Options {
        self.medium = sane(stall);
        self
    }

    /// How much of a second *all* tasks may wait for memory at once before it is
    /// [`Level::Critical`](crate::Level::Critical). Default: 100 ms. Kept between 1 ms and 1 s.
    pub fn critical(mut self, stall: Duration) -> Options {
        self.critical = sane(stall);
        self
    }

    /// The least time between two events of the same level: a [`Still`](crate::Change::Still) after the last event, or
    /// another onset after one to the same level or a worse one. A rise to a worse level, a fall and a release never
    /// wait. Default: 15 s, as GLib's low-memory signals. An onset that comes too early is told when the time is over, if
    /// the pressure still lasts then.
    pub fn cooldown(mut self, cooldown: Duration) -> Options {
        self.pace.cooldown = cooldown.min(LONGEST);
        self
    }

    /// How long after the source was last heard relief may be found at the soonest. Default: 3 s, because the kernel
    /// brings `avg10` up to date only every 2 s.
    pub fn settle(mut self, settle: Duration) -> Options {
        self.pace.settle = settle.min(LONGEST);
        self
    }

    /// Where nothing can be read that tells of relief: how long the source must say nothing. Default: 10 s, the time
    /// that `avg10` looks back.
    pub fn quiet(mut self, quiet: Duration) -> Options {
        self.pace.quiet = quiet.min(LONGEST);
        self
    }

    /// How often relief is looked for while there is pressure. Without pressure nothing is read, unless the source is a
    /// polled one. Default: 1 s. At least 1 ms.
    pub fn look_every(mut self, every: Duration) -> Options {
        self.pace.look_every = every.clamp(Duration::from_millis(1), LONGEST);
        self
    }

    /// Another root directory than `/`, with proc/ and sys/ in it; also for the path in `MEMORY_PRESSURE_WATCH`. For tests.
    pub fn root(mut self, root: impl AsRef<Path>) -> Options {
        self.root = root.as_ref().to_owned();
        self
    }

    /// An environment variable, in place of the process's environment, of which nothing is read any more. For tests,
    /// and for whoever takes the variables out of the environment so that child processes do not get them.
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Options {
        self.variables.get_or_insert_default().insert(name.into(), value.into());
        self
    }

    /// No environment variables at all: what the service manager says is not heeded.
    pub fn no_variables(mut self) -> Options {
        self.variables = Some(HashMap::new());
        self
    }

    pub(crate) fn reads_environment(&self) -> bool {
        self.variables.is_none()
    }

    pub(crate) fn read_variable(&self, name: &str) -> Option<OsString> {
        match &self.variables {
            Some(variables) => variables.get(name).cloned(),
            None => std::env::var_os(name),
        }
    }
}

fn sane(stall: Duration) -> Duration {
    stall.clamp(Duration::from_millis(1), Duration::from_secs(1))
}
