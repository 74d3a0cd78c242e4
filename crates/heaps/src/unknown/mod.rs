//! What no walker claimed of a process's private anonymous memory: how much of it is resident, by what its mappings
//! and a few words at fixed places say it is.
//!
//! Invariants: each byte is in one [`Heap`] of [`Kind::Unknown`], in the stacks, or in the code; a name needs two
//! witnesses that agree, and what has none is "anonymous". A mapping without any access (guards, reservations) is
//! taken to be empty: what it held is dropped by those who close it (glibc, JVM, Go), and some reserve terabytes.

mod runtimes;
mod statics;

use crate::model::{Extent, Figures, Heap, Kind};
use crate::ranges::{append, merged, without};
use crate::reader::Reader;
use crate::source::{Area, Fault, MemorySource, PageState, there};
use ebbtide_observe::hsperf::Jvm;
use ebbtide_observe::process::Mapping;
use ebbtide_observe::process::kind::{self, Classifier, Hints, Verdict};
use ebbtide_observe::{Bytes, page_size};
use std::collections::BTreeMap;
use std::ops::Range;

/// What else is known of the process.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// Where its threads' stacks are.
    pub hints: Hints,
    /// What its JVM counts; `None` where it runs none.
    pub jvm: Option<Jvm>,
}

/// What was not claimed.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// By name; none without resident memory.
    pub(crate) heaps: Vec<Heap>,
    /// Threads' stacks.
    pub(crate) stacks: Extent,
    /// Executable memory without a file: compiled by the program itself.
    pub(crate) code: Extent,
}

/// Recognises what `scene` has of one runtime, within ranges that are nobody's; none may cross two of them.
type Recognise = fn(&mut Scene, &[Range<u64>]) -> Result<Vec<Range<u64>>, Fault>;

const RUNTIMES: &[(&str, Recognise)] = &[
    ("static data", statics::find),
    ("Go heap", runtimes::go),
    (JVM, runtimes::jvm),
    ("PHP heap", runtimes::php),
    ("Ruby heap", runtimes::ruby),
    ("V8 heap", runtimes::v8),
];

const JVM: &str = "JVM heap";
const ANONYMOUS: &str = "anonymous";
const BRK: &str = "brk heap";

/// What recognisers look at.
pub(crate) struct Scene<'s> {
    source: &'s dyn MemorySource,
    reader: Reader<'s>,
    around: &'s Around,
}

impl Scene<'_> {
    /// The word at `address`; `None` where it cannot be read.
    fn word(&mut self, address: u64) -> Result<Option<u64>, Fault> {
        there(self.reader.u64(address))
    }

    /// `N` words at `address`; `None` where they cannot be read.
    fn words<const N: usize>(&mut self, address: u64) -> Result<Option<[u64; N]>, Fault> {
        let bytes = there(self.reader.bytes(address, 8 * N))?;
        Ok(bytes.map(|bytes| {
            std::array::from_fn(|i| bytes[8 * i..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word)))
        }))
    }

    /// Whether a file is mapped executable whose name has `part` in it.
    fn runs(&self, part: &[u8]) -> bool {
        let mut code = self.source.areas().iter().filter(|area| area.inode != 0 && area.perms.exec);
        code.any(|area| {
            let name = area.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            name.windows(part.len()).any(|window| window == part)
        })
    }
}

/// The rest of `source` beside `claims`, which must be in order and may not overlap.
pub(crate) fn rest(source: &dyn MemorySource, claims: &[Range<u64>], around: &Around) -> Result<Rest, Fault> {
    let mut rest = Rest::default();
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    let mut unnamed: Vec<Range<u64>> = Vec::new();
    for (area, kind) in kinds(source.areas(), around) {
        let unclaimed = without(area.range.clone(), claims);
        match place(area, kind) {
            Place::Elsewhere => {}
            Place::Stack => rest.stacks += extent(source, &unclaimed)?,
            Place::Code => rest.code += extent(source, &unclaimed)?,
            Place::Named(name) => {
                for range in unclaimed {
                    sums.entry(name.clone()).or_default().add(source, range)?;
                }
            }
            Place::Unnamed => unclaimed.into_iter().for_each(|range| append(&mut unnamed, range)),
        }
    }
    let mut scene = Scene { source, reader: Reader::new(source), around };
    for &(name, recognise) in RUNTIMES {
        let found = merged(recognise(&mut scene, &unnamed)?);
        for range in &found {
            sums.entry(name.to_owned()).or_default().add(source, range.clone())?;
        }
        unnamed = unnamed.into_iter().flat_map(|range| without(range, &found)).collect();
    }
    for range in unnamed {
        sums.entry(ANONYMOUS.to_owned()).or_default().add(source, range)?;
    }
    let told = around.jvm.as_ref().map(|jvm| (sums.contains_key(JVM), jvm));
    rest.heaps = sums
        .into_iter()
        .filter(|(_, sum)| sum.extent.resident > Bytes::ZERO)
        .map(|(name, sum)| {
            let notes = told.filter(|(named, _)| name == if *named { JVM } else { ANONYMOUS });
            let notes = notes.map(|(_, jvm)| collected(jvm)).into_iter().collect();
            let Extent { mapped, resident } = sum.extent;
            let figures = Figures { mapped, resident, unused: mapped, ..Figures::default() };
            Heap { name: Some(name), figures, notes, claims: sum.ranges, ..Heap::new(Kind::Unknown) }
        })
        .collect();
    Ok(rest)
}

/// Whether `heap` is of what a malloc takes from the system, and nothing else is known of it.
pub(crate) fn may_be_mallocs(heap: &Heap) -> bool {
    [Some(ANONYMOUS), Some(BRK)].contains(&heap.name.as_deref())
}

/// What a JVM counts of its heap.
fn collected(jvm: &Jvm) -> String {
    let ebbtide_observe::hsperf::Pool { used, committed, max } = jvm.heap;
    format!("the JVM's heap: {used} used at its last collection of {committed} committed, at most {max}")
}

/// Memory of one name.
#[derive(Default)]
struct Sum {
    extent: Extent,
    ranges: Vec<Range<u64>>,
}

impl Sum {
    fn add(&mut self, source: &dyn MemorySource, range: Range<u64>) -> Result<(), Fault> {
        self.extent += extent(source, std::slice::from_ref(&range))?;
        self.ranges.push(range);
        Ok(())
    }
}

/// What `ranges` map, and what of it is resident. Asked of the kernel at once and not by windows: some mappings are
/// terabytes of which little is there. It is asked of whole pages (PAGEMAP_SCAN: EINVAL), which claims need not be:
/// a heap may begin behind static data, and the end that a changing one tells may be any number.
fn extent(source: &dyn MemorySource, ranges: &[Range<u64>]) -> Result<Extent, Fault> {
    let (mut sum, page) = (Extent::default(), page_size().0);
    for range in ranges {
        sum.mapped += Bytes(range.end - range.start);
        let start = range.start - range.start % page;
        source.pages(start..range.end, &mut |run, state| {
            if state == PageState::Present {
                let within = run.start.max(range.start)..run.end.min(range.end);
                sum.resident += Bytes(within.end.saturating_sub(within.start));
            }
        })?;
    }
    Ok(sum)
}

/// Where an area's memory counts.
enum Place {
    /// A file's, shared, the kernel's, or not accessible.
    Elsewhere,
    Stack,
    Code,
    /// By a name of its own.
    Named(String),
    Unnamed,
}

fn place(area: &Area, kind: kind::Kind) -> Place {
    let Area { perms, inode, path, .. } = area;
    if perms.shared || *inode != 0 || perms.is_none() {
        return Place::Elsewhere;
    }
    match kind {
        kind::Kind::MainStack | kind::Kind::ThreadStack => Place::Stack,
        kind::Kind::Kernel | kind::Kind::SharedAnon | kind::Kind::Hugetlb => Place::Elsewhere,
        _ if perms.exec => Place::Code,
        kind::Kind::Heap => Place::Named(BRK.to_owned()),
        _ if path.is_empty() => Place::Unnamed,
        _ => Place::Named(label(path)),
    }
}

/// The name that a mapping was given: "[anon: Go: heap]".
fn label(path: &[u8]) -> String {
    let inner = path.strip_prefix(b"[anon:").and_then(|rest| rest.strip_suffix(b"]"));
    match inner.unwrap_or(path).trim_ascii() {
        b"Go: heap" => "Go heap".to_owned(),
        name => String::from_utf8_lossy(name).into_owned(),
    }
}

/// All areas with their kinds.
fn kinds<'a>(areas: &'a [Area], around: &Around) -> Vec<(&'a Area, kind::Kind)> {
    let mut kinds = Vec::with_capacity(areas.len());
    let mut classifier = Classifier::new(around.hints.clone());
    let mut tell = |verdict: Verdict, area: &'a Area| kinds.push((area, verdict.kind));
    for area in areas {
        let Area { ref range, perms, offset, dev, inode, ref path } = *area;
        let mapping = Mapping { start: range.start, end: range.end, perms, offset, dev, inode, path };
        classifier.push(&mapping, None, area, &mut tell);
    }
    classifier.finish(&mut tell);
    kinds
}

#[cfg(test)]
mod tests;
