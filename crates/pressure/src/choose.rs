//! Which source is used: the first in the order of [`Kind`] that can be, and why not those before it.
//!
//! Why this order. The service manager's word is the operator's. The own group's PSI tells how long this service waits,
//! whoever is to blame. A limit's events tell only that a limit was met, on v1 also how hard it was; they know nothing of
//! a host that runs short, but are not disturbed by neighbours that do. The host's triggers come after them for the
//! neighbours' sake, and before all polling: stalls at a group's limit are stalls of the host too, so they hear what the
//! polled figures would show, and sooner. How much is used says nothing of whether anybody waits: it comes last.

use crate::cgroup::{Group, Version};
use crate::feed::Feed;
use crate::feed::averages::Averages;
use crate::feed::events::{Events, Scale};
use crate::feed::gauge::{Gauge, Loud};
use crate::feed::notes::{Notes, Way};
use crate::feed::trigger::Triggers;
use crate::feed::usage::Usage;
use crate::feed::vmpressure::Levels;
use crate::hub::Choice;
use crate::machine::{Machine, refusal};
use crate::systemd::{Asked, WATCH};
use crate::{Kind, Options, PassedOver, Source};
use rustix::fs::FileType;
use std::path::{Path, PathBuf};
use std::time::Duration;

const HOST: &str = "/proc/pressure/memory";

/// One source to be tried: what it is, and how it is opened.
struct Offer<'a> {
    source: Source,
    open: Open<'a>,
}

type Opened = Result<Box<dyn Feed>, String>;
type Open<'a> = Box<dyn FnOnce() -> Opened + 'a>;

impl<'a> Offer<'a> {
    fn new<F: Feed + 'static>(
        kind: Kind,
        path: &Path,
        open: impl FnOnce() -> Result<F, String> + 'a,
    ) -> Offer<'a> {
        let open = || open().map(|feed| Box::new(feed) as Box<dyn Feed>);
        Offer { source: Source::new(kind, path), open: Box::new(open) }
    }

    fn refused(source: Source, why: impl Into<String>) -> Offer<'a> {
        let why = why.into();
        Offer { source, open: Box::new(|| Err(why)) }
    }

    /// An offer on a file or group, or why there is none to offer.
    fn on<T>(kind: Kind, found: Result<T, String>, offer: impl FnOnce(T) -> Offer<'a>) -> Offer<'a> {
        found.map_or_else(|why| Offer::refused(Source::bare(kind), why), offer)
    }
}

/// Chooses among all but those that were lost, which are not touched again.
pub(crate) fn choose(options: &Options, lost: &[PassedOver]) -> (Choice, Option<Box<dyn Feed>>) {
    let asked = Asked::read(options);
    if asked == Asked::Off {
        return (Choice { source: Source::bare(Kind::Off), passed_over: Vec::new() }, None);
    }
    let field = Field::survey(options, asked);
    let offers: [fn(&Field) -> Offer<'_>; 9] = [
        Field::systemd,
        Field::cgroup_trigger,
        Field::cgroup_events,
        Field::cgroup_level,
        Field::host_trigger,
        Field::cgroup_averages,
        Field::host_averages,
        Field::cgroup_usage,
        Field::host_available,
    ];
    let mut passed_over = Vec::new();
    for offer in offers {
        let Offer { source, open } = offer(&field);
        match lost.iter().find(|passed| *passed.source() == source) {
            Some(lost) => passed_over.push(lost.clone()),
            None => match open() {
                Ok(feed) => return (Choice { source, passed_over }, Some(feed)),
                Err(why) => passed_over.push(PassedOver::new(source, why)),
            },
        }
    }
    (Choice { source: Source::bare(Kind::Nothing), passed_over }, None)
}

/// What there is to choose from.
struct Field {
    asked: Asked,
    machine: Machine,
    medium: Duration,
    critical: Duration,
    unified: Result<Group, String>,
    legacy: Result<Group, String>,
}

impl Field {
    fn survey(options: &Options, asked: Asked) -> Field {
        let machine = Machine::new(&options.root);
        let unified = Group::own(&machine, Version::V2);
        let legacy = Group::own(&machine, Version::V1);
        Field { asked, machine, medium: options.medium, critical: options.critical, unified, legacy }
    }

    fn loud(&self) -> Loud {
        // A second's milliseconds, as hundredths of a percent.
        let share = |stall: Duration| u32::try_from(stall.as_millis()).unwrap_or(1000) * 10;
        Loud { medium: share(self.medium), critical: share(self.critical) }
    }

    /// The own group's PSI file. The root's is the host's, and not the own group's.
    fn own_psi(&self) -> Result<PathBuf, String> {
        let group = self.unified.as_ref().map_err(Clone::clone)?;
        if group.is_root(&self.machine) {
            return Err("this process is in the root group, whose pressure is the host's".into());
        }
        Ok(group.file("memory.pressure"))
    }

    fn systemd(&self) -> Offer<'_> {
        let (path, write) = match &self.asked {
            Asked::Nothing | Asked::Off => {
                let source = Source::bare(Kind::SystemdFile);
                return Offer::refused(source, format!("{WATCH} is not set"));
            }
            Asked::Nonsense { path, why } => {
                return Offer::refused(Source::new(Kind::SystemdFile, path), why.clone());
            }
            Asked::Watch { path, write } => (path, write.as_deref()),
        };
        let notes = |kind, way| {
            Offer::new(kind, path, move || Notes::open(way, &self.machine, path, write, self.relief()))
        };
        let refused = |why: String| Offer::refused(Source::new(Kind::SystemdFile, path), why);
        let stat = rustix::fs::stat(self.machine.real(path));
        match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::RegularFile) => {
                Offer::new(Kind::SystemdFile, path, move || Triggers::given(&self.machine, path, write))
            }
            Ok(FileType::Fifo) => notes(Kind::SystemdFifo, Way::Fifo),
            Ok(FileType::Socket) => notes(Kind::SystemdSocket, Way::Socket),
            Ok(_) => refused("it is neither a regular file nor a FIFO nor a socket".into()),
            Err(errno) => refused(refusal(errno)),
        }
    }

    /// What tells when it is over, where the source does not: the own group's PSI, or the host's.
    fn relief(&self) -> Option<Gauge> {
        let own = self.own_psi().and_then(|path| Gauge::of_relief(&self.machine, &path));
        own.or_else(|_| Gauge::of_relief(&self.machine, Path::new(HOST))).ok()
    }

    fn cgroup_trigger(&self) -> Offer<'_> {
        Offer::on(Kind::CgroupTrigger, self.own_psi(), |path| self.trigger(Kind::CgroupTrigger, &path))
    }

    fn host_trigger(&self) -> Offer<'_> {
        self.trigger(Kind::HostTrigger, Path::new(HOST))
    }

    fn cgroup_averages(&self) -> Offer<'_> {
        Offer::on(Kind::CgroupAverages, self.own_psi(), |path| self.averages(Kind::CgroupAverages, &path))
    }

    fn host_averages(&self) -> Offer<'_> {
        self.averages(Kind::HostAverages, Path::new(HOST))
    }

    fn trigger(&self, kind: Kind, path: &Path) -> Offer<'_> {
        let file = path.to_owned();
        Offer::new(kind, path, move || {
            let gauge = Gauge::new(&self.machine, &file, self.loud())?;
            Triggers::own(&self.machine, &file, self.medium, self.critical, gauge)
        })
    }

    fn averages(&self, kind: Kind, path: &Path) -> Offer<'_> {
        let file = path.to_owned();
        Offer::new(kind, path, move || Gauge::new(&self.machine, &file, self.loud()).map(Averages))
    }

    /// The nearest group with a limit, as a limit tells nobody below.
    fn limited(&self, own: &Result<Group, String>) -> Result<Group, String> {
        let own = own.as_ref().map_err(Clone::clone)?;
        own.limited(&self.machine).ok_or_else(|| "no limit is set that it could tell of".into())
    }

    fn cgroup_events(&self) -> Offer<'_> {
        Offer::on(Kind::CgroupEvents, self.limited(&self.unified), |group| {
            // In a group above the own one only its own limit counts, not those of other groups below it.
            let is_own = self.unified.as_ref().is_ok_and(|own| own.dir == group.dir);
            let local = group.file("memory.events.local");
            let path =
                if is_own || !self.machine.exists(&local) { group.file("memory.events") } else { local };
            let file = path.clone();
            Offer::new(Kind::CgroupEvents, &path, move || {
                let psi = Gauge::new(&self.machine, &group.file("memory.pressure"), self.loud());
                let usage = |_| Usage::group(&self.machine, group).map(Scale::Usage);
                Events::open(&self.machine, &file, psi.map(Scale::Psi).or_else(usage)?)
            })
        })
    }

    fn cgroup_level(&self) -> Offer<'_> {
        Offer::on(Kind::CgroupLevel, self.limited(&self.legacy), |group| {
            let path = group.file("memory.pressure_level");
            Offer::new(Kind::CgroupLevel, &path, move || Levels::open(&self.machine, &group))
        })
    }

    fn cgroup_usage(&self) -> Offer<'_> {
        let limited = self.limited(&self.unified).or_else(|_| self.limited(&self.legacy));
        Offer::on(Kind::CgroupUsage, limited, |group| {
            let dir = group.dir.clone();
            Offer::new(Kind::CgroupUsage, &dir, move || Usage::group(&self.machine, group))
        })
    }

    fn host_available(&self) -> Offer<'_> {
        let path = Path::new("/proc/meminfo");
        Offer::new(Kind::HostAvailable, path, move || Usage::host(&self.machine, path))
    }
}
