//! What a HotSpot JVM says of its heap, from outside: the counters it maps as /tmp/hsperfdata_USER/PID.
//!
//! Format: hotspot/share/runtime/perfMemory.hpp (JDK 8 to 21); checked against JDK 17 with the Serial,
//! Parallel, G1, Z and Shenandoah collectors. A JVM run with -XX:-UsePerfData, and other JVMs, write none.
//! The counters are updated at collections, so `used` says what was in the heap after the last one or a
//! little later; garbage made since then is not in it.
//!
//! The file lies in a directory that anybody may write to, in the target's own root: links are resolved there
//! (openat2, 5.6), the last one is not followed, the directory must be the process's user's, and nothing in
//! the file is trusted.

use crate::process::Name;
use crate::{Bytes, Process, ReadError, Root, scan};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use serde::Serialize;
use std::time::Duration;

/// The most that is read of a counters file; HotSpot's default is 32 KiB.
const MAX_FILE: usize = 1 << 20;

/// The most generations, spaces of a generation, or collectors.
const MAX_ITEMS: usize = 16;

/// Memory of which a part is committed and a part of that used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Holds objects, as of the last collection or a little later.
    pub used: Bytes,
    /// Taken from the system.
    pub committed: Bytes,
    /// The most it may become.
    pub max: Bytes,
}

/// A part of a generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Space {
    /// "eden", "s0", "old" ...
    pub name: Name,
    /// Its memory.
    pub pool: Pool,
}

/// A generation of the heap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// "young", "new", "old", "Heap" ...
    pub name: Name,
    /// Its memory; `used` is the sum of its spaces'.
    pub pool: Pool,
    /// What it consists of.
    pub spaces: Vec<Space>,
}

/// A garbage collector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Collector {
    /// "G1 young collection pauses" ...
    pub name: Name,
    /// How often it ran.
    pub invocations: u64,
    /// For how long in all.
    pub time: Duration,
    /// When it last ended, since the JVM's start; zero for never.
    pub last_exit: Duration,
}

/// A JVM's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Jvm {
    /// java.vm.name and version, cut; foreign text.
    pub vm: [Name; 2],
    /// The whole heap.
    pub heap: Pool,
    /// Its generations.
    pub generations: Vec<Generation>,
    /// Class metadata, with the compressed class space.
    pub metaspace: Pool,
    /// The compressed class space.
    pub class_space: Pool,
    /// Its collectors.
    pub collectors: Vec<Collector>,
    /// How long it has run, sampled every 50 ms.
    pub uptime: Duration,
}

impl Jvm {
    /// The counters in `file`; `None` where it is none of HotSpot's.
    pub fn parse(file: &[u8]) -> Option<Jvm> {
        let entries = Entries::new(file)?;
        let mut jvm = Jvm::default();
        let mut ticks = Ticks::default();
        for (name, value) in entries {
            jvm.set(name, value, &mut ticks);
        }
        jvm.finish(ticks);
        Some(jvm)
    }

    /// The time since the last collection of any kind; `None` where there was none.
    pub fn since_last_collection(&self) -> Option<Duration> {
        let last = self.collectors.iter().map(|collector| collector.last_exit).max()?;
        (last > Duration::ZERO).then(|| self.uptime.saturating_sub(last))
    }

    fn set(&mut self, name: &[u8], value: Value, ticks: &mut Ticks) {
        match name {
            b"java.property.java.vm.name" => self.vm[0] = value.name(),
            b"java.property.java.vm.version" => self.vm[1] = value.name(),
            b"sun.os.hrt.frequency" => ticks.per_second = value.number(),
            b"sun.os.hrt.ticks" => ticks.now = value.number(),
            _ => {
                let Some(rest) = name.strip_prefix(b"sun.gc.") else { return };
                let mut parts = rest.split(|&b| b == b'.');
                match parts.next() {
                    Some(b"metaspace") => self.metaspace.set(parts.next(), value),
                    Some(b"compressedclassspace") => self.class_space.set(parts.next(), value),
                    Some(b"generation") => {
                        let generation = item(&mut self.generations, parts.next());
                        generation.into_iter().for_each(|generation| generation.set(&mut parts, value));
                    }
                    Some(b"collector") => {
                        let collector = item(&mut self.collectors, parts.next());
                        collector.into_iter().for_each(|collector| collector.set(parts.next(), value));
                    }
                    _ => {}
                }
            }
        }
    }

    fn finish(&mut self, ticks: Ticks) {
        for collector in &mut self.collectors {
            collector.time = ticks.duration(collector.time);
            collector.last_exit = ticks.duration(collector.last_exit);
        }
        self.uptime = ticks.duration(Duration::from_nanos(ticks.now));
        // G1 and the concurrent collectors let every generation grow to the whole heap; the others have a
        // part of the heap for each.
        let shared = self.collectors.iter().any(|collector| {
            let name = collector.name.as_bytes();
            [&b"G1"[..], b"Z", b"Shenandoah"].iter().any(|prefix| name.starts_with(prefix))
        });
        for generation in &mut self.generations {
            generation.pool.used = generation.spaces.iter().map(|space| space.pool.used).sum();
            self.heap.used += generation.pool.used;
            self.heap.committed += generation.pool.committed;
            self.heap.max = match shared {
                true => self.heap.max.max(generation.pool.max),
                false => self.heap.max + generation.pool.max,
            };
        }
    }
}

/// The JVM's clock. Until it is known, ticks are kept as nanoseconds.
#[derive(Default)]
struct Ticks {
    per_second: u64,
    now: u64,
}

impl Ticks {
    fn duration(&self, ticks: Duration) -> Duration {
        let per_second = u128::from(if self.per_second == 0 { 1_000_000_000 } else { self.per_second });
        let nanos = ticks.as_nanos().saturating_mul(1_000_000_000) / per_second;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Item `index` of `items`, made if need be.
fn item<'i, T: Default>(items: &'i mut Vec<T>, index: Option<&[u8]>) -> Option<&'i mut T> {
    let index = usize::try_from(scan::number(index?)?).ok().filter(|&index| index < MAX_ITEMS)?;
    if items.len() <= index {
        items.resize_with(index + 1, T::default);
    }
    items.get_mut(index)
}

impl Pool {
    fn set(&mut self, what: Option<&[u8]>, value: Value) {
        match what {
            Some(b"used") => self.used = Bytes(value.number()),
            Some(b"capacity") => self.committed = Bytes(value.number()),
            Some(b"maxCapacity") => self.max = Bytes(value.number()),
            _ => {}
        }
    }
}

impl Generation {
    fn set<'n>(&mut self, parts: &mut impl Iterator<Item = &'n [u8]>, value: Value) {
        match parts.next() {
            Some(b"name") => self.name = value.name(),
            Some(b"space") => {
                let Some(space) = item(&mut self.spaces, parts.next()) else { return };
                match parts.next() {
                    Some(b"name") => space.name = value.name(),
                    what => space.pool.set(what, value),
                }
            }
            what => self.pool.set(what, value),
        }
    }
}

impl Collector {
    fn set(&mut self, what: Option<&[u8]>, value: Value) {
        match what {
            Some(b"name") => self.name = value.name(),
            Some(b"invocations") => self.invocations = value.number(),
            Some(b"time") => self.time = Duration::from_nanos(value.number()),
            Some(b"lastExitTime") => self.last_exit = Duration::from_nanos(value.number()),
            _ => {}
        }
    }
}

/// A counter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Text(&'a [u8]),
}

impl Value<'_> {
    /// A number; a negative one, which no counter here can be, is none.
    fn number(self) -> u64 {
        match self {
            Value::Number(number) => number,
            Value::Text(_) => 0,
        }
    }

    fn name(self) -> Name {
        match self {
            Value::Number(_) => Name::default(),
            Value::Text(text) => Name::new(text),
        }
    }
}

/// The entries of a counters file.
struct Entries<'a> {
    file: &'a [u8],
    little: bool,
    at: usize,
    left: u32,
}

/// Offsets in the file's head and in an entry (PerfDataPrologue, PerfDataEntry).
mod offset {
    pub(super) const BYTE_ORDER: usize = 4;
    pub(super) const ENTRIES: usize = 24;
    pub(super) const COUNT: usize = 28;
    pub(super) const LENGTH: usize = 0;
    pub(super) const NAME: usize = 4;
    pub(super) const VECTOR: usize = 8;
    pub(super) const TYPE: usize = 12;
    pub(super) const DATA: usize = 16;
}

/// The magic number, big-endian whatever the machine.
const MAGIC: &[u8] = &[0xca, 0xfe, 0xc0, 0xc0];

impl<'a> Entries<'a> {
    fn new(file: &'a [u8]) -> Option<Entries<'a>> {
        let little = file.starts_with(MAGIC).then(|| file.get(offset::BYTE_ORDER))?? == &1;
        let mut entries = Entries { file, little, at: 0, left: 0 };
        entries.left = entries.u32(offset::COUNT)?;
        entries.at = usize::try_from(entries.u32(offset::ENTRIES)?).ok()?;
        Some(entries)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.file.get(at..)?.first_chunk()?;
        Some(if self.little { u32::from_le_bytes(*bytes) } else { u32::from_be_bytes(*bytes) })
    }

    fn u64(&self, at: usize) -> Option<u64> {
        let bytes = self.file.get(at..)?.first_chunk()?;
        Some(if self.little { u64::from_le_bytes(*bytes) } else { u64::from_be_bytes(*bytes) })
    }

    /// The number at `field` of the entry at `self.at`, as an offset from it or a length.
    fn field(&self, field: usize) -> Option<usize> {
        usize::try_from(self.u32(self.at.checked_add(field)?)?).ok()
    }

    fn text(&self, at: usize, most: usize) -> Option<&'a [u8]> {
        let text = self.file.get(at..)?;
        let text = &text[..text.len().min(most)];
        Some(&text[..text.iter().position(|&b| b == 0).unwrap_or(text.len())])
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], Value<'a>);

    /// The next entry; the end, too, where an entry points outside of the file.
    fn next(&mut self) -> Option<(&'a [u8], Value<'a>)> {
        const LONGEST: usize = 256;
        self.left = self.left.checked_sub(1)?;
        let name = self.text(self.at.checked_add(self.field(offset::NAME)?)?, LONGEST)?;
        let data = self.at.checked_add(self.field(offset::DATA)?)?;
        let vector = self.field(offset::VECTOR)?;
        let kind = *self.file.get(self.at.checked_add(offset::TYPE)?)?;
        let value = match (kind, vector) {
            (b'J', 0) => Value::Number(u64::try_from(self.u64(data)? as i64).unwrap_or_default()),
            _ => Value::Text(self.text(data, vector.min(LONGEST))?),
        };
        // An entry of no length would be met again and again.
        let length = self.field(offset::LENGTH).filter(|&length| length > 0)?;
        self.at = self.at.checked_add(length)?;
        Some((name, value))
    }
}

impl Process {
    /// The counters of the HotSpot JVM it runs; `None` where it runs none, or one that shares no counters.
    pub fn jvm(&self) -> Result<Option<Jvm>, ReadError> {
        let status = self.status()?;
        let pid = status.namespace_pid.unwrap_or(self.pid());
        let root = self.dir().sub("root")?;
        let Some(tmp) = inside(&root, "tmp", OFlags::DIRECTORY)? else { return Ok(None) };
        for directory in counter_directories(&tmp).map_err(|e| ReadError::new(root.path("tmp"), e))? {
            let path = format!("tmp/{directory}");
            let Some(owned) = inside(&root, &path, OFlags::DIRECTORY | OFlags::NOFOLLOW)? else { continue };
            if !fstat(&owned).is_ok_and(|stat| stat.st_uid == status.uid.effective) {
                continue;
            }
            let path = format!("{path}/{pid}");
            let Some(file) = inside(&root, &path, OFlags::NOFOLLOW | OFlags::NONBLOCK)? else { continue };
            let text = read(&file).map_err(|e| ReadError::new(root.path(&path), e))?;
            if let Some(jvm) = Jvm::parse(&text) {
                return Ok(Some(jvm));
            }
        }
        Ok(None)
    }
}

/// Opens `path` as a process whose root is `root` would; `None` where it is not there or not of that kind.
fn inside(root: &Root, path: &str, flags: OFlags) -> Result<Option<OwnedFd>, ReadError> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(root.fd(), path, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(None),
        Err(errno) => Err(ReadError::new(root.path(path), errno)),
    }
}

/// The names in `tmp` that counters' directories have, at most 64.
fn counter_directories(tmp: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    let mut block = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(tmp, block.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_str().ok().filter(|name| name.starts_with("hsperfdata_"));
        names.extend(name.map(str::to_owned));
        if names.len() == 64 {
            break;
        }
    }
    Ok(names)
}

/// The content of `file`; nothing where it is no regular file.
fn read(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let stat = fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(Vec::new());
    }
    let mut text = vec![0; MAX_FILE.min(usize::try_from(stat.st_size).unwrap_or(MAX_FILE))];
    let mut filled = 0;
    while filled < text.len() {
        match rustix::io::read(file, &mut text[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    text.truncate(filled);
    Ok(text)
}

#[cfg(test)]
mod tests;
