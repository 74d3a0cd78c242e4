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
use crate::feed::events::{Events, Judge};
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

/// What is used, and what not.
pub(crate) struct Chosen {
    pub(crate) source: Source,
    pub(crate) passed_over: Vec<PassedOver>,
    pub(crate) feed: Option<Box<dyn Feed>>,
}

impl Chosen {
    pub(crate) fn choice(&self) -> Choice {
        Choice { source: self.source.clone(), passed_over: self.passed_over.clone() }
    }
}

/// One source to be tried: what it is, and itself or why not.
struct Offer {
    source: Source,
    feed: Result<Box<dyn Feed>, String>,
}

impl Offer {
    fn new<F: Feed + 'static>(kind: Kind, path: &Path, feed: Result<F, String>) -> Offer {
        Offer { source: Source::new(kind, path), feed: feed.map(|feed| Box::new(feed) as Box<dyn Feed>) }
    }

    fn refused(source: Source, why: impl Into<String>) -> Offer {
        Offer { source, feed: Err(why.into()) }
    }
}

/// Chooses among all but those that were lost.
pub(crate) fn choose(options: &Options, lost: &[PassedOver]) -> Chosen {
    let asked = Asked::read(options);
    if asked == Asked::Off {
        return Chosen { source: Source::bare(Kind::Off), passed_over: Vec::new(), feed: None };
    }
    let field = Field::survey(options);
    let mut passed_over = Vec::new();
    let offers: [&dyn Fn() -> Offer; 8] = [
        &|| field.systemd(&asked),
        &|| field.cgroup_trigger(),
        &|| field.cgroup_events(),
        &|| field.cgroup_level(),
        &|| field.host_trigger(),
        &|| field.cgroup_averages(),
        &|| field.host_averages(),
        &|| field.cgroup_usage(),
    ];
    for offer in offers.into_iter().chain([&(|| field.host_available()) as &dyn Fn() -> Offer]) {
        let Offer { source, feed } = offer();
        match (lost.iter().find(|passed| *passed.source() == source), feed) {
            (Some(lost), _) => passed_over.push(lost.clone()),
            (None, Err(why)) => passed_over.push(PassedOver::new(source, why)),
            (None, Ok(feed)) => return Chosen { source, passed_over, feed: Some(feed) },
        }
    }
    Chosen { source: Source::bare(Kind::Nothing), passed_over, feed: None }
}

/// What there is to choose from.
struct Field {
    machine: Machine,
    medium: Duration,
    critical: Duration,
    unified: Result<Group, String>,
    legacy: Result<Group, String>,
}

impl Field {
    fn survey(options: &Options) -> Field {
        let machine = Machine::new(&options.root);
        let unified = Group::own(&machine, Version::V2);
        let legacy = Group::own(&machine, Version::V1);
        Field { machine, medium: options.medium, critical: options.critical, unified, legacy }
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

    fn systemd(&self, asked: &Asked) -> Offer {
        let (path, write) = match asked {
            Asked::Nothing | Asked::Off => {
                let source = Source::bare(Kind::SystemdFile);
                return Offer::refused(source, format!("{WATCH} is not set"));
            }
            Asked::Nonsense { path, why } => {
                return Offer::refused(Source::new(Kind::SystemdFile, path), why.clone());
            }
            Asked::Watch { path, write } => (path, write.clone()),
        };
        let kind =
            rustix::fs::stat(self.machine.real(path)).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let notes = |kind, way| {
            Offer::new(kind, path, Notes::open(way, &self.machine, path, write.clone(), self.relief()))
        };
        match kind {
            Ok(FileType::RegularFile) => {
                Offer::new(Kind::SystemdFile, path, Triggers::given(&self.machine, path, write.as_deref()))
            }
            Ok(FileType::Fifo) => notes(Kind::SystemdFifo, Way::Fifo),
            Ok(FileType::Socket) => notes(Kind::SystemdSocket, Way::Socket),
            Ok(_) => Offer::refused(
                Source::new(Kind::SystemdFile, path),
                "it is neither a regular file nor a FIFO nor a socket",
            ),
            Err(errno) => Offer::refused(Source::new(Kind::SystemdFile, path), refusal(errno)),
        }
    }

    /// What tells when it is over, where the source does not: the own group's PSI, or the host's.
    fn relief(&self) -> Option<Gauge> {
        let own = self.own_psi().and_then(|path| Gauge::of_relief(&self.machine, &path));
        own.or_else(|_| Gauge::of_relief(&self.machine, Path::new(HOST))).ok()
    }

    fn cgroup_trigger(&self) -> Offer {
        match self.own_psi() {
            Ok(path) => self.trigger(Kind::CgroupTrigger, &path),
            Err(why) => Offer::refused(Source::bare(Kind::CgroupTrigger), why),
        }
    }

    fn host_trigger(&self) -> Offer {
        self.trigger(Kind::HostTrigger, Path::new(HOST))
    }

    fn trigger(&self, kind: Kind, path: &Path) -> Offer {
        let triggers = |gauge| Triggers::own(&self.machine, path, self.medium, self.critical, gauge);
        Offer::new(kind, path, Gauge::new(&self.machine, path, self.loud()).and_then(triggers))
    }

    /// The nearest group with a limit, as a limit tells nobody below.
    fn limited(&self, own: &Result<Group, String>) -> Result<(Group, u64), String> {
        let own = own.as_ref().map_err(Clone::clone)?;
        own.limited(&self.machine).ok_or_else(|| "no limit is set that it could tell of".into())
    }

    fn cgroup_events(&self) -> Offer {
        let (group, limit) = match self.limited(&self.unified) {
            Ok(limited) => limited,
            Err(why) => return Offer::refused(Source::bare(Kind::CgroupEvents), why),
        };
        // In a group above the own one only its own limit counts, not those of other groups below it.
        let is_own = self.unified.as_ref().is_ok_and(|own| own.dir == group.dir);
        let local = group.file("memory.events.local");
        let path = if is_own || !self.machine.exists(&local) { group.file("memory.events") } else { local };
        let psi = Gauge::new(&self.machine, &group.file("memory.pressure"), self.loud()).map(Judge::Psi);
        let judge = psi.or_else(|_| Usage::group(&self.machine, &group, limit).map(Judge::Usage));
        let events = judge.and_then(|judge| Events::open(&self.machine, &path, judge));
        Offer::new(Kind::CgroupEvents, &path, events)
    }

    fn cgroup_level(&self) -> Offer {
        match self.limited(&self.legacy) {
            Ok((group, _)) => {
                let path = group.file("memory.pressure_level");
                Offer::new(Kind::CgroupLevel, &path, Levels::open(&self.machine, &group))
            }
            Err(why) => Offer::refused(Source::bare(Kind::CgroupLevel), why),
        }
    }

    fn cgroup_averages(&self) -> Offer {
        match self.own_psi() {
            Ok(path) => self.averages(Kind::CgroupAverages, &path),
            Err(why) => Offer::refused(Source::bare(Kind::CgroupAverages), why),
        }
    }

    fn host_averages(&self) -> Offer {
        self.averages(Kind::HostAverages, Path::new(HOST))
    }

    fn averages(&self, kind: Kind, path: &Path) -> Offer {
        Offer::new(kind, path, Gauge::new(&self.machine, path, self.loud()).map(Averages))
    }

    fn cgroup_usage(&self) -> Offer {
        let limited = self.limited(&self.unified).or_else(|_| self.limited(&self.legacy));
        match limited {
            Ok((group, limit)) => {
                Offer::new(Kind::CgroupUsage, &group.dir, Usage::group(&self.machine, &group, limit))
            }
            Err(why) => Offer::refused(Source::bare(Kind::CgroupUsage), why),
        }
    }

    fn host_available(&self) -> Offer {
        Offer::new(Kind::HostAvailable, Path::new("/proc/meminfo"), Usage::host(&self.machine))
    }
}
